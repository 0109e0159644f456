"""Which observable of the inputs the neurons of a layer follow."""

from typing import NamedTuple

import torch
from torch import Tensor


class ObservableShares(NamedTuple):
    """Shares of the neurons and of the total |pre-activation| that go to each of q observables, (..., q)."""

    neurons: Tensor
    activation: Tensor


def pearson(activations: Tensor, observable: Tensor) -> Tensor:
    """Pearson correlation r of each neuron with an observable, over the inputs.

    r_n = Σ_x (a_n(x) − ā_n)(o(x) − ō) / √(Σ_x (a_n(x) − ā_n)² · Σ_x (o(x) − ō)²), in double precision.

    Source: arXiv 2502.01739, Eq. 6.

    Args:
        activations: Pre-activations of n neurons on N inputs, shape (..., N, n).
        observable: Shape (..., N).

    Returns:
        Shape (..., n), float64, between −1 and 1; NaN for a constant pre-activation or observable.

    Example:
        >>> energy = torch.tensor([-2.0, -1.0, 0.0])
        >>> pearson(torch.stack([3 * energy, 1 - energy, torch.ones(3)], dim=-1), energy).round(decimals=6)
        tensor([ 1., -1., nan], dtype=torch.float64)
    """
    a = _standardised(torch.as_tensor(activations))
    o = _standardised(torch.as_tensor(observable).unsqueeze(-1))
    return (a.mT @ o).squeeze(-1).clamp(-1, 1)


def weighted_correlation(activations: Tensor, observable: Tensor) -> Tensor:
    """Correlation of a layer with an observable, Σ_n w_n |r_n|, each neuron weighted by its pre-activation.

    w_n = Σ_x |a_n(x)| / Σ_m Σ_x |a_m(x)|. Constant neurons have no correlation and are left out of both sums.

    Source: arXiv 2502.01739, Section 4.1 and Appendix C.

    Args:
        activations: Shape (..., N, n), as for :func:`pearson`.
        observable: Shape (..., N).

    Returns:
        Shape (...,), float64, between 0 and 1; NaN if every neuron is constant.

    Example:
        >>> energy = torch.tensor([-1.0, 1.0, -1.0, 1.0])
        >>> other = torch.tensor([-3.0, -3.0, 3.0, 3.0])
        >>> weighted_correlation(torch.stack([energy, other, torch.ones(4)], dim=-1), energy)
        tensor(0.2500, dtype=torch.float64)
    """
    r = pearson(activations, observable).abs()
    w = torch.where(r.isnan(), 0.0, torch.as_tensor(activations).double().abs().sum(-2))
    return (w * r.nan_to_num(0.0)).sum(-1) / w.sum(-1)


def dominant_observable_shares(activations: Tensor, observables: Tensor) -> ObservableShares:
    """Shares of the neurons, and of the total |pre-activation|, whose highest |r| is with each observable.

    Constant neurons are left out of both shares and their totals. A tie goes to the first observable.

    Source: arXiv 2502.01739, Appendix G.1.

    Args:
        activations: Shape (..., N, n), as for :func:`pearson`.
        observables: q observables of the inputs, shape (..., q, N).

    Returns:
        Two tensors (..., q), float64, each of sum 1; NaN if every neuron is constant.

    Example:
        >>> observables = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]])
        >>> activations = torch.stack([observables[0], 2 * observables[1], 3 * observables[1]], dim=-1)
        >>> shares = dominant_observable_shares(activations, observables)
        >>> shares.neurons, shares.activation
        (tensor([0.3333, 0.6667], dtype=torch.float64), tensor([0.1667, 0.8333], dtype=torch.float64))
    """
    activations, observables = torch.as_tensor(activations), torch.as_tensor(observables)
    r = pearson(activations.unsqueeze(-3), observables).abs()  # (..., q, n)
    highest = r.nan_to_num(-1.0).argmax(-2, keepdim=True)
    wins = torch.zeros_like(r).scatter_(-2, highest, 1.0)
    wins = torch.where(r.isnan().all(-2, keepdim=True), 0.0, wins)
    held = wins * activations.double().abs().sum(-2).unsqueeze(-2)
    neurons, activation = (share / share.sum(-1, keepdim=True) for share in (wins.sum(-1), held.sum(-1)))
    return ObservableShares(neurons, activation)


def _standardised(x: Tensor) -> Tensor:
    """Columns (..., N, n) centred, of Euclidean norm 1; NaN where constant."""
    # The first row goes before the mean: a constant is then exactly 0, and a large offset costs no digits.
    # The largest entry goes before the squares, which then cannot underflow.
    x = x.double()
    x = x - x[..., :1, :]
    x = x - x.mean(-2, keepdim=True)
    x = x / x.abs().amax(-2, keepdim=True)
    return x / x.square().sum(-2, keepdim=True).sqrt()
