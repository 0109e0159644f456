"""Geometry of a training trajectory: the length and the direction of its steps under the Fisher information.

Snapshots θ_e of all parameters and the diagonals F(θ_e) of ``fisher_diagonal`` give the steps
s_e = θ_{e+1} − θ_e and ⟨a, b⟩ = Σ_i F_i a_i b_i (Eqs. 8 and 9 of arXiv 2502.01739). Without F the geometry is
Euclidean. Sums run in float64. A vector of length zero, which a collapsed network or an all-zero F brings
about, has no magnitude and no direction: NaN, never a silent 0.
"""

from math import ceil, floor
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lit_grok.measures.noise import SHORTEST_CURVE, curve_noise, mean_scale

_WIDTHS = (1, 3, 5, 7, 9, 13, 17, 25, 33, 49, 65)  # points of the moving means in which a bump is looked for


def step_magnitude(step: Tensor, fisher: Tensor | None = None, subspace: Tensor | None = None) -> Tensor:
    """Length of a step, |s_e| = √(Σ_i F_i(θ_e) s_i²).

    Args:
        step: s_e, shape (…, D).
        fisher: F(θ_e), shape (…, D); None is Euclidean.
        subspace: True for the parameters to count (``stiff_mask``), shape (D,) or (…, D); None for all.

    Returns:
        Shape (…,), float64; NaN where it is zero.

    Example:
        >>> step_magnitude(torch.tensor([3.0, 4.0]), fisher=torch.tensor([1.0, 0.0])).item()
        3.0
    """
    length = _inner(step, step, fisher, subspace).sqrt()
    return length.where(length > 0, torch.nan)


def step_cosine(
    step: Tensor, next_step: Tensor, fisher: Tensor | None = None, subspace: Tensor | None = None
) -> Tensor:
    """Cosine between consecutive steps, cos(s_e, s_{e+1}) under F(θ_{e+1}).

    Args:
        step: s_e, shape (…, D).
        next_step: s_{e+1}, shape (…, D).
        fisher: F(θ_{e+1}), at the point between the two steps, shape (…, D); None is Euclidean.
        subspace: True for the parameters to count, shape (D,) or (…, D); None for all.

    Returns:
        Shape (…,), float64, between −1 and 1: 1 for a straight path. NaN where a length is zero.

    Example:
        >>> round(step_cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).item(), 6)
        0.707107
    """
    inner = _inner(step, next_step, fisher, subspace)
    lengths = step_magnitude(step, fisher, subspace) * step_magnitude(next_step, fisher, subspace)
    return (inner / lengths).clamp(-1, 1)


def origin_cosine(
    step: Tensor, position: Tensor, fisher: Tensor | None = None, subspace: Tensor | None = None
) -> Tensor:
    """Cosine between a step and the way to the origin, cos(s_e, −θ_e) under F(θ_e).

    Args:
        step: s_e, shape (…, D).
        position: θ_e, where the step starts, shape (…, D).
        fisher: F(θ_e), shape (…, D); None is Euclidean.
        subspace: True for the parameters to count, shape (D,) or (…, D); None for all.

    Returns:
        Shape (…,), float64: +1 is pure weight decay, −1 pure growth. NaN where a length is zero.

    Example:
        >>> origin_cosine(torch.tensor([-0.1, 0.0]), torch.tensor([2.0, 0.0])).item()
        1.0
    """
    return -step_cosine(step, position, fisher, subspace)


def stiff_mask(fisher_final: Tensor, threshold: float = 0.1, quantile: float | None = None) -> Tensor:
    """Which parameters of the final network are stiff, F_i ≥ threshold; the others are sloppy.

    The 0.1 is the paper's, for the ``regression`` variant. Under ``classif_logits`` F → 0 as p → one-hot, so
    that a fixed threshold means something else in every run: a quantile does not.

    Args:
        fisher_final: F at the end of training, shape (…, D).
        threshold: Smallest F of a stiff parameter.
        quantile: If given, between 0 and 1, the threshold is this quantile of ``fisher_final`` instead.

    Returns:
        Boolean, shape (…, D). A parameter with F = 0 is sloppy under any threshold.

    Raises:
        ValueError: If the quantile is outside [0, 1].

    Example:
        >>> stiff_mask(torch.tensor([0.0, 0.05, 0.2, 3.0]))
        tensor([False, False,  True,  True])
        >>> stiff_mask(torch.tensor([0.0, 0.05, 0.2, 3.0]), quantile=0.75)
        tensor([False, False, False,  True])
    """
    if quantile is None:
        return (fisher_final >= threshold) & (fisher_final > 0)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile} is not between 0 and 1")
    return (fisher_final >= _quantile(fisher_final, quantile)) & (fisher_final > 0)


def grokking_period(epochs: ArrayLike, magnitude: ArrayLike, min_prominence: float = 0.01) -> tuple[float, float]:
    """Start and end of grokking: the two main sign changes of the discrete gradient of |s_e| (Appendix G.3).

    In grokking |s_e| falls, rises through the plateau (the "bump") and falls again: its gradient goes from −
    to + at the start and from + to − at the end. Noise changes the sign many more times. So the end is the
    most prominent maximum, and the start is the lowest point between it and the last larger |s_e| before it. The
    prominence of a maximum is its height above the higher of two minima, those between it and the nearest
    larger value (or the end of the curve) on either side. It is taken of |s_e| as it is, and not of its
    logarithm, in which the late fluctuations of tiny steps are the largest.

    A bump has to stand out from the noise. The moving mean m of w = 1, 3, 5, 7, 9, 13, … points of |s_e| (up to 65 and
    an eighth of the curve) has a standard deviation s_w, from the noise of the curve itself and its autocorrelation
    (`lit_grok.measures.noise`). Where a curve falls, its moving mean does, so that of two values of m the later is
    higher only if one of them is off. A bump is therefore a maximum with m − c_w s_w above m + c_w s_w at both of its
    minima, where c_w = c (1 + 1/w²), c is the normal quantile of 1 − .1 / E, and 1/w² allows for the heavier tails of
    means of few points. It is read off the least smoothed m that shows one, with at least w values of m before it, and
    its start is the last minimum that is within c_w s_w of the lowest. A curve without noise is read as it is.

    On constant, exponentially and algebraically falling curves of 100 to 1000 points with normal noise of 1 to 20 %,
    additive or multiplicative, white or AR(1) up to ρ = .9, fewer than 1 % have a bump. Of 500 points with white noise,
    a bump that rises and falls by five standard deviations is found with a probability of 95 % if it is at least 10
    points wide (full width at half maximum), on a slope as steep as its own 20 to 40, and with ρ = .5 20. Bumps no
    longer than the correlation time of the noise, and those of curves of 100 points, have to be higher. Noise that
    lasts longer than its neighbours show, such as a slow component under a fast one, is underestimated, and so
    are the largest values of noise with heavy tails.

    Args:
        epochs: Where the steps start, shape (E,), increasing.
        magnitude: |s_e|, shape (E,). NaN and infinite entries are left out.
        min_prominence: Smallest prominence of a bump, as a share of its height.

    Returns:
        (start, end), each one of ``epochs``; (nan, nan) where there is no bump: nothing stands out, |s_e| rises from
        the first step on, which is one sign change and not two, or the steps are fewer than 10, too few to
        tell noise.

    Raises:
        ValueError: If the two are not one-dimensional and of one length.

    Example:
        >>> epochs = np.arange(0, 20_000, 200)
        >>> bump = 4 * np.exp(-(((epochs - 6000) / 2200) ** 2))
        >>> grokking_period(epochs, 15 * np.exp(-epochs / 500) + 2 + bump)
        (2200.0, 6000.0)
        >>> grokking_period(epochs, 2 + 0.2 * np.random.default_rng(0).standard_normal(100))
        (nan, nan)
    """
    times, values = np.asarray(epochs, dtype=float), np.asarray(magnitude, dtype=float)
    if times.ndim != 1 or times.shape != values.shape:
        raise ValueError(f"epochs and magnitude are two curves (E,), got {times.shape} and {values.shape}")
    finite = np.isfinite(values)
    times, values = times[finite], values[finite]
    if len(values) < SHORTEST_CURVE:
        return np.nan, np.nan
    noise = curve_noise(values)
    quantile = NormalDist().inv_cdf(1 - 0.1 / len(values))
    for width in _WIDTHS:
        if width > max(1, len(values) // 8):
            break
        mean, scale = (np.convolve(curve, np.full(width, 1 / width), "valid") for curve in (values, noise.scale))
        band = quantile * (1 + width**-2) * mean_scale(width, noise.correlation) * scale
        if bump := _main_bump(mean, band, width, min_prominence):
            start, end = times[np.array(bump) + width // 2]
            return float(start), float(end)
    return np.nan, np.nan


def _main_bump(mean: np.ndarray, band: np.ndarray, first_base: int, min_prominence: float) -> tuple[int, int] | None:
    """Start and end of the most prominent maximum that the band around the curve does not explain."""
    lower, upper = mean - band, mean + band
    lowest_before, lowest_after = np.minimum.accumulate(upper), np.minimum.accumulate(upper[::-1])[::-1]
    middle = slice(1, -1)
    maxima = (mean[middle] > mean[:-2]) & (mean[middle] >= mean[2:])
    clear = (lower[middle] > lowest_before[:-2]) & (lower[middle] > lowest_after[2:])
    best, bump = 0.0, None
    for peak in (np.flatnonzero(maxima & clear) + 1).tolist():
        higher_before = np.flatnonzero(mean[:peak] > mean[peak])
        higher_after = np.flatnonzero(mean[peak:] > mean[peak])
        first = higher_before[-1] if len(higher_before) else 0
        last = peak + higher_after[0] if len(higher_after) else len(mean)
        base = peak - 1 - int(np.argmin(mean[first:peak][::-1]))
        foot = peak + int(np.argmin(mean[peak:last]))
        prominence = mean[peak] - max(mean[base], mean[foot])
        stands_out = lower[peak] > max(upper[base], upper[foot]) and prominence >= min_prominence * mean[peak]
        if base >= first_base and stands_out and prominence > best:
            rise = np.arange(base, peak)
            low = (mean[rise] <= mean[rise - 1]) & (mean[rise] < mean[rise + 1]) & (mean[rise] <= upper[base])
            best, bump = prominence, (int(rise[low].max(initial=base)), peak)
    return bump


def _quantile(values: Tensor, q: float) -> Tensor:
    """Linear quantile along the last dimension, which ``torch.quantile`` refuses above 2²⁴ values, shape (…, 1)."""
    rank = q * (values.shape[-1] - 1)
    below, above = (values.kthvalue(k + 1, -1, keepdim=True).values.double() for k in (floor(rank), ceil(rank)))
    undefined = values.isnan().any(-1, keepdim=True)
    return below.lerp(above, rank - floor(rank)).masked_fill(undefined, torch.nan)


def _inner(a: Tensor, b: Tensor, fisher: Tensor | None, subspace: Tensor | None) -> Tensor:
    product = a.double() * b.double()
    if fisher is not None:
        product = product * fisher.double()
    if subspace is not None:
        product = product.where(subspace, 0)
    return product.sum(-1)
