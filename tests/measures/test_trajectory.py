import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.trajectory import (
    grokking_period,
    origin_cosine,
    step_cosine,
    step_magnitude,
    stiff_mask,
)


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fishers(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_formulas():
    s, t, fisher = vectors(7), vectors(7, seed=2), fishers(7)
    metric = fisher.double().diag()

    def inner(a, b):
        return (a.double() @ metric @ b.double()).item()

    assert step_magnitude(s, fisher).item() == pytest.approx(math.sqrt(inner(s, s)))
    expected = inner(s, t) / math.sqrt(inner(s, s) * inner(t, t))
    assert step_cosine(s, t, fisher).item() == pytest.approx(expected)
    assert origin_cosine(s, t, fisher).item() == pytest.approx(-expected)
    assert step_magnitude(s).item() == pytest.approx(s.double().norm().item())
    euclidean = torch.nn.functional.cosine_similarity(s.double(), t.double(), dim=0)
    assert step_cosine(s, t).item() == pytest.approx(euclidean.item())


def test_weight_decay_and_growth_are_plus_and_minus_one():
    position, fisher = vectors(50), fishers(50)
    assert origin_cosine(-0.01 * position, position, fisher).item() == pytest.approx(1)
    assert origin_cosine(0.01 * position, position, fisher).item() == pytest.approx(-1)


def test_leading_dimensions():
    s, t, fisher = vectors(4, 3, 9), vectors(4, 3, 9, seed=2), fishers(4, 3, 9)
    for values in (step_magnitude(s, fisher), step_cosine(s, t, fisher), origin_cosine(s, t, fisher)):
        assert values.shape == (4, 3)
        assert values.dtype == torch.float64
    assert step_cosine(s, t, fisher)[2, 1] == step_cosine(s[2, 1], t[2, 1], fisher[2, 1])


def test_subspaces_split_the_squared_magnitude():
    s, fisher = vectors(20), fishers(20)
    stiff = stiff_mask(fisher, threshold=0.5)
    assert 0 < stiff.sum() < 20
    parts = step_magnitude(s, fisher, stiff) ** 2 + step_magnitude(s, fisher, ~stiff) ** 2
    assert parts.item() == pytest.approx((step_magnitude(s, fisher) ** 2).item())
    assert step_cosine(s, 2 * s, fisher, stiff).item() == pytest.approx(1)
    expected = step_cosine(s[stiff], vectors(20, seed=3)[stiff], fisher[stiff])
    assert step_cosine(s, vectors(20, seed=3), fisher, stiff).item() == pytest.approx(expected.item())


def test_what_is_outside_the_subspace_does_not_matter():
    s = torch.tensor([1.0, torch.nan, torch.inf])
    assert step_magnitude(s, subspace=torch.tensor([True, False, False])).item() == 1


@pytest.mark.parametrize(
    ("step", "fisher", "subspace"),
    [
        (torch.zeros(3), None, None),
        (torch.ones(3), torch.zeros(3), None),
        (torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.bool)),
    ],
)
def test_degenerate_steps_are_nan(step, fisher, subspace):
    other = torch.ones(3)
    assert step_magnitude(step, fisher, subspace).isnan()
    assert step_cosine(step, other, fisher, subspace).isnan()
    assert step_cosine(other, step, fisher, subspace).isnan()
    assert origin_cosine(step, other, fisher, subspace).isnan()


def test_only_the_degenerate_replica_is_nan():
    steps = torch.stack([torch.zeros(3), torch.ones(3)])
    assert step_cosine(steps, torch.ones(2, 3)).isnan().tolist() == [True, False]


def test_tiny_steps_keep_their_direction():
    """Float32 would underflow: F s² = 1e-60."""
    s, fisher = torch.full((4,), 1e-20), torch.full((4,), 1e-20)
    assert step_magnitude(s, fisher).item() == pytest.approx(2e-30)
    assert step_cosine(s, s, fisher).item() == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-8, 8), st.floats(-8, 8))
def test_cosines_are_bounded_and_scale_free(seed, a, b):
    s, t, fisher = vectors(5, seed=seed), vectors(5, seed=seed + 1), fishers(5, seed=seed)
    cosine = step_cosine(s, t, fisher)
    assert -1 <= cosine <= 1
    assert step_cosine(10**a * s, 10**b * t, fisher).item() == pytest.approx(cosine.item(), abs=1e-5)
    assert step_cosine(t, s, fisher).item() == pytest.approx(cosine.item())


def test_stiff_mask():
    fisher = torch.tensor([[0.0, 0.05, 0.1, 3.0], [0.0, 0.0, 0.0, 0.0]])
    fisher[0, 2] = 0.1
    assert stiff_mask(fisher, threshold=float(fisher[0, 2])).tolist() == [
        [False, False, True, True],
        [False] * 4,
    ]
    assert stiff_mask(fisher, threshold=0).tolist() == [[False, True, True, True], [False] * 4]
    assert stiff_mask(fisher, quantile=0.5).tolist() == [[False, False, True, True], [False] * 4]
    assert stiff_mask(fishers(1000), quantile=0.9).sum() == 100
    with pytest.raises(ValueError, match="between 0 and 1"):
        stiff_mask(fisher, quantile=50)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.7, 3.0, math.nan]), min_size=1, max_size=12), st.floats(0, 1))
def test_the_quantile_is_that_of_torch(values, q):
    fisher = torch.tensor([values, values[::-1], [1.0] * len(values)])
    threshold = fisher.double().quantile(q, dim=-1, keepdim=True)
    assert torch.equal(stiff_mask(fisher, quantile=q), (fisher >= threshold) & (fisher > 0))


def test_a_quantile_of_more_values_than_torch_quantile_takes():
    fisher = torch.zeros(2**24 + 1)
    fisher[::4] = torch.arange(1.0, 2**22 + 2)
    assert stiff_mask(fisher, quantile=1 - 2**-4).sum() == 2**20 + 1  # the threshold is a value: rank 15 · 2²⁰


def grokking_curve(epochs):
    """Falls, rises to a bump at 6000 from a low at 2000, falls to a plateau; as in Fig. 32."""
    x = epochs / 1000
    return 15 * np.exp(-x / 0.5) + 2 + 4 * np.exp(-(((x - 6) / 2.2) ** 2)) - 1.9 / (1 + np.exp(10 - x))


EPOCHS = np.arange(0, 40_000, 200)


def test_period_of_a_bump():
    start, end = grokking_period(EPOCHS, grokking_curve(EPOCHS))
    gradient = np.sign(np.diff(grokking_curve(EPOCHS)))
    low, high = EPOCHS[1:-1][np.diff(gradient) > 0], EPOCHS[1:-1][np.diff(gradient) < 0]
    assert (start, end) == (low[0], high[0])
    assert start < end


@pytest.mark.parametrize("seed", range(5))
def test_period_survives_noise(seed):
    clean = grokking_curve(EPOCHS)
    noisy = clean * (1 + 0.02 * np.random.default_rng(seed).standard_normal(len(clean)))
    assert grokking_period(EPOCHS, noisy) == pytest.approx(grokking_period(EPOCHS, clean), abs=600)


def test_late_fluctuations_of_tiny_steps_are_not_the_bump():
    curve = grokking_curve(EPOCHS)
    curve[-30:] = 0.1 + 0.08 * (-1.0) ** np.arange(30)
    assert grokking_period(EPOCHS, curve) == grokking_period(EPOCHS, grokking_curve(EPOCHS))


def test_a_late_spike_of_a_run_without_grokking_is_not_a_bump():
    """The last |s_e| of an Ising run at init_scale 1: it rises once, and then there is noise."""
    curve = [0.037, 0.053, 0.087, 0.1, 0.104, 0.096, 0.07, 0.05, 0.04, 0.0313, 0.0282, 0.0346, 0.0341, 0.0252]
    assert np.isnan(grokking_period(range(14), curve)).all()


def test_undefined_magnitudes_are_left_out():
    curve = grokking_curve(EPOCHS)
    curve[[3, 50, 120]] = np.nan
    assert grokking_period(EPOCHS, curve) == grokking_period(EPOCHS, grokking_curve(EPOCHS))


@pytest.mark.parametrize(
    "curve",
    [
        np.exp(-np.arange(50) / 10),
        np.exp(np.arange(50) / 10),
        np.exp(-(((np.arange(50) - 20) / 5.0) ** 2)),
        np.ones(50),
        np.full(50, np.nan),
        np.exp(-np.arange(50) / 10) * (1 + 1e-3 * (-1.0) ** np.arange(50)) + 1,
        np.ones(1),
        np.ones(0),
    ],
    ids=[
        "falling",
        "rising",
        "one sign change",
        "constant",
        "undefined",
        "small noise",
        "one step",
        "no step",
    ],
)
def test_no_bump_is_nan(curve):
    assert np.isnan(grokking_period(np.arange(len(curve)), curve)).all()


def test_a_flat_top_counts_once():
    curve = np.interp(np.arange(100), [0, 30, 50, 60, 80, 99], [9, 2, 5, 5, 1, 1])
    assert grokking_period(range(100), curve) == (30, 50)


def test_a_start_within_the_first_points():
    curve = np.interp(np.arange(60), [0, 1, 21, 40, 59], [9, 2, 5, 1, 0.5])
    assert grokking_period(range(60), curve) == (1, 21)


def test_few_steps_tell_no_bump_from_noise():
    assert np.isnan(grokking_period(range(7), [9, 2, 5, 5, 5, 1, 1])).all()


def autoregressive(correlation, curves, length, seed=0):
    """Rows of unit variance, x_i = ρ x_{i−1} + √(1 − ρ²) ε_i."""
    noise = np.random.default_rng(seed).standard_normal((curves, length))
    for i in range(1, length):
        noise[:, i] = correlation * noise[:, i - 1] + (1 - correlation**2) ** 0.5 * noise[:, i]
    return noise


FALLING = {
    "constant": lambda t, length: np.ones(length),
    "exponential": lambda t, length: np.exp(-t / (0.3 * length)),
    "exponential to a plateau": lambda t, length: 1 + np.exp(-t / (0.1 * length)),
    "power law": lambda t, length: 1 / (1 + t),
}


@pytest.mark.parametrize("falling", FALLING)
@pytest.mark.parametrize("correlation", [0, 0.5, 0.9])
@pytest.mark.parametrize("length", [100, 500, 1000])
def test_noise_has_no_bump(falling, correlation, length):
    clean = FALLING[falling](np.arange(length), length)
    noise = autoregressive(correlation, 100, length)
    bumps = [
        np.isfinite(grokking_period(range(length), curve)).any()
        for sigma in (0.01, 0.2)
        for curve in (*(clean * (1 + sigma * noise)), *(clean + sigma * noise))
    ]
    assert np.mean(bumps) <= 0.01


@pytest.mark.parametrize("falling", ["constant", "exponential to a plateau"])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("width", [10, 30, 60])
def test_a_bump_of_five_times_the_noise_is_found_where_it_is(falling, sigma, width):
    times = np.arange(500)
    bump = 5 * sigma * np.exp(-4 * math.log(2) * ((times - 300) / width) ** 2)
    curves = FALLING[falling](times, 500) + bump + sigma * autoregressive(0, 100, 500)
    start, end = np.transpose([grokking_period(times, curve) for curve in curves])
    assert np.mean(abs(end - 300) <= width / 2) >= 0.95
    assert abs(np.nanmedian(start) - (300 - width)) <= max(width / 2, 8)


def test_only_the_noise_decides_not_the_scale_of_the_curve():
    times = np.arange(300)
    curve = 1 + np.exp(-times / 20) + np.exp(-(((times - 150) / 20) ** 2)) + 0.1 * autoregressive(0, 1, 300)[0]
    start, end = grokking_period(times, curve)
    assert 100 <= start < end <= 170
    for scale in (1e-30, 1e30):
        assert grokking_period(times, scale * curve) == (start, end)
    assert grokking_period(10 * times, curve) == (10 * start, 10 * end)


def test_curves_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="got"):
        grokking_period([1, 2, 3], [1, 2])
