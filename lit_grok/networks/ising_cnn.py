"""The convolutional network of the Ising task."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.convolution import conv_relu_pool, ising_steps
from lit_grok.kernels.perceptron import layer_table
from lit_grok.measures import ising
from lit_grok.networks.parameters import affine


class IsingCNN(nn.Module):
    """Convolutional classifier of spin snapshots into ordered (0) and disordered (1).

    Conv(1→2, 3×3, padding 1) ReLU MaxPool2, Conv(2→4, 3×3, padding 1) ReLU MaxPool2, Linear(→ 100) ReLU,
    Linear(→ 2); the zero padding and PyTorch's default initialisation are the paper's (arXiv 2502.01739).

    Args:
        side: Linear size L of the square lattice, a positive multiple of 4 (two poolings by 2).

    Example:
        >>> import torch
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
        fc1 = affine(x.flatten(2), parameters, "fc1")
        return affine(F.relu(fc1), parameters, "fc2")

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
