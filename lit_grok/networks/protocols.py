"""What an analysis, or the engine, may ask of a network.

A network may offer small protocols, which is all that an analysis knows of a task: named pre-activations, what the last
layer sees, Fourier weights, embeddings of the residues, and observables of its inputs.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from lit_grok.kernels.compiled import CompiledSteps


@runtime_checkable
class HasPreactivations(Protocol):
    """A network that names the pre-activations of its hidden layers."""

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Layer name to pre-activations, shape (inputs, neurons), before the nonlinearity."""
        ...


@runtime_checkable
class HasPenultimate(Protocol):
    """A network whose last layer is linear in features that it can give."""

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Features, shape (inputs, d), that the last layer sees."""
        ...


@runtime_checkable
class HasFourierWeights(Protocol):
    """A network whose neurons carry weights over the residues 0 … P − 1."""

    def fourier_weights(self) -> dict[str, Tensor]:
        """Name to weights, shape (neurons, P): the last dimension is the one to Fourier transform."""
        ...


@runtime_checkable
class HasResidueEmbeddings(Protocol):
    """A network that embeds the residues 0 … P − 1."""

    def residue_embeddings(self) -> dict[str, Tensor]:
        """Name to embeddings, shape (P, d): one set for both operands, or one for each."""
        ...


@runtime_checkable
class HasEmbeddedInputs(Protocol):
    """A network whose pre-activations are a function of points in a space that its inputs are embedded in."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Points, shape (inputs, …)."""
        ...

    def embedded_preactivations(self, x: Tensor) -> dict[str, Tensor]:
        """Layer name to pre-activations, shape (points, neurons), of points (points, …)."""
        ...


@runtime_checkable
class HasObservables(Protocol):
    """A network whose inputs have physical observables."""

    def observables(self, inputs: Tensor) -> dict[str, Tensor]:
        """Name to values, shape (inputs,)."""
        ...


@runtime_checkable
class HasStackedForward(Protocol):
    """A network that can run R sets of its parameters at once, faster than ``torch.func.vmap`` would."""

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs (R, B, …) for parameters (R, …) by name and inputs (R, B, …); equal to R calls of forward."""
        ...


@runtime_checkable
class HasCompiledSteps(Protocol):
    """A network whose training step, gradient included, is compiled for the CPU in single precision."""

    #: Names of the matrices that the compiled steps want stored column by column.
    column_major: tuple[str, ...]

    def compiled_steps(self, offsets: Mapping[str, int], squared: bool) -> CompiledSteps | None:
        """The steps for rows in which each parameter starts at its offset, or None where its layers have been changed.

        The loss is cross entropy or, if ``squared``, the mean squared error to one-hot targets.
        """
        ...
