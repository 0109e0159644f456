"""The networks of the tasks, as plain ``nn.Module``s, and what an analysis may ask of one."""

from lit_grok.networks.ising_cnn import IsingCNN
from lit_grok.networks.modular_mlp import ModularMLP
from lit_grok.networks.parameters import scale_parameters
from lit_grok.networks.protocols import (
    HasCompiledSteps,
    HasFourierWeights,
    HasObservables,
    HasPenultimate,
    HasPreactivations,
    HasStackedForward,
)
from lit_grok.networks.resnet import ResNet18

__all__ = [
    "HasCompiledSteps",
    "HasFourierWeights",
    "HasObservables",
    "HasPenultimate",
    "HasPreactivations",
    "HasStackedForward",
    "IsingCNN",
    "ModularMLP",
    "ResNet18",
    "scale_parameters",
]
