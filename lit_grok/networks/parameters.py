"""What all networks share: the scale of their parameters, and linear maps and tables of a stack of them."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


def look_up(tables: Tensor, rows: Tensor) -> Tensor:
    """Rows (R, B, …) of tables (R, T, …), where those of each replica, integers (R, B), are below T.

    Example:
        >>> look_up(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
        [2.0, 3.0]
    """
    if tables.is_cuda and tables.requires_grad:
        # As a product: the gradient of a look-up sorts its indices, which takes longer and no graph can hold.
        return torch.bmm(F.one_hot(rows, tables.shape[1]).to(tables), tables.flatten(2)).unflatten(2, tables.shape[2:])
    first = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=rows.device)
    return F.embedding(rows + first.view(-1, 1), tables.flatten(2).flatten(0, 1)).unflatten(2, tables.shape[2:])
