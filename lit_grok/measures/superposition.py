"""Superposition of Fourier features: how many a neuron carries, how many neurons carry one, how far they interfere.

A feature is a frequency k of the residues, 1 ≤ k < P/2: its cosine and its sine. A set of weights W of shape
(neurons, P) gives it a plane in the space of the neurons, spanned by the two columns of

    D_k = Σ_x W[:, x] (cos 2πkx/P, sin 2πkx/P) · √(2/P).

Since these functions are orthonormal, ‖D_k‖² is the power of feature k, and that of all of them is the power of W
without its mean and, for an even P, without the frequency P/2.
"""

import math

import torch
from scipy.stats import binom
from torch import Tensor


def feature_planes(weights: Tensor) -> Tensor:
    """The plane D_k of every feature, as the module's text defines it.

    Args:
        weights: Shape (neurons, P), P at least 3.

    Returns:
        Shape (K, neurons, 2), float64, K = (P − 1) // 2 features.

    Raises:
        ValueError: P is less than 3.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(7, dtype=torch.float64) / 7
        >>> feature_planes(torch.cos(2 * angle)[None]).square().sum((1, 2)).round(decimals=6)
        tensor([0.0000, 3.5000, 0.0000], dtype=torch.float64)
    """
    weights = torch.as_tensor(weights).double()
    P = weights.shape[-1]
    if P < 3:
        raise ValueError(f"P={P}: no frequency lies between 0 and P / 2")
    weights = weights - weights[..., :1]  # constant weights are exactly 0 from here on
    features, residues = torch.arange(1, (P - 1) // 2 + 1), torch.arange(P)
    angles = (features[:, None] * residues % P).double() * (2 * math.pi / P)
    waves = torch.stack([angles.cos(), angles.sin()], -1) * math.sqrt(2 / P)  # (K, P, 2)
    return weights @ waves.to(weights.device)


def power_shares(weights: Tensor) -> Tensor:
    """Share of each feature in the power of each neuron.

    Args:
        weights: Shape (neurons, P).

    Returns:
        Shape (neurons, K), float64, of sum 1; NaN for a neuron without power.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(7, dtype=torch.float64) / 7
        >>> power_shares(torch.stack([torch.cos(angle) + torch.sin(2 * angle), torch.ones(7)])).round(decimals=6)
        tensor([[0.5000, 0.5000, 0.0000],
                [   nan,    nan,    nan]], dtype=torch.float64)
    """
    weights = torch.as_tensor(weights).double()
    weights = weights - weights[..., :1]
    power = feature_planes(weights / weights.abs().amax(-1, keepdim=True)).square().sum(-1).mT
    return power / power.sum(-1, keepdim=True)


def chance_share(features: int, level: float = 0.01) -> float:
    """The share of the power above which chance takes a neuron's largest feature with probability ``level`` at most.

    In white noise the shares of K features are spread uniformly over the simplex, so that one exceeds x with
    probability (1 − x)^(K − 1); the bound is that of Bonferroni, and the first term of Fisher's exact test:

        x = 1 − (level / K)^(1 / (K − 1))

    Source: Fisher 1929, "Tests of significance in harmonic analysis".

    Args:
        features: K, at least 2.
        level: Between 0 and 1.

    Raises:
        ValueError: Either is outside.

    Example:
        >>> round(chance_share(56), 4)
        0.1452
    """
    if features < 2 or not 0 < level < 1:
        raise ValueError(f"features={features}, level={level}: at least 2 features, and a level between 0 and 1")
    return 1 - (level / features) ** (1 / (features - 1))


def carried(weights: Tensor, level: float = 0.01) -> Tensor:
    """Which features each neuron carries: those whose share of its power exceeds `chance_share`.

    Args:
        weights: Shape (neurons, P), P at least 5.
        level: Probability that a neuron of white noise carries any.

    Returns:
        Truth values of shape (neurons, K), none true for a neuron without power.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(113) / 113
        >>> both = carried(torch.stack([torch.cos(5 * angle) + 0.8 * torch.sin(9 * angle), torch.zeros(113)]))
        >>> both.nonzero().tolist()  # neuron 0, frequencies 5 and 9, which are features 4 and 8
        [[0, 4], [0, 8]]
    """
    shares = power_shares(weights)
    return shares > chance_share(shares.shape[-1], level)


def in_use(carrying: Tensor, level: float = 0.01) -> Tensor:
    """Which features more neurons carry than chance would have it.

    In n neurons of white noise the number that carry a certain one of K features is binomial, with probability
    level / K at most; a feature is in use where its number is exceeded with probability level / K at most.

    Args:
        carrying: What `carried` gives at the same level, shape (neurons, K).
        level: Probability that any feature is in use where the weights are noise.

    Returns:
        Truth values of shape (K,).

    Example:
        >>> carrying = torch.zeros(512, 56, dtype=bool)
        >>> carrying[:2, 7] = carrying[:3, 30] = True  # by chance two neurons may agree, three do not
        >>> in_use(carrying).nonzero().tolist()
        [[30]]
    """
    neurons, K = carrying.shape
    return carrying.sum(0) > binom.isf(level / K, neurons, level / K)


def feature_overlaps(weights: Tensor) -> Tensor:
    """Gram matrix of the features' planes, normalised: how far every two of them share directions.

        G_kl = ‖D_kᵀ D_l‖²_F / (‖D_kᵀ D_k‖_F ‖D_lᵀ D_l‖_F)

    It is 0 for planes that are orthogonal and 1 for equal ones; a translation of the residues leaves it as it is. Where
    cosine and sine are equally strong and orthogonal it is the mean squared cosine of the planes' principal angles.

    Args:
        weights: Shape (neurons, P).

    Returns:
        Shape (K, K), float64, between 0 and 1; NaN for a feature without power.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(5, dtype=torch.float64) / 5
        >>> apart = torch.stack([torch.cos(angle), torch.cos(2 * angle)])
        >>> feature_overlaps(apart).round(decimals=6), feature_overlaps(apart.sum(0, keepdim=True)).round(decimals=6)
        (tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64), tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64))
    """
    planes = feature_planes(weights)
    columns = planes.transpose(0, 1).flatten(1)  # (neurons, 2K)
    K = len(planes)
    cross = (columns.mT @ columns).unflatten(1, (K, 2)).unflatten(0, (K, 2)).square().sum((1, 3))
    size = cross.diagonal().sqrt()
    return (cross / (size[:, None] * size)).clamp(0, 1)


def interference(weights: Tensor) -> Tensor:
    """Overlap of two different features (`feature_overlaps`), on average over pairs, weighted by their powers.

        I = Σ_{k≠l} p_k p_l G_kl / Σ_{k≠l} p_k p_l,   p_k = ‖D_k‖²

    0 where every neuron carries one feature, about 2/n for n neurons of white noise, 1 where one neuron carries
    everything.

    Args:
        weights: Shape (neurons, P).

    Returns:
        A scalar, float64; NaN where fewer than two features have any power.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(5, dtype=torch.float64) / 5
        >>> a, b = torch.cos(angle), torch.cos(2 * angle)
        >>> interference(torch.stack([a + b, a - b])).round(decimals=6), interference(torch.stack([a + b, a]))
        (tensor(0., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    power = feature_planes(weights).square().sum((1, 2))
    pairs = power[:, None] * power
    pairs = pairs - pairs.diagonal().diag()
    return (pairs * feature_overlaps(weights).nan_to_num(0.0)).sum() / pairs.sum()


def effective_dimension(weights: Tensor) -> Tensor:
    """Participation ratio of the principal directions of the weights: how many dimensions they fill.

        d = (Σ_i σ_i²)² / Σ_i σ_i⁴

    over the singular values σ_i of the weights less each neuron's mean. 2m where m features of equal power have
    orthogonal round planes, at most min(neurons, P − 1).

    Args:
        weights: Shape (neurons, P).

    Returns:
        A scalar, float64; NaN where there are no neurons, or all weights of each are equal.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(5, dtype=torch.float64) / 5
        >>> effective_dimension(torch.stack([torch.cos(angle), torch.sin(angle), torch.cos(2 * angle)]))
        tensor(3., dtype=torch.float64)
    """
    weights = torch.as_tensor(weights).double()
    centred = weights - weights[..., :1]
    centred = centred - centred.mean(-1, keepdim=True)
    largest = centred.abs().amax() if centred.numel() else centred.new_tensor(torch.nan)
    if not largest > 0:
        return centred.new_tensor(torch.nan)
    squares = torch.linalg.svdvals(centred / largest).square()
    return squares.sum().square() / squares.square().sum()


def random_like(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The null model: Gaussian weights, each neuron's with the norm that it has, about a mean that it has.

    Args:
        weights: Shape (neurons, P).
        generator: Of the random numbers, on the CPU.

    Returns:
        The same shape, float64.

    Example:
        >>> drawn = random_like(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), torch.Generator().manual_seed(0))
        >>> drawn.mean(1), (drawn - drawn.mean(1, keepdim=True)).norm(dim=1).square().round(decimals=6)
        (tensor([2., 5.], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """
    weights = torch.as_tensor(weights).double()
    mean = weights.mean(-1, keepdim=True)
    noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    noise = noise - noise.mean(-1, keepdim=True)
    size = (weights - mean).norm(dim=-1, keepdim=True)
    return mean + noise * size / noise.norm(dim=-1, keepdim=True)
