import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.correlation import dominant_observable_shares, pearson, weighted_correlation


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@settings(deadline=None)
@given(slope=st.floats(1e-6, 1e6), offset=st.floats(-1e3, 1e3), sign=st.sampled_from([-1, 1]))
def test_a_linear_neuron_follows_its_own_observable(slope, offset, sign):
    observable = torch.linspace(-2, 1, 50, dtype=torch.float64) ** 3
    neuron = sign * slope * (observable + offset)
    torch.testing.assert_close(pearson(neuron[:, None], observable).item(), float(sign), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_scipy(dtype, generator):
    observable = torch.randn(40, dtype=dtype, generator=generator)
    activations = torch.randn(40, 6, dtype=dtype, generator=generator) + observable[:, None]
    slow = [scipy.stats.pearsonr(a.double().numpy(), observable.double().numpy()).statistic for a in activations.T]
    torch.testing.assert_close(pearson(activations, observable), torch.tensor(slow, dtype=torch.float64))


def test_leading_dimensions_are_a_loop(generator):
    activations = torch.randn(2, 3, 10, 4, generator=generator)
    observable = torch.randn(2, 3, 10, generator=generator)
    stacked = pearson(activations, observable), weighted_correlation(activations, observable)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(stacked[0][i, j], pearson(activations[i, j], observable[i, j]))
            torch.testing.assert_close(stacked[1][i, j], weighted_correlation(activations[i, j], observable[i, j]))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-40])
def test_a_constant_neuron_has_no_correlation(value, generator):
    # 0.1 is the hard one: the mean of many equal numbers is not always that number.
    activations = torch.full((1009, 2), value)
    activations[:, 1] = torch.randn(1009, generator=generator)
    r = pearson(activations, torch.randn(1009, generator=generator))
    assert r.isnan().tolist() == [True, False]


def test_a_constant_observable_has_no_correlation(generator):
    assert pearson(torch.randn(50, 3, generator=generator), torch.full((50,), 0.1)).isnan().all()


def test_a_small_signal_on_a_large_offset_survives_in_single_precision():
    observable = torch.arange(64.0)
    neuron = 1e6 + observable / 16  # each entry is exact in float32; its square is not
    assert pearson(neuron[:, None], observable).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**120])
def test_scale_does_not_matter(scale, generator):
    observable = torch.randn(30, generator=generator)
    activations = torch.randint(-8, 8, (30, 4), generator=generator).float()
    torch.testing.assert_close(pearson(activations * scale, observable), pearson(activations, observable))


def test_weighted_correlation_written_out(generator):
    activations = torch.randn(30, 5, dtype=torch.float64, generator=generator)
    observable = torch.randn(30, dtype=torch.float64, generator=generator)
    volume = [sum(abs(a.item()) for a in activations[:, n]) for n in range(5)]
    r = [scipy.stats.pearsonr(activations[:, n].numpy(), observable.numpy()).statistic for n in range(5)]
    expected = sum(v / sum(volume) * abs(c) for v, c in zip(volume, r, strict=True))
    assert weighted_correlation(activations, observable).item() == pytest.approx(expected, abs=1e-14)


def test_constant_neurons_do_not_dilute_the_layer(generator):
    observable = torch.randn(20, generator=generator)
    activations = torch.stack([observable, torch.full((20,), 1e4)], dim=-1)
    assert weighted_correlation(activations, observable).item() == pytest.approx(1)
    assert weighted_correlation(activations[:, 1:], observable).isnan()


def test_shares_by_hand():
    energy = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    magnetisation = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    # |r| with the energy: 2/√5, 1/√5, 0, none; volumes 8 (= 3 + 1 + 1 + 3), 8, 12, 28.
    activations = torch.stack(
        [2 * energy + magnetisation, energy - 2 * magnetisation, -3 * magnetisation, torch.full((4,), 7.0)],
        dim=-1,
    )
    shares = dominant_observable_shares(activations, torch.stack([energy, magnetisation]))
    torch.testing.assert_close(shares.neurons, torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(shares.activation, torch.tensor([8 / 28, 20 / 28], dtype=torch.float64))


def test_shares_of_a_stack_and_of_a_dead_layer(generator):
    activations, observables = (
        torch.randn(3, 12, 9, generator=generator),
        torch.randn(3, 2, 12, generator=generator),
    )
    activations[2] = 1.0
    neurons, activation = dominant_observable_shares(activations, observables)
    alone = dominant_observable_shares(activations[1], observables[1])
    torch.testing.assert_close(neurons[1], alone.neurons)
    torch.testing.assert_close(activation[1], alone.activation)
    torch.testing.assert_close(neurons[:2].sum(-1), torch.ones(2, dtype=torch.float64))
    assert neurons[2].isnan().all()
    assert activation[2].isnan().all()


def test_a_constant_observable_wins_no_neuron(generator):
    activations = torch.randn(12, 5, generator=generator)
    observables = torch.stack([torch.ones(12), torch.randn(12, generator=generator)])
    assert dominant_observable_shares(activations, observables).neurons.tolist() == [0, 1]
