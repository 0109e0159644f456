"""The perceptron of handwritten digits."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.perceptron import dense_steps, layer_table
from lit_grok.networks.parameters import affine

Init = Literal["default", "xavier_normal"]


class DigitMLP(nn.Module):
    """Perceptron on images: Linear(side² → hidden) ReLU … Linear(→ classes) (Omnigrok, arXiv 2210.01117).

    Args:
        side: Of an image, in pixels.
        hidden: Width of each hidden layer.
        classes: Number of classes.
        init: ``default``, PyTorch's, or ``xavier_normal``: weights from N(0, 2 / (in + out)), biases zero.

    Example:
        >>> network = DigitMLP()
        >>> sum(p.numel() for p in network.parameters())
        199210
        >>> network(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 10])
    """

    def __init__(self, side: int = 28, hidden: Sequence[int] = (200, 200), classes: int = 10, init: Init = "default"):
        super().__init__()
        if min(side, classes, *hidden, len(hidden)) < 1:
            raise ValueError(
                f"side={side}, hidden={list(hidden)}, classes={classes}: all at least 1, with one or more hidden layers"
            )
        if init not in ("default", "xavier_normal"):
            raise ValueError(f"init={init}: unknown; allowed: default, xavier_normal")
        self.side = side
        widths = [side**2, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.output = nn.Linear(widths[-1], classes)
        if init == "xavier_normal":
            for layer in (*self.hidden, self.output):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def embed(self, inputs: Tensor) -> Tensor:
        """Images (B, side, side) as points (B, side²)."""
        return inputs.flatten(-2).to(self.output.weight.dtype)

    def embedded_preactivations(self, x: Tensor) -> dict[str, Tensor]:
        """Pre-activations of every hidden layer of points (B, side²)."""
        found = {}
        for i, layer in enumerate(self.hidden):
            found[f"hidden.{i}"] = layer(x)
            x = F.relu(found[f"hidden.{i}"])
        return found

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations of every hidden layer: ``hidden.0``, ``hidden.1``, …, each (B, width).

        Args:
            inputs: Grey levels between 0 and 1, shape (B, side, side).
        """
        return self.embedded_preactivations(self.embed(inputs))

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Activations (B, width) of the last hidden layer."""
        return F.relu(self.preactivations(inputs)[f"hidden.{len(self.hidden) - 1}"])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, classes), of images (B, side, side)."""
        return self.output(self.penultimate(inputs))

    def forward_stack(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits (R, B, classes) of R sets of parameters on images (R, B, side, side)."""
        x = inputs.flatten(2).to(parameters["output.weight"].dtype)
        for i in range(len(self.hidden)):
            x = F.relu(affine(x, parameters, f"hidden.{i}"))
        return affine(x, parameters, "output")

    column_major = ()

    def compiled_steps(self, offsets: Mapping[str, int], squared: bool) -> CompiledSteps:
        """Its training step for the CPU."""
        hidden = {f"hidden.{i}": cast(nn.Linear, layer) for i, layer in enumerate(self.hidden)}
        return dense_steps(layer_table(hidden | {"output": self.output}, offsets), squared)

    def neurons(self) -> dict[str, str]:
        """Weights that enter the neurons of each hidden layer, and leave them."""
        names = [*(f"hidden.{i}.weight" for i in range(len(self.hidden))), "output.weight"]
        return dict(pairwise(names))

    @staticmethod
    def observables(inputs: Tensor) -> dict[str, Tensor]:
        """What can be seen in images (B, side, side) without knowing the digit, each of shape (B,).

        ``ink``, the mean grey level, and of the ink as a distribution over the image its standard deviations ``width``
        and ``height`` in pixels, and the correlation ``slant`` of its coordinates, positive where it leans to the
        right; 0 for an image without ink.
        """
        images = inputs.flatten(0, -3).double()
        total = images.sum((1, 2))
        share = images / total.clamp(min=torch.finfo(torch.double).tiny)[:, None, None]
        x = torch.arange(images.shape[2], dtype=torch.double, device=images.device)
        y = torch.arange(images.shape[1], dtype=torch.double, device=images.device).flip(0)  # upwards
        mean_x, mean_y = (share.sum(1) * x).sum(1), (share.sum(2) * y).sum(1)
        dx, dy = x - mean_x[:, None], y - mean_y[:, None]
        width, height = ((share.sum(1) * dx**2).sum(1)).sqrt(), ((share.sum(2) * dy**2).sum(1)).sqrt()
        both = (share * dy[:, :, None] * dx[:, None, :]).sum((1, 2))
        slant = torch.where(width * height > 0, both / (width * height), 0.0)
        found = {"ink": images.mean((1, 2)), "width": width, "height": height, "slant": slant}
        return {name: values.to(inputs.dtype) for name, values in found.items()}
