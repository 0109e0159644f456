import itertools

import numpy as np
import pytest
import torch

from lit_grok.measures.representation import representation_uniformity


@pytest.mark.parametrize(("symbols", "places"), [(2, 1), (5, 1), (3, 2), (3, 4), (2, 5)])
def test_is_the_mean_over_all_pairs_one_by_one(symbols, places):
    features = torch.randn(symbols**places, 7, generator=torch.Generator().manual_seed(symbols))
    keys = list(itertools.product(range(symbols), repeat=places))
    of = dict(zip(keys, features.double().numpy(), strict=True))
    steps = [
        np.linalg.norm(of[(*key[:q], key[q] + 1, *key[q + 1 :])] - of[key])
        for key in keys
        for q in range(places)
        if key[q] + 1 < symbols
    ]
    assert len(steps) == places * symbols ** (places - 1) * (symbols - 1)
    found = representation_uniformity(features, symbols)
    assert found.step.item() == pytest.approx(np.mean(steps))
    assert found.relative_step.item() == pytest.approx(
        np.mean(steps) / np.mean([np.linalg.norm(f) for f in of.values()])
    )


def test_a_linear_representation_of_the_sum_steps_by_one():
    total = torch.cartesian_prod(*[torch.arange(4.0)] * 4).sum(1, keepdim=True)
    found = representation_uniformity(total, 4)
    assert (found.step, found.relative_step) == (1, 1 / 6)  # the mean of the sum is 6
    assert found.step.dtype == torch.float64
    scaled = representation_uniformity(10 * total, 4)
    assert (scaled.step, scaled.relative_step) == (10, found.relative_step)


def test_nothing_has_no_relative_step():
    found = representation_uniformity(torch.zeros(16, 3), 2)
    assert found.step == 0
    assert found.relative_step.isnan()


@pytest.mark.parametrize("count", [0, 1, 2, 8, 10, 80])
def test_features_of_some_examples_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} features: not a power of symbols=3"):
        representation_uniformity(torch.zeros(count, 2), 3)


def test_one_symbol_is_refused():
    with pytest.raises(ValueError, match="symbols=1"):
        representation_uniformity(torch.zeros(4, 2), 1)
