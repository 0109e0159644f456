"""How noisy a measured curve is, estimated from the curve itself: the size of its noise and how long it lasts.

The curve is a smooth trend plus x_i, an AR(1) process x_i = ρ x_{i−1} + ε_i of standard deviation σ_i, which
may be the same along the curve (additive noise) or proportional to it (multiplicative). Medians throughout keep a
bump or a steep beginning, which are part of the trend, out of both estimates.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import median_filter

SHORTEST_CURVE = 10
# A correlation this long looks like a trend: no larger one is told apart, and none is reported.
MAX_CORRELATION = 0.93

_CORRELATIONS = np.linspace(-0.5, MAX_CORRELATION, 144)
_WINDOW = 51  # points of a local parabola: several correlation times of ρ = .9
_LOCAL = 151  # points over which a size is constant or proportional to the curve
_DIFFERENCE = np.array([1.0, -4, 6, -4, 1])
_TINY = np.finfo(float).tiny


class CurveNoise(NamedTuple):
    """Standard deviation of the noise at every point, shape (E,), and its correlation ρ between neighbours."""

    scale: np.ndarray
    correlation: float


def curve_noise(curve: ArrayLike) -> CurveNoise:
    """Noise of a curve, estimated to be rather too large than too small.

    - ρ: lag-one autocorrelation of the residuals of a moving parabola of 51 points (a third of a shorter curve), each
      divided by their local size and clipped at 1.5, plus 1.5 of its standard errors n^(−1/2), and read back through
      the autocorrelation that the same residuals of an AR(1) process have. At most .93.
    - σ_i: median of |y_{i−2} − 4 y_{i−1} + 6 y_i − 4 y_{i+1} + y_{i+2}| over the 151 points around i, divided by what
      it is for an AR(1) process of σ = 1 and this ρ. These fourth differences hardly see a smooth trend: they tell
      a curve without noise from one whose noise is strongly correlated. Of the two medians, that of the
      differences themselves (additive noise) and that of their ratio to the curve (multiplicative), the larger counts.

    Args:
        curve: Finite numbers at equal distances, shape (E,).

    Returns:
        σ_i, shape (E,), and ρ.

    Raises:
        ValueError: If the curve is not one-dimensional or shorter than 10 points.

    Example:
        >>> curve = np.exp(-np.arange(500) / 150) + 0.05 * np.random.default_rng(0).standard_normal(500)
        >>> noise = curve_noise(curve)
        >>> round(float(np.median(noise.scale)), 2), round(noise.correlation, 2)
        (0.06, 0.08)
    """
    values = np.asarray(curve, dtype=float)
    if values.ndim != 1 or len(values) < SHORTEST_CURVE:
        raise ValueError(f"the noise of a curve needs {SHORTEST_CURVE} points in a row, got shape {values.shape}")
    level = median_filter(values, 25, mode="nearest")

    weights, autocorrelations = _residual(min(_WINDOW, max(len(values) // 3 // 2 * 2 + 1, 5)))
    margin = len(weights) // 2
    residuals = np.convolve(values, weights, "valid")
    size = _local_size(residuals, level[margin:-margin])
    clipped = np.clip(residuals / np.maximum(size, _TINY), -1.5, 1.5)
    autocorrelation = clipped[1:] @ clipped[:-1] / max(clipped @ clipped, _TINY)
    upper = autocorrelation + 1.5 / len(clipped) ** 0.5
    correlation = float(np.interp(upper, autocorrelations, _CORRELATIONS))

    differences = np.convolve(values, _DIFFERENCE, "valid")
    scale = np.pad(_local_size(differences, level[2:-2]), 2, mode="edge")
    return CurveNoise(scale / _autocovariance(_DIFFERENCE, correlation, 0) ** 0.5, correlation)


def mean_scale(count: int, correlation: float) -> float:
    """Standard deviation of the mean of n consecutive values of an AR(1) process of standard deviation 1.

    √((1 + 2 Σ_{k=1}^{n−1} (1 − k/n) ρ^k) / n).

    Args:
        count: n.
        correlation: ρ.

    Returns:
        1 / √n for ρ = 0, and 1 in the limit ρ → 1.

    Example:
        >>> mean_scale(4, 0), round(mean_scale(4, 0.5), 4)
        (0.5, 0.7181)
    """
    return _autocovariance(np.full(count, 1 / count), correlation, 0) ** 0.5


def _autocovariance(weights: np.ndarray, correlation: float, lag: int) -> float:
    """Autocovariance of a weighted moving sum of an AR(1) process of standard deviation 1."""
    shifts = np.arange(1 - len(weights), len(weights))
    return float(np.correlate(weights, weights, "full") @ float(correlation) ** np.abs(shifts + lag))


@lru_cache
def _residual(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the residual at the middle of a fitted parabola, and its lag-one autocorrelation at _CORRELATIONS."""
    middle = window // 2
    powers = np.vander(np.arange(-middle, middle + 1.0), 3)
    weights = (np.eye(window) - powers @ np.linalg.pinv(powers))[middle]
    autocorrelations = [
        _autocovariance(weights, correlation, 1) / _autocovariance(weights, correlation, 0)
        for correlation in _CORRELATIONS
    ]
    return weights, np.array(autocorrelations)


def _local_size(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Standard deviation around each point, from medians, of values that may be proportional to the level."""
    window = min(_LOCAL, (len(values) - 1) // 2 * 2 + 1)
    additive = median_filter(np.abs(values), window, mode="reflect")
    level = np.maximum(np.maximum(level, additive), _TINY)
    multiplicative = level * median_filter(np.abs(values) / level, window, mode="reflect")
    return np.maximum(additive, multiplicative) / 0.6745  # the median of |x|, x standard normal
