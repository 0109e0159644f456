import numpy as np
import pytest

from lit_grok.measures.noise import MAX_CORRELATION, curve_noise, mean_scale


def autoregressive(correlation, length, seed):
    noise = np.random.default_rng(seed).standard_normal(length)
    for i in range(1, length):
        noise[i] = correlation * noise[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
    return noise


TREND = 1 + np.exp(-np.arange(1000) / 100) + np.exp(-(((np.arange(1000) - 500) / 100) ** 2))


@pytest.mark.parametrize("correlation", [0, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("multiplicative", [False, True])
def test_recovers_size_and_correlation(correlation, multiplicative):
    scale = 0.05 * (TREND if multiplicative else np.ones(1000))
    noises = [curve_noise(TREND + scale * autoregressive(correlation, 1000, seed)) for seed in range(30)]
    assert np.mean([noise.correlation for noise in noises]) == pytest.approx(correlation + 0.05, abs=0.06)
    ratio = np.mean([noise.scale for noise in noises], axis=0) / scale
    assert ratio.min() > 0.9
    assert np.median(ratio) == pytest.approx(1.1, abs=0.15)


def test_a_long_correlation_is_not_underestimated():
    noises = [curve_noise(autoregressive(0.9, 500, seed)) for seed in range(40)]
    assert np.mean([noise.correlation >= 0.88 for noise in noises]) > 0.85
    assert max(noise.correlation for noise in noises) == MAX_CORRELATION


def test_a_smooth_curve_has_no_noise():
    assert curve_noise(TREND).scale.max() < 1e-5
    assert curve_noise(np.ones(100)).scale.max() == 0


@pytest.mark.parametrize(
    "trend",
    [1 / (1 + np.arange(500)), np.exp(-(((np.arange(500) - 250) / 4) ** 2))],
    ids=["a steep beginning", "a narrow bump"],
)
def test_what_is_short_and_large_is_not_noise(trend):
    noise = curve_noise(trend + 0.01 * autoregressive(0, 500, 0))
    assert 0.008 < np.median(noise.scale) < 0.018
    assert noise.scale.max() < 0.08  # either changes by 1
    assert noise.correlation < 0.45


@pytest.mark.parametrize("count", [1, 2, 9, 33])
@pytest.mark.parametrize("correlation", [0, 0.5, 0.9])
def test_the_mean_of_neighbours_from_their_covariance(count, correlation):
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    assert mean_scale(count, correlation) == pytest.approx(np.sqrt(covariance.mean()))


@pytest.mark.parametrize("shape", [(9,), (20, 2), ()])
def test_a_curve_too_short_is_an_error(shape):
    with pytest.raises(ValueError, match="10 points in a row"):
        curve_noise(np.ones(shape))
