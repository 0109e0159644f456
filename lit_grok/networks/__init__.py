"""The networks of the tasks, as plain ``nn.Module``s, and what an analysis may ask of one."""

from lit_grok.networks.digit_mlp import DigitMLP
from lit_grok.networks.embedding_mlp import EmbeddingMLP, OneHotMLP
from lit_grok.networks.ising_cnn import IsingCNN
from lit_grok.networks.modular_mlp import ModularMLP
from lit_grok.networks.parameters import scale_parameters
from lit_grok.networks.protocols import (
    HasCompiledSteps,
    HasEmbeddedInputs,
    HasFourierWeights,
    HasObservables,
    HasPenultimate,
    HasPreactivations,
    HasResidueEmbeddings,
    HasStackedForward,
)
from lit_grok.networks.resnet import ResNet18
from lit_grok.networks.transformer import Transformer

__all__ = [
    "DigitMLP",
    "EmbeddingMLP",
    "HasCompiledSteps",
    "HasEmbeddedInputs",
    "HasFourierWeights",
    "HasObservables",
    "HasPenultimate",
    "HasPreactivations",
    "HasResidueEmbeddings",
    "HasStackedForward",
    "IsingCNN",
    "ModularMLP",
    "OneHotMLP",
    "ResNet18",
    "Transformer",
    "scale_parameters",
]
