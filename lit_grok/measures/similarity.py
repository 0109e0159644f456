"""Similarity of two representations of the same inputs."""

from collections.abc import Callable, Iterable

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
        >>> linear_cka(x, 3 * x.flip(-1)).round(decimals=6), linear_cka(x, x[:, :1])
        (tensor(1., dtype=torch.float64), tensor(0.7071, dtype=torch.float64))
    """
    x, y = _centred(torch.as_tensor(x)), _centred(torch.as_tensor(y))
    cross = (y.mT @ x).square().sum((-2, -1))
    norms = [(z.mT @ z).square().sum((-2, -1)).sqrt() for z in (x, y)]
    return (cross / (norms[0] * norms[1])).clamp(0, 1)


def pairwise_linear_cka(x: Tensor, spread: Callable[[Callable, Iterable[int]], Iterable] = map) -> Tensor:
    """Linear centred kernel alignment, :func:`linear_cka`, of every two of R layers.

    The cross products of one layer with all later ones are one matrix product, in the precision of ``x``.

    Args:
        x: n features of the same N inputs in each of R networks, shape (R, N, n).
        spread: What calls a function with the number of every layer, as ``map`` does; it may use threads.

    Returns:
        Symmetric, shape (R, R), float64, between 0 and 1; NaN in the row and the column of a layer whose
        features are all constant.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> pairwise_linear_cka(torch.stack([x, 3 * x.flip(-1)])).round(decimals=6)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    replicas = len(x)
    columns = torch.empty_like(x).transpose(0, 1).contiguous()  # (N, R, n)

    def centre(i: int) -> None:
        columns[:, i] = _centred(x[i])

    def row(i: int) -> Tensor:
        """‖X_jᵀ X_i‖² for every j ≥ i."""
        later = columns[:, i:].reshape(len(columns), -1)
        cross = (columns[:, i].mT @ later).square().unflatten(1, (replicas - i, -1))
        return cross.sum((0, 2), dtype=torch.float64)

    list(spread(centre, range(replicas)))
    squares = x.new_zeros(replicas, replicas, dtype=torch.float64)
    for i, values in enumerate(spread(row, range(replicas))):
        squares[i, i:] = squares[i:, i] = values
    norms = squares.diagonal().sqrt()
    return (squares / (norms[:, None] * norms)).clamp(0, 1)


def _centred(x: Tensor) -> Tensor:
    """Features (..., N, n) centred, in units of the largest entry; NaN where every feature is constant."""
    x = x.double()
    x = x - x[..., :1, :]  # a constant feature is exactly 0 from here on
    x = x - x.mean(-2, keepdim=True)
    return x / x.abs().amax((-2, -1), keepdim=True)
