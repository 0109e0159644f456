import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.fourier import dominant_frequency, inverse_participation_ratio, share_by_frequency

ORDERS = [2, 4, 0.5]


def cosine(P, k, phase):
    return torch.cos(2 * torch.pi * k * torch.arange(P, dtype=torch.float64) / P + phase)


def slow_ipr(weights, r):
    power = np.abs(scipy.fft.fft(weights)) ** 2
    return (power**r).sum() / power.sum() ** r


@settings(deadline=None)
@given(k=st.integers(1, 56), phase=st.floats(-10, 10))
def test_a_cosine_of_any_phase_has_ipr_one_half(k, phase):
    weights = cosine(113, k, phase)
    torch.testing.assert_close(inverse_participation_ratio(weights).item(), 0.5, atol=1e-12, rtol=0)
    assert dominant_frequency(weights) == k


@pytest.mark.parametrize("r", ORDERS)
def test_m_cosines_of_equal_amplitude_share_2m_modes(r):
    weights = sum(cosine(113, k, k) for k in (3, 11, 40))
    torch.testing.assert_close(inverse_participation_ratio(weights, r).item(), 6.0 ** (1 - r), atol=1e-10, rtol=0)


@pytest.mark.parametrize("r", ORDERS)
def test_constant_is_one_mode_and_a_spike_all_of_them(r):
    spike = torch.zeros(2, 113)
    spike[0] = -0.25
    spike[1, 7] = 3
    torch.testing.assert_close(
        inverse_participation_ratio(spike, r),
        torch.tensor([1.0, 113.0 ** (1 - r)], dtype=torch.float64),
        atol=1e-10,
        rtol=0,
    )


def test_white_noise_is_about_two_over_p():
    noise = torch.randn(4000, 113, generator=torch.Generator().manual_seed(0))
    assert inverse_participation_ratio(noise).mean() * 113 / 2 == pytest.approx(1, abs=0.02)


def test_order_one_is_always_one():
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse_participation_ratio(weights, 1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("r", ORDERS)
@pytest.mark.parametrize("P", [2, 7, 12, 113])
def test_equals_the_formula_written_out(r, P):
    weights = torch.randn(3, 2, P, dtype=torch.float64, generator=torch.Generator().manual_seed(P))
    slow = [[slow_ipr(row.numpy(), r) for row in matrix] for matrix in weights]
    torch.testing.assert_close(inverse_participation_ratio(weights, r), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize("r", ORDERS)
@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
def test_scale_does_not_matter_even_where_squares_underflow(r, scale):
    weights = torch.tensor([2.0, -1.0, 4.0, 0.0, 1.0, 3.0])
    tiny = (weights * 2.0 ** round(np.log2(scale))).float()
    torch.testing.assert_close(inverse_participation_ratio(tiny, r), inverse_participation_ratio(weights, r))


def test_dead_neurons_are_nan_and_minus_one_among_live_ones():
    weights = torch.stack([torch.zeros(10), torch.ones(10), -torch.zeros(10)])
    assert inverse_participation_ratio(weights).isnan().tolist() == [True, False, True]
    assert dominant_frequency(weights).tolist() == [-1, 0, -1]


@pytest.mark.parametrize("P", [8, 9])
def test_dominant_frequency_reaches_from_zero_to_half(P):
    frequencies = [dominant_frequency(cosine(P, k, 0)).item() for k in range(P)]
    assert frequencies == [min(k, P - k) for k in range(P)]


def test_the_stronger_mode_dominates():
    assert dominant_frequency(cosine(113, 9, 1) + 0.9 * cosine(113, 4, 2)) == 9


def test_numpy_arrays_are_accepted():
    assert dominant_frequency(np.ones((2, 5))).tolist() == [0, 0]


@pytest.mark.parametrize("r", [0, -1])
def test_an_order_that_is_not_positive_is_refused(r):
    with pytest.raises(ValueError, match="order"):
        inverse_participation_ratio(torch.ones(3), r)


def test_share_by_frequency_counts_and_weighs():
    frequencies = torch.tensor([[0, 2, 2, -1], [1, 1, 1, 1]])
    shares = share_by_frequency(frequencies, torch.ones(2, 4), P=5)
    torch.testing.assert_close(shares, torch.tensor([[1 / 3, 0, 2 / 3], [0, 1, 0]], dtype=torch.float64))
    weighed = share_by_frequency(frequencies[0], torch.tensor([6.0, 1.0, 1.0, 100.0]), P=5)
    torch.testing.assert_close(weighed, torch.tensor([0.75, 0, 0.25], dtype=torch.float64))


def test_share_of_nothing_is_nan():
    assert share_by_frequency(torch.tensor([-1, -1]), torch.ones(2), P=5).isnan().all()
