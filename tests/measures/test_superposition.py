"""Superposition from its definitions: planes in neuron space, Fisher's test, null models."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lit_grok.measures import superposition


def noise(neurons, P, seed=0):
    return torch.randn(neurons, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(P, k, phase=0.0):
    return torch.cos(2 * torch.pi * k * torch.arange(P, dtype=torch.float64) / P + phase)


def slow_planes(weights):
    """By the definition, one frequency after the other."""
    P = weights.shape[1]
    x = np.arange(P)
    return [
        np.sqrt(2 / P) * weights.numpy() @ np.stack([np.cos(2 * np.pi * k * x / P), np.sin(2 * np.pi * k * x / P)], 1)
        for k in range(1, P)
        if k < P / 2
    ]


@pytest.mark.parametrize("P", [3, 7, 8, 31])
def test_planes_are_projections_and_hold_all_power(P):
    weights = noise(6, P)
    planes = superposition.feature_planes(weights)
    slow = slow_planes(weights)
    assert len(planes) == len(slow)
    for found, expected in zip(planes, slow, strict=True):
        product = found @ found.T  # a plane is the same whatever the sign of its sine
        np.testing.assert_allclose(product, expected @ expected.T, atol=1e-12)
    power = (weights - weights.mean(1, keepdim=True)).square().sum()
    if P % 2 == 0:
        power -= (weights * torch.tensor([1.0, -1.0]).repeat(P // 2)).sum(1).square().sum() / P
    torch.testing.assert_close(planes.square().sum(), power)


@pytest.mark.parametrize("P", [7, 8])
def test_overlap_by_the_definition(P):
    weights = noise(3, P)
    slow = slow_planes(weights)
    expected = np.array(
        [[np.sum((k.T @ j) ** 2) / (np.linalg.norm(k.T @ k) * np.linalg.norm(j.T @ j)) for j in slow] for k in slow]
    )
    np.testing.assert_allclose(superposition.feature_overlaps(weights), expected, atol=1e-12)
    power = np.array([np.sum(k**2) for k in slow])
    pairs = np.outer(power, power) * (1 - np.eye(len(slow)))
    assert superposition.interference(weights).item() == pytest.approx((pairs * expected).sum() / pairs.sum())


def test_a_translation_a_rotation_and_a_scale_change_no_interference():
    weights = noise(10, 11)
    expected = superposition.feature_overlaps(weights)
    rotation = torch.linalg.qr(noise(10, 10, seed=1)).Q
    for other in (weights.roll(3, 1), 1e-20 * weights, 1e20 * weights, rotation @ weights, weights + 5):
        torch.testing.assert_close(superposition.feature_overlaps(other), expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(superposition.interference(other), superposition.interference(weights))
        torch.testing.assert_close(
            superposition.effective_dimension(other), superposition.effective_dimension(weights), rtol=1e-9, atol=0
        )


def test_one_frequency_to_a_neuron_is_no_superposition():
    P, frequencies = 23, (1, 4, 9)
    weights = torch.stack([wave(P, k, phase) for k in frequencies for phase in np.linspace(0, 6, 16)])
    carrying = superposition.carried(weights)
    assert carrying.sum(1).tolist() == [1] * 48
    assert (superposition.in_use(carrying).nonzero()[:, 0] + 1).tolist() == list(frequencies)
    assert superposition.interference(weights) < 1e-20
    assert superposition.effective_dimension(weights).item() == pytest.approx(6, rel=0.05)


def test_frequencies_that_always_come_together_overlap_wholly():
    P = 23
    phases = np.linspace(0, 6, 16)
    weights = torch.stack([wave(P, 2, phase) + wave(P, 5, phase) for phase in phases])
    assert superposition.feature_overlaps(weights)[1, 4].item() == pytest.approx(1)
    assert superposition.interference(weights).item() == pytest.approx(1)
    apart = torch.stack([wave(P, 2, a) + wave(P, 5, b) for a, b in zip(phases, 7.3 * phases, strict=True)])
    assert superposition.interference(apart) < 0.2


@pytest.mark.parametrize(("features", "level"), [(5, 0.01), (56, 0.01), (56, 0.2)])
def test_white_noise_carries_a_frequency_at_the_level(features, level):
    neurons = 20_000
    carrying = superposition.carried(noise(neurons, 2 * features + 1), level)
    rate = carrying.any(1).double().mean().item()
    slack = 4 * np.sqrt(level / neurons)
    assert 0.85 * level - slack < rate < level + slack  # Bonferroni's bound is nearly reached
    assert carrying.sum(0).double().mean().item() == pytest.approx(neurons * level / features, rel=0.15)


def test_noise_uses_a_frequency_at_the_level():
    carrying = [superposition.carried(noise(100, 31, seed), 0.2) for seed in range(300)]
    found = [superposition.in_use(each, 0.2).any().item() for each in carrying]
    assert np.mean(found) <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 300)
    assert binom.sf(int(binom.isf(0.01 / 56, 512, 0.01 / 56)), 512, 0.01 / 56) <= 0.01 / 56


def test_noise_interferes_by_two_over_n_and_fills_its_dimensions():
    found = torch.stack([superposition.interference(noise(200, 31, seed)) for seed in range(20)]).mean().item()
    assert found == pytest.approx(2 / 200, rel=0.03)
    dimension = superposition.effective_dimension(noise(200, 31)).item()
    assert dimension == pytest.approx(1 / (1 / 30 + 1 / 200), rel=0.02)  # Marchenko and Pastur


def test_the_null_model_keeps_norms_and_means_and_nothing_else():
    weights = torch.stack([wave(31, 3) * size + size for size in np.geomspace(1e-3, 10, 200)])
    drawn = superposition.random_like(weights, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(1), weights.mean(1))
    torch.testing.assert_close(drawn.norm(dim=1), weights.norm(dim=1))
    assert superposition.carried(drawn).double().sum(1).mean() < 0.05
    equal = superposition.random_like(torch.ones(2, 5), torch.Generator().manual_seed(0))
    assert (equal == 1).all()


def test_where_there_is_nothing():
    dead = torch.stack([torch.zeros(11), torch.full((11,), 0.1)])
    assert not superposition.carried(dead).any()
    assert superposition.interference(dead).isnan()
    assert superposition.effective_dimension(dead).isnan()
    none = torch.zeros(0, 11)
    assert superposition.carried(none).shape == (0, 5)
    assert not superposition.in_use(superposition.carried(none)).any()
    assert superposition.interference(none).isnan()
    assert superposition.effective_dimension(none).isnan()
    assert superposition.random_like(none, torch.Generator()).shape == (0, 11)


@pytest.mark.parametrize(("features", "level"), [(1, 0.01), (5, 0.0), (5, 1.0)])
def test_no_chance_for_these(features, level):
    with pytest.raises(ValueError, match=f"features={features}, level={level}"):
        superposition.chance_share(features, level)


def test_two_residues_have_no_frequency():
    with pytest.raises(ValueError, match="P=2"):
        superposition.feature_planes(torch.ones(3, 2))
