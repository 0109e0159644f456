"""Progress measures of a network that learns a ± b mod P: its key frequencies, and its loss with and without them.

The rows of activations and logits are the P² pairs in lexicographic order, the pair (a, b) in the row aP + b. What
such a network computes is a sum of cos(w_k(a ± b − c)) over a few key frequencies k, w_k = 2πk/P.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lit_grok.measures.inequality import gini

NEURONS_AT_ONCE = 64  # bounds the memory of the transform: half a GB for P = 379


class KeyFrequencies(NamedTuple):
    """The key frequencies in ascending order, each neuron's own (n,), and its share of that neuron's variance (n,)."""

    keys: Tensor
    frequencies: Tensor
    explained: Tensor


def fourier_basis(P: int) -> Tensor:
    """Real orthonormal Fourier basis of the functions on the residues 0 … P − 1.

    Row 0 is 1/√P, the rows 2k − 1 and 2k are √(2/P) cos(2πkx/P) and √(2/P) sin(2πkx/P); for even P the last
    row, of k = P/2, is (−1)^x/√P and has no sine.

    Source: Nanda et al. 2023, arXiv 2301.05217.

    Args:
        P: Number of residues, positive.

    Returns:
        Shape (P, P), float64: a basis function a row.

    Example:
        >>> fourier_basis(3).round(decimals=4)
        tensor([[ 0.5774,  0.5774,  0.5774],
                [ 0.8165, -0.4082, -0.4082],
                [ 0.0000,  0.7071, -0.7071]], dtype=torch.float64)
    """
    x = torch.arange(P)
    frequency = _frequency_of_row(P).unsqueeze(1)
    # k x mod P is exact, and its angle keeps all its digits.
    angle = 2 * torch.pi * (frequency * x % P).double() / P
    basis = torch.where(x.unsqueeze(1) % 2 == 1, angle.cos(), angle.sin())
    basis[0] = 1.0
    return basis / basis.square().sum(1, keepdim=True).sqrt()


def key_frequencies(activations: Tensor) -> KeyFrequencies:
    """The frequency that explains most of the variance of each neuron over all pairs, and the set of these.

    Of the squared coefficients of the centred activations in the products of two basis functions, one of a and one
    of b, the share of a frequency k is held by those of 1, cos(w_k ·) and sin(w_k ·):
    share_k = Σ_{f, g ∈ {1, cos, sin}} ⟨f(a) g(b), h⟩² / ‖h‖², of which the term 1 · 1 is zero.
    White noise gives 8 / (P² − 1) on average. k runs over 1 … P // 2: Nanda et al. leave out the last.

    Source: Nanda et al. 2023, arXiv 2301.05217, and its code.

    Args:
        activations: Of n neurons, after the ReLU and at the last position, shape (P², n), P ≥ 2.

    Returns:
        The key frequencies, ascending; each neuron's frequency, −1 for a constant neuron; the share that it explains,
        float64, NaN for a constant neuron.

    Raises:
        ValueError: The number of rows is not a square above 1.

    Example:
        >>> a, b = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
        >>> neuron = (2 * torch.pi * 2 * a / 7).cos() * (2 * torch.pi * 2 * b / 7).sin() + 5
        >>> key_frequencies(torch.stack([neuron, torch.ones(49)], dim=1))  # doctest: +NORMALIZE_WHITESPACE
        KeyFrequencies(keys=tensor([2]), frequencies=tensor([ 2, -1]),
                       explained=tensor([1.0000,    nan], dtype=torch.float64))
    """
    activations = torch.as_tensor(activations)
    P = _residues(activations)
    basis = fourier_basis(P).to(activations.device)
    frequency = _frequency_of_row(P).to(activations.device)
    best = []
    for chunk in activations.split(NEURONS_AT_ONCE, dim=1):
        h = chunk.double()
        h = h - h[:1]  # first, so that a constant is exactly 0 after centring
        h = (h - h.mean(0)).unflatten(0, (P, P))
        power = torch.einsum("ka,abn,lb->kln", basis, h, basis).square()
        # Cosine and sine of a frequency together, along a and along b.
        rows = power.new_zeros(P // 2 + 1, P, power.shape[-1]).index_add(0, frequency, power)
        power = power.new_zeros(P // 2 + 1, P // 2 + 1, power.shape[-1]).index_add(1, frequency, rows)
        share = (power[0, 1:] + power[1:, 0] + power.diagonal().mT[1:]) / power.sum((0, 1))
        best.append(share.max(0))
    explained = torch.cat([b.values for b in best])
    frequencies = (torch.cat([b.indices for b in best]) + 1).masked_fill(explained.isnan(), -1)
    keys = frequencies.unique()
    return KeyFrequencies(keys[keys > 0], frequencies, explained)


def restricted_logits(logits: Tensor, frequencies: int | Iterable[int], sign: int = 1) -> Tensor:
    """What is left of the logits if they depend on the pair only by the given frequencies of a ± b.

    Each class's logits, a function of the pair, are projected on cos(w_k(a ± b)) and sin(w_k(a ± b)), and the mean over
    pairs of what that removes is added back.

    Source: Nanda et al. 2023, arXiv 2301.05217.

    Args:
        logits: Of the P classes for all pairs, shape (P², P).
        frequencies: The k to keep, from 1 to P // 2.
        sign: 1 for a + b, −1 for a − b.

    Returns:
        Shape (P², P), float64.

    Raises:
        ValueError: The shape is not (P², P), a frequency or the sign is none.

    Example:
        >>> restricted_logits(torch.tensor([[1.0, 2.0], [3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]), 1).round(decimals=4)
        tensor([[1., 3.],
                [3., 1.],
                [3., 1.],
                [1., 3.]], dtype=torch.float64)
    """
    logits = torch.as_tensor(logits).double()
    return _component(logits, frequencies, sign) + logits.mean(0)


def excluded_logits(logits: Tensor, frequencies: int | Iterable[int], sign: int = 1) -> Tensor:
    """What is left of the logits without their dependence on the pair by the given frequencies of a ± b.

    The projection of each class's logits on cos(w_k(a ± b)) and sin(w_k(a ± b)) is taken away.

    Source: Nanda et al. 2023, arXiv 2301.05217, for one frequency at a time.

    Args:
        logits: Of the P classes for all pairs, shape (P², P).
        frequencies: The k to take away, from 1 to P // 2.
        sign: 1 for a + b, −1 for a − b.

    Returns:
        Shape (P², P), float64.

    Raises:
        ValueError: The shape is not (P², P), a frequency or the sign is none.

    Example:
        >>> excluded_logits(torch.tensor([[1.0, 2.0], [3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]), 1).round(decimals=4)
        tensor([[2., 1.],
                [2., 2.],
                [2., 2.],
                [2., 3.]], dtype=torch.float64)
    """
    logits = torch.as_tensor(logits).double()
    return logits - _component(logits, frequencies, sign)


def restricted_loss(
    logits: Tensor, classes: Tensor, rows: Tensor, frequencies: int | Iterable[int], sign: int = 1
) -> Tensor:
    """Mean cross-entropy, over some of the pairs, of :func:`restricted_logits`.

    It falls as soon as the key frequencies alone solve the task, which may be long before the network does.

    Source: Nanda et al. 2023, arXiv 2301.05217.

    Args:
        logits: Of the P classes for all pairs, shape (P², P).
        classes: The right class of each pair, shape (P²,).
        rows: Which pairs to average over, those of training or test or all: indices, or booleans of shape (P²,).
        frequencies: The k to keep, from 1 to P // 2.
        sign: 1 for a + b, −1 for a − b.

    Returns:
        A scalar, float64, in nats; NaN over no pairs.

    Raises:
        ValueError: The shape is not (P², P), a frequency or the sign is none.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
        >>> restricted_loss(logits, torch.tensor([0, 1, 1, 0]), torch.arange(4), [1])
        tensor(0.1269, dtype=torch.float64)
    """
    return cross_entropy(restricted_logits(logits, frequencies, sign)[rows], torch.as_tensor(classes)[rows])


def excluded_loss(
    logits: Tensor, classes: Tensor, rows: Tensor, frequencies: int | Iterable[int], sign: int = 1
) -> Tensor:
    """Mean cross-entropy, over some of the pairs, of :func:`excluded_logits`.

    Over the training pairs it rises while the network comes to rely on these frequencies.

    Source: Nanda et al. 2023, arXiv 2301.05217.

    Args:
        logits: Of the P classes for all pairs, shape (P², P).
        classes: The right class of each pair, shape (P²,).
        rows: Which pairs to average over: indices, or booleans of shape (P²,).
        frequencies: The k to take away, from 1 to P // 2; Nanda et al. take one at a time.
        sign: 1 for a + b, −1 for a − b.

    Returns:
        A scalar, float64, in nats; NaN over no pairs.

    Raises:
        ValueError: The shape is not (P², P), a frequency or the sign is none.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
        >>> excluded_loss(logits, torch.tensor([0, 1, 1, 0]), torch.arange(4), 1)
        tensor(0.6931, dtype=torch.float64)
    """
    return cross_entropy(excluded_logits(logits, frequencies, sign)[rows], torch.as_tensor(classes)[rows])


def fourier_gini(weights: Tensor) -> Tensor:
    """Gini coefficient of the norms of the Fourier components of weights over the residues.

    G of the P norms ‖Σ_x f(x) W_x‖₂, one for each function f of :func:`fourier_basis`: the constant, and every cosine
    and sine by itself. 1 − 1/P if one component holds everything, little if all are alike.

    Source: Nanda et al. 2023, arXiv 2301.05217, for the embedding W_E and for W_U W_out.

    Args:
        weights: A row for each residue, shape (..., P, d), any unit.

    Returns:
        Shape (...,), float64, between 0 and 1; NaN where all weights are zero.

    Example:
        >>> fourier_gini(torch.ones(5, 3)).round(decimals=6), fourier_gini(torch.eye(5)).round(decimals=6)
        (tensor(0.8000, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    weights = torch.as_tensor(weights).double()
    return gini((fourier_basis(weights.shape[-2]).to(weights.device) @ weights).norm(dim=-1))


def sum_of_squares(network: nn.Module) -> dict[str, Tensor]:
    """Sum of squared entries of each parameter, Σ_i θ_i².

    Source: Nanda et al. 2023, arXiv 2301.05217.

    Args:
        network: Any network.

    Returns:
        Parameter name to a scalar, float64; their sum is the square of :func:`lit_grok.measures.weights.norm`.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> _ = network.weight.data.fill_(3.0), network.bias.data.fill_(4.0)
        >>> sum_of_squares(network)
        {'weight': tensor(18., dtype=torch.float64), 'bias': tensor(16., dtype=torch.float64)}
    """
    return {name: p.detach().double().square().sum() for name, p in network.named_parameters()}


def _component(logits: Tensor, frequencies: int | Iterable[int], sign: int) -> Tensor:
    """Projection (P², P) of the logits on the functions of a ± b of the given frequencies."""
    P = _residues(logits)
    if logits.shape[1] != P:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: {P}² pairs have {P} classes")
    if sign not in (1, -1):
        raise ValueError(f"sign={sign}: 1 for a + b, −1 for a − b")
    ks = {int(k) for k in ([frequencies] if isinstance(frequencies, int) else frequencies)}
    if not all(1 <= k <= P // 2 for k in ks):
        raise ValueError(f"frequencies {sorted(ks)}: they are from 1 to {P // 2}")
    # The projection on functions of s = a ± b is the mean over the P pairs of each s.
    pair = torch.arange(P * P, device=logits.device)
    s = (pair // P + sign * (pair % P)) % P
    means = logits.new_zeros(P, P).index_add(0, s, logits) / P
    basis = fourier_basis(P)[[int(k) in ks for k in _frequency_of_row(P)]].to(logits.device)
    return (basis.mT @ (basis @ means))[s]


def _frequency_of_row(P: int) -> Tensor:
    """Frequency k of each row of the basis: 0, 1, 1, 2, 2, …."""
    return (torch.arange(P) + 1) // 2


def _residues(rows: Tensor) -> int:
    """P, of which there are P² pairs."""
    P = math.isqrt(len(rows))
    if P < 2 or len(rows) != P * P:
        raise ValueError(f"{len(rows)} rows: not all pairs of at least two residues")
    return P
