"""Similarity of two representations of the same inputs."""

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of two layers.

    CKA = ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) with the columns of X and Y centred. Invariant under a rotation and an
    isotropic scaling of either; 1 where one is such a transform of the other, 0 where no features correlate.

    Source: Kornblith et al. 2019, arXiv 1905.00414, Section 3.

    Args:
        x: n features of N inputs, shape (..., N, n).
        y: m features of the same inputs, shape (..., N, m).

    Returns:
        Shape (...,), float64, between 0 and 1; NaN where all features of x, or all of y, are constant.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> linear_cka(x, 3 * x.flip(-1)), linear_cka(x, x[:, :1])
        (tensor(1.0000, dtype=torch.float64), tensor(0.7071, dtype=torch.float64))
    """
    x, y = _centred(torch.as_tensor(x)), _centred(torch.as_tensor(y))
    cross = (y.mT @ x).square().sum((-2, -1))
    norms = [(z.mT @ z).square().sum((-2, -1)).sqrt() for z in (x, y)]
    return (cross / (norms[0] * norms[1])).clamp(0, 1)


def _centred(x: Tensor) -> Tensor:
    """Features (..., N, n) centred, in units of the largest entry; NaN where every feature is constant."""
    x = x.double()
    x = x - x[..., :1, :]  # a constant feature is exactly 0 from here on
    x = x - x.mean(-2, keepdim=True)
    return x / x.abs().amax((-2, -1), keepdim=True)
