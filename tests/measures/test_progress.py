import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import nn

from lit_grok.measures import weights
from lit_grok.measures.progress import (
    NEURONS_AT_ONCE,
    excluded_logits,
    excluded_loss,
    fourier_basis,
    fourier_gini,
    key_frequencies,
    restricted_logits,
    restricted_loss,
    sum_of_squares,
)

PRIMES_AND_OTHERS = [2, 3, 6, 7]


def pairs(P):
    return torch.cartesian_prod(torch.arange(P), torch.arange(P)).T


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trained(P, frequencies, sign=1):
    """Logits Σ_k cos(w_k(a ± b − c)), and the classes that they are highest for."""
    a, b = pairs(P)
    s = (a + sign * b) % P
    angle = 2 * torch.pi * (s.unsqueeze(1) - torch.arange(P)).double() / P
    return sum((k * angle).cos() for k in frequencies), s


def wave(P, k, sign=1):
    """Columns cos(w_k(a ± b)) and sin(w_k(a ± b)) over the pairs, shape (P², 2)."""
    angles = [2 * np.pi * k * (a + sign * b) / P for a in range(P) for b in range(P)]
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def projected(directions, values):
    """Least squares; directions that are zero but for rounding do not count."""
    return directions @ np.linalg.lstsq(directions, values, rcond=1e-9)[0]


def slow_share(P, k, neuron):
    x = np.arange(P)
    own = np.stack([np.ones(P), np.cos(2 * np.pi * k * x / P), np.sin(2 * np.pi * k * x / P)])
    functions = np.stack([np.outer(f, g).ravel() for f in own for g in own], axis=1)
    centred = neuron - neuron.mean()
    return (projected(functions, centred) ** 2).sum() / (centred**2).sum()


@pytest.mark.parametrize("P", [1, 2, 3, 8, 97, 379])
def test_basis_is_orthonormal_and_each_row_its_function(P):
    basis = fourier_basis(P)
    torch.testing.assert_close(basis @ basis.T, torch.eye(P, dtype=torch.float64), atol=1e-13, rtol=0)
    for row in range(P):
        k = (row + 1) // 2
        f = math.cos if row % 2 or row == 0 else math.sin
        values = torch.tensor([f(2 * math.pi * k * x / P) for x in range(P)], dtype=torch.float64)
        torch.testing.assert_close(basis[row], values / values.norm(), atol=1e-11, rtol=0)


@pytest.mark.parametrize("P", PRIMES_AND_OTHERS)
def test_key_frequencies_are_those_of_least_squares(P):
    activations = noise(P * P, 6, seed=P).exp()
    shares = [[slow_share(P, k, neuron) for k in range(1, P // 2 + 1)] for neuron in activations.T.numpy()]
    found = key_frequencies(activations)
    assert found.frequencies.tolist() == [1 + int(np.argmax(s)) for s in shares]
    assert found.explained.numpy() == pytest.approx(np.max(shares, axis=1), abs=1e-12)
    assert found.keys.tolist() == sorted(set(found.frequencies.tolist()))


@pytest.mark.parametrize("P", [3, 11, 31])
def test_neurons_of_one_frequency_each_up_to_the_last(P):
    a, b = pairs(P)
    K = (P - 1) // 2
    w = 2 * torch.pi * torch.arange(1, K + 1, dtype=torch.float64) / P
    one_operand = (w * a.unsqueeze(1) + 1).cos() - 4
    product = (w * a.unsqueeze(1)).cos() * (w * b.unsqueeze(1) + 0.3).cos() + (w * b.unsqueeze(1)).sin()
    for activations in (one_operand, product):
        found = key_frequencies(activations)
        assert found.keys.tolist() == found.frequencies.tolist() == list(range(1, K + 1))
        torch.testing.assert_close(found.explained, torch.ones(K, dtype=torch.float64))


def test_a_relu_of_one_frequency_is_mostly_of_that_frequency():
    a, b = pairs(31)
    w = 2 * torch.pi * 7 / 31
    found = key_frequencies(((w * a).cos() + (w * b).cos()).relu().unsqueeze(1))
    assert found.frequencies.item() == 7
    assert 0.8 < found.explained.item() < 1


def test_more_neurons_than_fit_at_once_and_constant_ones_among_them():
    activations = noise(25, 2 * NEURONS_AT_ONCE + 1, dtype=torch.float32)
    activations[:, 1], activations[:, -1] = 0.0, 0.1
    found = key_frequencies(activations)
    single = [key_frequencies(activations[:, [n]]) for n in range(activations.shape[1])]
    assert found.frequencies.tolist() == [s.frequencies.item() for s in single]
    torch.testing.assert_close(found.explained, torch.cat([s.explained for s in single]), equal_nan=True)
    constant = [n for n, k in enumerate(found.frequencies.tolist()) if k == -1]
    assert constant == found.explained.isnan().nonzero().flatten().tolist() == [1, 2 * NEURONS_AT_ONCE]
    assert found.keys.tolist() == [1, 2]


def test_nothing_but_constant_neurons_has_no_key():
    # The mean of 961 tenths is not a tenth: what rounding leaves must not look like a neuron.
    found = key_frequencies(torch.full((961, 2), 0.1, dtype=torch.float64))
    assert (found.keys.tolist(), found.frequencies.tolist()) == ([], [-1, -1])


def test_noise_explains_no_more_than_the_best_of_chance():
    # Each frequency has 8 of the P² − 1 dimensions, hence a Beta(4, (P² − 9) / 2) share; the neuron has the largest.
    P = 31
    share = scipy.stats.beta(4, (P * P - 9) / 2)
    expected = scipy.integrate.quad(lambda x: 1 - share.cdf(x) ** (P // 2), 0, 1, points=[0.01, 0.02, 0.05])[0]
    found = key_frequencies(noise(P * P, 1000))
    assert found.explained.mean().item() == pytest.approx(expected, rel=0.03)
    assert found.keys.tolist() == list(range(1, 16))


@pytest.mark.parametrize("n_rows", [0, 1, 8, 10])
def test_rows_that_are_not_all_pairs_are_refused(n_rows):
    for function in (key_frequencies, lambda x: restricted_logits(x, 1), lambda x: excluded_logits(x, 1)):
        with pytest.raises(ValueError, match="rows"):
            function(torch.ones(n_rows, 3))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("P", PRIMES_AND_OTHERS)
def test_restricting_and_excluding_are_projections(P, sign):
    logits = noise(P * P, P, seed=P) + 3
    ks = sorted({1, P // 2})
    kept = projected(np.concatenate([wave(P, k, sign) for k in ks], axis=1), logits.numpy())
    restored = kept + (logits.numpy() - kept).mean(0)
    np.testing.assert_allclose(restricted_logits(logits, ks, sign), restored, atol=1e-12)
    np.testing.assert_allclose(excluded_logits(logits, ks, sign), logits.numpy() - kept, atol=1e-12)


def test_one_frequency_several_and_a_tensor_of_them():
    logits = noise(49, 7)
    for function in (restricted_logits, excluded_logits):
        assert torch.equal(function(logits, 2), function(logits, [2, 2]))
        assert torch.equal(function(logits, [3, 1]), function(logits, torch.tensor([1, 3])))
    assert torch.equal(excluded_logits(logits, []), logits)
    torch.testing.assert_close(restricted_logits(logits, []), logits.mean(0).expand(49, 7))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_made_of_waves_is_its_key_frequencies(sign):
    P, keys = 31, [2, 7, 15]
    logits, classes = trained(P, keys, sign)
    biased = 5 * logits + torch.arange(P)
    torch.testing.assert_close(restricted_logits(biased, keys, sign), biased, atol=1e-10, rtol=0)
    rows = torch.randperm(P * P, generator=torch.Generator().manual_seed(0))[:100]
    whole = nn.functional.cross_entropy(5 * logits[rows], classes[rows])
    assert restricted_loss(5 * logits, classes, rows, keys, sign).item() == pytest.approx(whole.item(), abs=1e-10)
    assert excluded_loss(5 * logits, classes, rows, keys, sign).item() == pytest.approx(math.log(P), abs=1e-10)


def test_excluding_one_of_several_frequencies_hurts_and_another_does_nothing():
    P, keys = 13, [2, 5]
    logits, classes = trained(P, keys)
    everything = torch.ones(P * P, dtype=torch.bool)
    whole = nn.functional.cross_entropy(10 * logits, classes).item()
    losses = {k: excluded_loss(10 * logits, classes, everything, k).item() for k in range(1, 7)}
    assert all(losses[k] > whole + 0.1 for k in keys)
    assert [losses[k] for k in (1, 3, 4, 6)] == pytest.approx([whole] * 4)
    # The sign matters: a + b of a prime P is orthogonal to every wave of a − b.
    assert excluded_loss(10 * logits, classes, everything, keys, sign=-1).item() == pytest.approx(whole)
    assert restricted_loss(10 * logits, classes, everything, keys, sign=-1).item() == pytest.approx(math.log(P))


def test_losses_are_over_the_chosen_rows():
    logits, classes = noise(25, 5), torch.arange(25) % 5
    train = torch.rand(25, generator=torch.Generator().manual_seed(0)) < 0.4
    for loss, changed in ((restricted_loss, restricted_logits), (excluded_loss, excluded_logits)):
        p = changed(logits, [1]).softmax(1)
        slow = [-math.log(p[row, classes[row]]) for row in range(25) if train[row]]
        for rows in (train, train.nonzero().flatten()):
            assert loss(logits, classes, rows, [1]).item() == pytest.approx(np.mean(slow))
        assert loss(logits, classes, ~train, [1]).item() != pytest.approx(np.mean(slow))


def test_memorised_pairs_survive_exclusion_and_not_restriction():
    # A table of the training pairs alone: its waves are chance, so what is left is the table.
    P = 31
    _, classes = trained(P, [1])
    train = torch.rand(P * P, generator=torch.Generator().manual_seed(0)) < 0.3
    logits = torch.where(train.unsqueeze(1), 10.0 * nn.functional.one_hot(classes, P), 0.0)
    assert excluded_loss(logits, classes, train, 3).item() < 0.3
    assert restricted_loss(logits, classes, train, 3).item() > 2


@pytest.mark.parametrize(
    ("shape", "frequencies", "sign", "message"),
    [((25, 4), 1, 1, "classes"), ((25, 5), 0, 1, "1 to 2"), ((25, 5), [1, 3], 1, "1 to 2"), ((25, 5), 1, 2, "sign")],
)
def test_what_is_no_frequency_sign_or_shape_is_refused(shape, frequencies, sign, message):
    for function in (restricted_logits, excluded_logits):
        with pytest.raises(ValueError, match=message):
            function(torch.ones(shape), frequencies, sign)


def test_fourier_gini_written_out():
    embeddings = noise(2, 9, 4)
    for matrix, value in zip(embeddings, fourier_gini(embeddings), strict=True):
        rows = [torch.ones(9).double()]
        for k in range(1, 5):
            angle = 2 * torch.pi * k * torch.arange(9).double() / 9
            rows += [angle.cos(), angle.sin()]
        norms = [((row / row.norm()) @ matrix).norm().item() for row in rows]
        slow = sum(abs(x - y) for x in norms for y in norms) / (2 * 9 * sum(norms))
        assert value.item() == pytest.approx(slow)


def test_fourier_gini_of_known_weights():
    P, k = 13, 4
    angle = 2 * torch.pi * k * torch.arange(P, dtype=torch.float64) / P
    circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
    # Two equal components among P zeros: 1 − 2/P.
    assert fourier_gini(circle).item() == pytest.approx(1 - 2 / P, abs=1e-12)
    assert fourier_gini(torch.eye(P)).item() == pytest.approx(0, abs=1e-12)
    assert fourier_gini(torch.zeros(P, 3)).isnan()
    assert fourier_gini(noise(97, 2000)).item() < 0.02


def test_sums_of_squares_of_each_parameter():
    network = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    sums = sum_of_squares(network)
    assert list(sums) == ["0.weight", "1.weight", "1.bias"]
    for name, parameter in network.named_parameters():
        assert sums[name].item() == pytest.approx(sum(x**2 for x in parameter.flatten().tolist()))
        assert not sums[name].requires_grad
    torch.testing.assert_close(sum(sums.values()), weights.norm(network).square())
