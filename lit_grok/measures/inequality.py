"""How unequally a quantity is distributed."""

import torch
from torch import Tensor


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of the absolute values.

    G = Σ_i (2i − n − 1) x_i / (n Σ_i x_i) with x_1 ≤ … ≤ x_n the sorted |values|: the mean difference
    of two draws over twice their mean. 0 where all are equal, (n − 1)/n where one holds everything.

    Source: Gini 1912; sorted form as in Damgaard and Weiner 2000, Ecology 81, 1139.

    Args:
        values: Shape (..., n), n ≥ 1; the coefficient does not depend on their unit.

    Returns:
        Shape (...,), float64, between 0 and 1; NaN where all values are zero.

    Example:
        >>> gini(torch.tensor([[0.0, 0.0, 0.0, -1.0], [2.0, 2.0, -2.0, 2.0]]))
        tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    x = torch.as_tensor(values).double().abs().sort(-1).values
    x = x / x[..., -1:]
    n = x.shape[-1]
    weight = torch.arange(1 - n, n, 2, dtype=x.dtype, device=x.device)
    return ((weight * x).sum(-1) / (n * x.sum(-1))).clamp(min=0)
