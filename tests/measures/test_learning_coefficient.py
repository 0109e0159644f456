import math

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lit_grok.measures.learning_coefficient import local_learning_coefficient
from lit_grok.networks import ModularMLP


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


def test_regular_model_has_half_its_parameters():
    weights, x, y = regression()
    result = local_learning_coefficient(
        quadratic,
        weights,
        x,
        y,
        seeds=[0, 1],
        chains=40,
        steps=600,
        burn_in=200,
        step_size=2e-3,
        localisation=1.0,
    )
    # The curvatures are close to 1. The step is known to multiply the variance along h by 1 / (1 − ε a / 4).
    design = torch.cat([x, torch.ones(2, 500, 1)], dim=-1)
    h = torch.linalg.eigvalsh(design.mT @ design / 500).double()
    beta = 500 / math.log(500)
    a = beta * h + 1.0
    expected = (beta * h / (2 * a * (1 - 2e-3 * a / 4))).sum(-1)
    torch.testing.assert_close(result.value, expected, rtol=0.05, atol=0)
    assert result.value.tolist() == pytest.approx([2, 2], rel=0.1)
    assert result.settled.all()
    assert result.chains.shape == (2, 40)
    assert result.loss_trace.shape == (2, 40, 800)


def test_minibatches_give_the_same():
    weights, x, y = regression(replicas=1)
    result = local_learning_coefficient(
        quadratic, weights, x, y, seeds=[0], chains=20, steps=400, burn_in=100, step_size=1e-3, batch_size=250
    )
    whole = local_learning_coefficient(
        quadratic, weights, x, y, seeds=[0], chains=20, steps=400, burn_in=100, step_size=1e-3
    )
    assert result.value.item() == pytest.approx(whole.value.item(), rel=0.2)


def test_singular_model_has_less():
    """u² + v⁴ has λ = 1/2 + 1/4 at every n: by equipartition, E[w ∂V/∂w] = 1 for each parameter."""

    def loss(weights, x, y):
        return weights["u"] ** 2 + weights["v"] ** 4

    data = torch.zeros(1, 1000)
    result = local_learning_coefficient(
        loss,
        {"u": torch.zeros(1), "v": torch.zeros(1)},
        data,
        data,
        [0],
        chains=60,
        step_size=5e-4,
        localisation=0.0,
    )
    assert result.value.item() == pytest.approx(0.75, rel=0.1)
    assert result.settled.item()


def test_a_replica_does_not_depend_on_its_neighbours():
    weights, x, y = regression()
    options = {"chains": 2, "steps": 20, "burn_in": 0, "step_size": 1e-3}
    together = local_learning_coefficient(quadratic, weights, x, y, seeds=[0, 1], batch_size=50, **options)
    second = {name: w[1:] for name, w in weights.items()}
    alone = local_learning_coefficient(quadratic, second, x[1:], y[1:], seeds=[1], batch_size=50, **options)
    torch.testing.assert_close(together.loss_trace[1:], alone.loss_trace)


def test_chains_that_still_move_are_not_settled():
    weights, x, y = regression(replicas=1)
    far = {name: w + 5 for name, w in weights.items()}
    options = {"seeds": [0], "chains": 4, "steps": 50, "burn_in": 0, "localisation": 0.0}
    assert not local_learning_coefficient(quadratic, far, x, y, step_size=1e-4, **options).settled.item()
    assert not local_learning_coefficient(quadratic, weights, x, y, step_size=1.0, **options).settled.item()


def test_runs_on_a_network_of_the_project():
    torch.manual_seed(0)
    network, pairs = ModularMLP(P=5, hidden=[8]), torch.cartesian_prod(torch.arange(5), torch.arange(5))

    def loss(weights, x, y):
        return cross_entropy(functional_call(network, weights, (x,)), y)

    weights = {name: p.detach().unsqueeze(0) for name, p in network.named_parameters()}
    result = local_learning_coefficient(
        loss, weights, pairs.unsqueeze(0), (pairs.sum(1) % 5).unsqueeze(0), [0], chains=2, steps=10, burn_in=0
    )
    assert torch.isfinite(result.loss_trace).all()
    first = loss({name: w[0] for name, w in weights.items()}, pairs, pairs.sum(1) % 5)
    torch.testing.assert_close(result.loss_trace[0, :, 0], first.detach().expand(2))


def test_one_seed_for_each_replica():
    weights, x, y = regression()
    with pytest.raises(ValueError, match="1 seeds for 2 replicas"):
        local_learning_coefficient(quadratic, weights, x, y, seeds=[0])
