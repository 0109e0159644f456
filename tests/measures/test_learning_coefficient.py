import math
import re

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lit_grok.measures.learning_coefficient import local_learning_coefficient
from lit_grok.networks import ModularMLP


@torch.vmap
def quadratic(weights, x, y):
    """Negative log-likelihood of a linear regression with unit noise, up to a constant."""
    return ((x @ weights["w"] + weights["b"] - y) ** 2).mean() / 2


def regression(d=3, count=500, replicas=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(replicas, count, d, generator=generator)
    w = torch.randn(replicas, d, generator=generator)
    y = (x @ w.unsqueeze(-1)).squeeze(-1) + torch.randn(replicas, count, generator=generator)
    design = torch.cat([x, torch.ones(replicas, count, 1)], dim=-1)
    best = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.squeeze(-1)
    return {"w": best[:, :d], "b": best[:, d]}, x, y


def exact(weights, x, gamma):
    """Σ nβh / (2 (nβh + γ)) over the curvatures h, for every replica."""
    count = x.shape[1]
    design = torch.cat([x, torch.ones(*x.shape[:2], 1)], dim=-1)
    curvature = count / math.log(count) * torch.linalg.eigvalsh(design.mT @ design / count).double()
    return (curvature / (2 * (curvature + gamma))).sum(-1)


def two_weights(loss, replicas=1, **options):
    """The estimate for a loss of two weights around 0, by sampling and by integration on a grid."""
    data, beta, gamma = torch.zeros(replicas, 1000), 1000 / math.log(1000), options["localisation"]
    weights = {"u": torch.zeros(replicas), "v": torch.zeros(replicas)}
    result = local_learning_coefficient(
        torch.vmap(lambda w, x, y: loss(w["u"], w["v"])), weights, data, data, range(replicas), **options
    )
    u, v = np.meshgrid(*2 * [np.linspace(-8, 8, 1001) / math.sqrt(gamma)])
    values = beta * loss(u, v)
    density = np.exp(-values - gamma * (u**2 + v**2) / 2)
    return result, (values * density).sum() / density.sum()


# Known exactly


@pytest.mark.parametrize("step_size", [1e-3, 1e-2])  # ε ∇∇U = 0.08 and 0.8: there is no bias from the step
@pytest.mark.parametrize("gamma", [1.0, 50.0])
def test_regular_model_has_half_its_parameters(step_size, gamma):
    weights, x, y = regression()
    result = local_learning_coefficient(
        quadratic, weights, x, y, [0, 1], chains=40, steps=1000, burn_in=200, step_size=step_size, localisation=gamma
    )
    torch.testing.assert_close(result.value, exact(weights, x, gamma), rtol=0.03, atol=0)
    if gamma == 1:
        assert result.value.tolist() == pytest.approx([2, 2], rel=0.05)
    assert result.doubts == ["", ""]
    assert result.equipartition.tolist() == pytest.approx([1, 1], abs=0.04)
    steepest = 0.25 * step_size * (1.3 * 500 / math.log(500) + gamma)
    assert all(1 - steepest - 0.04 < temperature < 1.04 for temperature in result.temperature.tolist())
    assert result.chains.shape == (2, 40)
    assert result.trace.shape == (2, 40, 1200)
    torch.testing.assert_close(result.trace[..., 200:].mean(-1), result.chains)


@pytest.mark.parametrize(
    ("loss", "asymptotic"),
    [
        (lambda u, v: u**2 + v**2, 1),
        (lambda u, v: u**2 + v**4, 3 / 4),
        (lambda u, v: u**4 + v**4, 1 / 2),
        (lambda u, v: u**2 * v**2, 1 / 2),  # regression of nothing on u·v: at finite n less by about 1 / ln n
    ],
)
def test_singular_models_have_less(loss, asymptotic):
    result, integral = two_weights(loss, chains=60, burn_in=200, steps=1500, step_size=1e-3, localisation=10.0)
    assert result.value.item() == pytest.approx(integral, rel=0.04)
    assert 0.4 * asymptotic < integral < 1.01 * asymptotic
    assert result.doubts == [""]


def test_flat_directions_count_nothing_but_take_their_share():
    result, _ = two_weights(lambda u, v: u**2 + 0 * v, chains=60, steps=1000, step_size=4e-3, localisation=1.0)
    assert result.value.item() == pytest.approx(0.5, rel=0.05)
    assert result.equipartition.item() == pytest.approx(1, abs=0.05)


def test_minibatches_give_the_same():
    weights, x, y = regression(replicas=1)
    result = local_learning_coefficient(
        quadratic, weights, x, y, [0], chains=20, steps=1000, step_size=1e-4, localisation=50.0, batch_size=250
    )
    assert result.value.item() == pytest.approx(exact(weights, x, 50.0).item(), rel=0.1)


def test_a_batch_of_all_inputs_is_none():
    weights, x, y = regression(count=20)
    options = {"seeds": [0, 1], "steps": 10, "burn_in": 0}
    traces = [
        local_learning_coefficient(quadratic, weights, x, y, batch_size=size, **options).trace for size in (None, 20)
    ]
    assert torch.equal(*traces)


# Diagnostics


def test_the_error_is_that_of_independent_repetitions():
    options = {"chains": 4, "steps": 500, "burn_in": 50, "step_size": 2e-3, "localisation": 10.0}
    result, integral = two_weights(lambda u, v: u**2 + v**4, replicas=100, **options)
    scores = (result.value - integral) / result.error
    assert abs(scores.mean()) < 0.3
    assert 0.8 < scores.std() < 1.3
    # Correlated draws count less than they are, and their number gives the error back.
    assert (result.effective_samples < 2000).all()
    excess = result.trace[..., 50:].flatten(1)
    torch.testing.assert_close(excess.std(1) / result.effective_samples.sqrt(), result.error)


OPTIONS = {"chains": 4, "step_size": 1e-3, "localisation": 1.0}


@pytest.mark.parametrize(
    ("shift", "options", "doubt"),
    [
        (0, {"step_size": 1.0}, "it is nan, the chains have left the trained weights for good: a smaller step_size"),
        (0, {"step_size": 1e-7, "burn_in": 0, "steps": 100}, "of the spread of equilibrium: more burn_in"),
        (0, {"batch_size": 20}, "of the right temperature: a smaller step_size or a larger batch_size"),
        (5, {"burn_in": 0, "steps": 400, "localisation": 0.01}, "and still drifts by .*: more burn_in"),
        (1, {"localisation": 100.0}, "no minimum of this loss: more epochs or a smaller weight_decay"),
        (0, {"chains": 1, "steps": 30}, "too uncertain: more steps or chains"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(shift, options, doubt):
    weights, x, y = regression(replicas=1)
    shifted = {name: values + shift for name, values in weights.items()}
    result = local_learning_coefficient(quadratic, shifted, x, y, [0], **OPTIONS | options)
    assert re.search(doubt, *result.doubts)


def test_a_replica_does_not_depend_on_its_neighbours():
    weights, x, y = regression()
    options = {"chains": 2, "steps": 20, "burn_in": 0, "step_size": 1e-3}
    together = local_learning_coefficient(quadratic, weights, x, y, [0, 1], batch_size=50, **options)
    second = {name: w[1:] for name, w in weights.items()}
    alone = local_learning_coefficient(quadratic, second, x[1:], y[1:], [1], batch_size=50, **options)
    torch.testing.assert_close(together.trace[1:], alone.trace)
    assert not torch.equal(together.trace[0], together.trace[1])


def test_runs_on_a_network_of_the_project():
    torch.manual_seed(0)
    network, pairs = ModularMLP(P=5, hidden=[8]), torch.cartesian_prod(torch.arange(5), torch.arange(5))
    sums = pairs.sum(1) % 5

    def stacked(weights, x, y):
        logits = network.forward_stack(weights, x)
        return cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)

    @torch.vmap
    def single(weights, x, y):
        return cross_entropy(functional_call(network, weights, (x,)), y)

    weights = {name: p.detach().unsqueeze(0) for name, p in network.named_parameters()}
    before = {name: values.clone() for name, values in weights.items()}
    data = pairs.unsqueeze(0), sums.unsqueeze(0)
    options = {"chains": 2, "steps": 10, "burn_in": 0}
    first, second = (local_learning_coefficient(f, weights, *data, [0], **options) for f in (stacked, single))
    torch.testing.assert_close(first.trace[..., 0], torch.zeros(1, 2, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.trace, second.trace, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(before[name], values) for name, values in weights.items())


@pytest.mark.parametrize(
    ("seeds", "options", "complaint"),
    [
        ([0], {}, "1 seeds for 2 replicas"),
        ([0, 1], {"steps": 1}, "at least 2 inputs and steps"),
        ([0, 1], {"localisation": 0.0}, "localisation=0.0: both must be positive"),
        ([0, 1], {"step_size": -1.0}, "step_size=-1.0"),
    ],
)
def test_bad_input(seeds, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        local_learning_coefficient(quadratic, *regression(), seeds, **options)
