"""The perceptron of modular addition."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.perceptron import layer_table, modular_steps, residues
from lit_grok.kernels.tables import look_up_sum
from lit_grok.networks.parameters import affine


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
            x = affine(inputs, parameters, names[0])
        else:
            residues(inputs, self.P)
            x = look_up_sum(parameters[first].mT, inputs + torch.arange(0, 2 * self.P, self.P, device=inputs.device))
            x = x + parameters[f"{names[0]}.bias"].unsqueeze(1)
        for name in names[1:]:
            x = affine(F.relu(x), parameters, name)
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

    def residue_embeddings(self) -> dict[str, Tensor]:
        """Rows (P, width) that the operands ``a`` and ``b`` add to the first pre-activations."""
        a, b = self._first_layer.weight.t().split(self.P)
        return {"a": a, "b": b}

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
