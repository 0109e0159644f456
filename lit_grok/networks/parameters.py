"""What all networks share: the scale of their parameters, and linear maps of a stack of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


def affine(inputs: Tensor, parameters: Mapping[str, Tensor], layer: str) -> Tensor:
    """x[r] W[r]ᵀ + b[r] of every r, without b where the layer has none."""
    # Not baddbmm, which rounds differently for one replica and for several.
    product = torch.bmm(inputs, parameters[f"{layer}.weight"].mT)
    bias = parameters.get(f"{layer}.bias")
    return product if bias is None else product + bias.unsqueeze(1)
