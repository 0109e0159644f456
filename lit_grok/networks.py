"""The networks of the two tasks, as plain ``nn.Module``s.

A network may offer three small protocols, which is all that an analysis knows of a task:
named pre-activations, Fourier weights, and observables of its inputs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.convolution import conv_relu_pool, ising_steps
from lit_grok.kernels.perceptron import layer_table, modular_steps, residues
from lit_grok.measures import ising


@runtime_checkable
class HasPreactivations(Protocol):
    """A network that names the pre-activations of its hidden layers."""

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Layer name to pre-activations, shape (inputs, neurons), before the nonlinearity."""
        ...


@runtime_checkable
class HasFourierWeights(Protocol):
    """A network whose neurons carry weights over the residues 0 … P − 1."""

    def fourier_weights(self) -> dict[str, Tensor]:
        """Name to weights, shape (neurons, P): the last dimension is the one to Fourier transform."""
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


class IsingCNN(nn.Module):
    """Convolutional classifier of spin snapshots into ordered (0) and disordered (1).

    Conv(1→2, 3×3, padding 1) ReLU MaxPool2, Conv(2→4, 3×3, padding 1) ReLU MaxPool2, Linear(→ 100) ReLU,
    Linear(→ 2); the zero padding and PyTorch's default initialisation are the paper's (arXiv 2502.01739).

    Args:
        side: Linear size L of the square lattice, a positive multiple of 4 (two poolings by 2).

    Example:
        >>> network = IsingCNN(side=16)
        >>> sum(p.numel() for p in network.parameters())
        6798
        >>> network(torch.ones(5, 16, 16)).shape
        torch.Size([5, 2])
    """

    def __init__(self, side: int = 16):
        super().__init__()
        if side <= 0 or side % 4:
            raise ValueError(f"side={side}: the two poolings by 2 need a positive multiple of 4")
        self.side = side
        self.conv1 = nn.Conv2d(1, 2, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * (side // 4) ** 2, 100)
        self.fc2 = nn.Linear(100, 2)

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations of conv1, conv2 and fc1.

        Args:
            inputs: Spins ±1, shape (B, L, L) or (B, 1, L, L).

        Returns:
            ``conv1`` (B, 2·L²), ``conv2`` (B, 4·(L/2)²), ``fc1`` (B, 100): one neuron per channel and position.
        """
        conv1 = self.conv1(self._image(inputs))
        conv2 = self.conv2(F.max_pool2d(F.relu(conv1), 2))
        fc1 = self.fc1(F.max_pool2d(F.relu(conv2), 2).flatten(1))
        return {"conv1": conv1.flatten(1), "conv2": conv2.flatten(1), "fc1": fc1}

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, 2), of spins of shape (B, L, L) or (B, 1, L, L)."""
        x = F.max_pool2d(F.relu(self.conv1(self._image(inputs))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits (R, B, 2) of R sets of parameters, through fused convolutions."""
        x = (inputs.unsqueeze(2) if inputs.ndim == 4 else inputs).to(parameters["fc1.weight"].dtype)
        for layer in ("conv1", "conv2"):
            x = conv_relu_pool(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
        fc1 = _affine(x.flatten(2), parameters, "fc1")
        return _affine(F.relu(fc1), parameters, "fc2")

    column_major = ()

    def compiled_steps(self, offsets: Mapping[str, int], squared: bool) -> CompiledSteps | None:
        """Its training step for the CPU."""
        if (self.conv1.weight.shape, self.conv2.weight.shape) != ((2, 1, 3, 3), (4, 2, 3, 3)):
            return None
        layers = layer_table({"fc1": self.fc1, "fc2": self.fc2}, offsets)
        return ising_steps(layers, offsets, self.side, squared)

    @staticmethod
    def observables(inputs: Tensor) -> dict[str, Tensor]:
        """Energy, magnetisation and |magnetisation| per site of each snapshot, shape (B,)."""
        spins = inputs.flatten(0, -3) if inputs.ndim > 3 else inputs
        magnetisation = ising.magnetisation(spins)
        return {
            "energy": ising.energy(spins),
            "magnetisation": magnetisation,
            "abs_magnetisation": magnetisation.abs(),
        }

    def _image(self, inputs: Tensor) -> Tensor:
        images = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs
        return images.to(self.fc1.weight.dtype)


class ModularMLP(nn.Module):
    """Multilayer perceptron on pairs of residues modulo P.

    Linear(2P → hidden) ReLU … Linear(→ P) with biases; Xavier-normal weights, zero biases. The input is
    two-hot, so the first layer is a sum of two columns of its weight. Token pairs take exactly that path,
    W[:, a] + W[:, P + b] + bias, and never multiply a zero. The dense two-hot gives the same output through an
    ordinary linear map, which is how a library that inspects ``nn.Linear`` layers sees the network.

    Args:
        P: Number of residues, so of classes.
        hidden: Width of each hidden layer.

    Example:
        >>> network = ModularMLP(P=113, hidden=[512])
        >>> sum(p.numel() for p in network.parameters())
        174193
        >>> pairs = torch.tensor([[3, 5], [112, 0]])
        >>> torch.allclose(network(pairs), network(network.two_hot(pairs)), atol=1e-6)
        True
    """

    def __init__(self, P: int = 113, hidden: Sequence[int] = (512,)):
        super().__init__()
        widths = [2 * P, *hidden, P]
        if P < 2 or len(widths) < 3 or min(widths) < 1:
            raise ValueError(f"P={P}, hidden={list(hidden)}: P is at least 2, with one or more positive widths")
        self.P = P
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths[:-1]))
        self.output = nn.Linear(widths[-2], P)
        for layer in [*self.hidden, self.output]:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def two_hot(self, pairs: Tensor) -> Tensor:
        """Dense encoding, shape (..., 2P), of token pairs (a, b) of shape (..., 2)."""
        one_hot = F.one_hot(pairs, self.P).to(self.output.weight.dtype)
        return one_hot.flatten(-2)

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations of every hidden layer: ``hidden.0``, ``hidden.1``, …, each (B, width).

        Args:
            inputs: Integer token pairs (B, 2) with 0 ≤ a, b < P, or the dense two-hot (B, 2P).
        """
        x = self._first(inputs)
        layers = {"hidden.0": x}
        for i, layer in enumerate(self.hidden[1:], start=1):
            x = layers[f"hidden.{i}"] = layer(F.relu(x))
        return layers

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, P), of integer token pairs (B, 2) or the dense two-hot (B, 2P)."""
        x = F.relu(self._first(inputs))
        for layer in self.hidden[1:]:
            x = F.relu(layer(x))
        return self.output(x)

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits (R, B, P) of R sets of parameters, on token pairs (R, B, 2) or dense two-hots (R, B, 2P)."""
        names = list(self._layers())
        first = f"{names[0]}.weight"
        if inputs.is_floating_point():
            x = _affine(inputs, parameters, names[0])
        else:
            residues(inputs, self.P)
            table = parameters[first].mT
            if table.is_cuda and table.requires_grad:
                # As a product: the gradient of a look-up sorts its indices, which takes longer and no graph can hold.
                x = torch.bmm(self.two_hot(inputs), table)
            else:
                columns = torch.arange(0, 2 * self.P * len(inputs), self.P, device=inputs.device)
                rows = inputs + columns.view(-1, 1, 2)
                a, b = F.embedding(rows.permute(2, 0, 1), table.flatten(0, 1)).unbind()
                x = a + b
            x = x + parameters[f"{names[0]}.bias"].unsqueeze(1)
        for name in names[1:]:
            x = _affine(F.relu(x), parameters, name)
        return x

    column_major = ("hidden.0.weight",)  # so that looking up the columns of a pair reads contiguous memory

    def compiled_steps(self, offsets: Mapping[str, int], squared: bool) -> CompiledSteps:
        """Its training step for the CPU."""
        return modular_steps(layer_table(self._layers(), offsets), squared)

    def relu_layers(self) -> list[nn.Linear]:
        """The linear layers, first to last, with a ReLU between them; the first is fed by the two-hot of pairs."""
        return list(self._layers().values())

    def fourier_weights(self) -> dict[str, Tensor]:
        """Weights over the residues: ``a`` and ``b`` of each first neuron, ``output`` of each last neuron."""
        first = self._first_layer.weight
        return {"a": first[:, : self.P], "b": first[:, self.P :], "output": self.output.weight.t()}

    def _layers(self) -> dict[str, nn.Linear]:
        hidden = {f"hidden.{i}": cast(nn.Linear, layer) for i, layer in enumerate(self.hidden)}
        return hidden | {"output": self.output}

    @property
    def _first_layer(self) -> nn.Linear:
        return cast(nn.Linear, self.hidden[0])

    def _first(self, inputs: Tensor) -> Tensor:
        layer = self._first_layer
        if inputs.is_floating_point():
            return layer(inputs)
        rows = torch.stack((inputs[..., 0], inputs[..., 1] + self.P), -2)
        a, b = F.embedding(rows, layer.weight.t()).unbind(-3)  # one look-up, so one dense gradient
        return a + b + layer.bias


def _affine(inputs: Tensor, parameters: Mapping[str, Tensor], layer: str) -> Tensor:
    """x[r] W[r]ᵀ + b[r] of every r."""
    # Not baddbmm, which rounds differently for one replica and for several.
    return torch.bmm(inputs, parameters[f"{layer}.weight"].mT) + parameters[f"{layer}.bias"].unsqueeze(1)


def scale_parameters(network: nn.Module, init_scale: float) -> nn.Module:
    """Multiply every parameter, biases included, by init_scale, in place; returns the network.

    Example:
        >>> network = scale_parameters(nn.Linear(2, 1), 0.0)
        >>> network.weight.abs().sum().item()
        0.0
    """
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(init_scale)
    return network
