import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lit_grok import optimizers
from lit_grok.modules import LitClassifier, LitIsingCNN, LitModularArithmetic
from lit_grok.networks import IsingCNN, ModularMLP
from lit_grok.replicas import ReplicaStack


def describe(count, **changes):
    seeds = {"seed_init": 0, "seed_data": 0, "seed_order": 0}
    return [{"init_scale": 1.0, "seed": r, "weight_decay": 0.0, **seeds, **changes} for r in range(count)]


def module(count=3, optimizer=optimizers.Adam, replicas=None, **options):
    torch.manual_seed(0)
    stack = ReplicaStack([ModularMLP(7, [9]) for _ in range(count)])
    return LitModularArithmetic(
        stack, classes=7, replicas=replicas or describe(count), optimizer=partial(optimizer, lr=0.1), **options
    )


def batch(count=3, size=20):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 7, (count, size, 2), generator=generator)
    return inputs, torch.randint(0, 7, (count, size), generator=generator)


# The loss


@pytest.mark.parametrize("count", [1, 3])
def test_the_loss_is_the_sum_of_the_means(count):
    lit, (inputs, targets) = module(count), batch(count)
    each = [F.cross_entropy(n(x), y) for n, x, y in zip(lit.stack.networks, inputs, targets, strict=True)]
    torch.testing.assert_close(lit.losses(lit(inputs), targets), torch.stack(each))
    torch.testing.assert_close(lit.training_step((inputs, targets), 0), sum(each))


def gradient(lit):
    """That of the first weight, (R, …)."""
    return dict(zip(lit.stack.stacked(), lit.stack.split(lit.stack.flat.grad), strict=True))["hidden.0.weight"]


def test_gradients_do_not_cross():
    lit, (inputs, targets) = module(3), batch(3)
    lit.training_step((inputs, targets), 0).backward()
    first = gradient(lit).clone()
    lit.zero_grad()
    changed = targets.clone()
    changed[1] = (changed[1] + 1) % 7
    lit.training_step((inputs, changed), 0).backward()
    second = gradient(lit)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2], second[2])
    assert not torch.equal(first[1], second[1])
    own = torch.autograd.grad(
        F.cross_entropy(lit.stack.networks[2].requires_grad_()(inputs[2]), targets[2]),
        lit.stack.networks[2].hidden[0].weight,
    )[0]
    torch.testing.assert_close(first[2], own)


def test_mse_by_hand():
    lit = module(1, loss="mse")
    logits = torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0, 0, 2]]])
    # the first is right; the second has 2² and 1² among seven classes
    torch.testing.assert_close(lit.losses(logits, torch.tensor([[0, 3]])), torch.tensor([(0 + 5 / 7) / 2]))


def test_mse_equals_torch():
    lit, (inputs, targets) = module(3, loss="mse"), batch(3)
    each = [
        F.mse_loss(n(x), F.one_hot(y, 7).float()) for n, x, y in zip(lit.stack.networks, inputs, targets, strict=True)
    ]
    torch.testing.assert_close(lit.losses(lit(inputs), targets), torch.stack(each))


# The evaluation


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("chunk", [1, 7, 20, 4096])
def test_evaluation_in_chunks_equals_evaluation_at_once(chunk, count, monkeypatch):
    monkeypatch.setattr(LitClassifier, "_chunk", chunk)
    lit, (inputs, targets) = module(count), batch(count)
    result = lit.evaluate(inputs, targets)
    for r, network in enumerate(lit.stack.networks):
        logits = network(inputs[r])
        assert result["loss"][r].item() == pytest.approx(F.cross_entropy(logits, targets[r]).item(), rel=1e-5)
        assert result["accuracy"][r].item() == pytest.approx((logits.argmax(1) == targets[r]).float().mean().item())
    assert result["loss"].shape == result["accuracy"].shape == (count,)
    assert not result["loss"].requires_grad


def test_evaluation_keeps_double_precision():
    lit, (inputs, targets) = module(2).double(), batch(2)
    logits = lit(inputs).detach()
    expected = torch.stack([F.cross_entropy(logits[r], targets[r]) for r in range(2)])
    torch.testing.assert_close(lit.evaluate(inputs, targets)["loss"], expected, rtol=1e-14, atol=0)


def test_chance():
    assert module().chance == 1 / 7
    stack = ReplicaStack([IsingCNN(8)])
    assert LitIsingCNN(stack, replicas=describe(1), optimizer=optimizers.Adam).chance == 0.5


# What is refused


def test_clipping_by_norm_is_refused_for_several():
    for algorithm in (None, "norm"):
        with pytest.raises(ValueError, match=r"gradient_clip_val=1.5.*3 replicas"):
            module(3).refuse_mixing(1.5, algorithm)
    module(3).refuse_mixing(1.5, "value")
    module(3).refuse_mixing(None, None)
    module(1).refuse_mixing(1.5, "norm")


class Mixing(torch.optim.LBFGS):
    def __init__(self, params, lr, weight_decay):
        super().__init__(params, lr=lr)


def test_optimisers_that_could_mix_are_refused_for_several():
    with pytest.raises(ValueError, match=r"optimizer=Mixing.*3 replicas"):
        module(3, optimizer=Mixing).refuse_mixing(None, None)
    module(1, optimizer=Mixing).refuse_mixing(None, None)
    for kind in (torch.optim.Adam, optimizers.AdamW, optimizers.SGD, torch.optim.RMSprop):
        module(3, optimizer=kind).refuse_mixing(None, None)


def test_unknown_loss_and_wrong_number_of_descriptions():
    with pytest.raises(ValueError, match="loss=hinge: unknown; allowed: cross_entropy, mse"):
        module(loss="hinge")
    with pytest.raises(ValueError, match="2 replicas are described, the stack has 3"):
        module(3, replicas=describe(2))


# What reaches the optimiser


def test_one_decay_per_replica():
    replicas = [r | {"weight_decay": d} for r, d in zip(describe(3), (0.0, 0.1, 0.2), strict=True)]
    given = {}

    def optimizer(parameters, **options):
        given.update(options, parameters=list(parameters))
        return torch.optim.SGD(given["parameters"], lr=1)

    lit = LitModularArithmetic(module(3).stack, classes=7, replicas=replicas, optimizer=optimizer)
    lit.configure_optimizers()
    assert given["weight_decay"] == [0.0, 0.1, 0.2]
    assert [p.data_ptr() for p in given["parameters"]] == [p.data_ptr() for p in lit.stack.parameters()]
    LitModularArithmetic(
        module(3).stack, classes=7, replicas=describe(3, weight_decay=0.3), optimizer=optimizer
    ).configure_optimizers()
    assert given["weight_decay"] == 0.3


# Names


def test_label_tells_what_differs():
    replicas = describe(2, init_scale=10.0, weight_decay=3e-5)
    assert module(2, replicas=replicas).label(1) == "init_scale=10 seed=1"
    replicas[1]["weight_decay"] = 1e-4
    assert module(2, replicas=replicas).label(1) == "init_scale=10 seed=1 weight_decay=0.0001"
    assert module(1, replicas=describe(1, init_scale=0.1)).label(0) == "init_scale=0.1 seed=0"


def test_labels_of_different_replicas_differ():
    seeds = [1234567, 1234568]
    lit = module(2, replicas=[r | {"seed": s} for r, s in zip(describe(2), seeds, strict=True)])
    assert [lit.label(r) for r in range(2)] == ["init_scale=1 seed=1234567", "init_scale=1 seed=1234568"]
    scales = [1.0, 1.0000001]
    lit = module(2, replicas=[r | {"init_scale": s, "seed": 0} for r, s in zip(describe(2), scales, strict=True)])
    assert lit.label(0) != lit.label(1)


# Divergence


def weights_are(lit, value):
    with torch.no_grad():
        for values in lit.stack.stacked().values():
            for r, v in enumerate(value):
                values[r] = v


def test_the_last_finite_weights_are_kept():
    lit = module(2)
    weights_are(lit, (1, 2))
    lit.mark_diverged(0, torch.tensor([0.1, 0.2]))
    assert lit.diverged == [None, None]
    weights_are(lit, (3, math.nan))
    lit.mark_diverged(5)
    assert lit.sound == [0]
    lit.mark_diverged(6, torch.tensor([0.1, math.nan]))
    weights_are(lit, (4, math.inf))
    assert lit.diverged == [None, 5]
    for values in lit.final_weights().values():
        assert (values[0] == 4).all()
        assert (values[1] == 2).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_replica_broken_from_the_start_keeps_its_initial_weights(count):
    lit = module(count)
    before = {name: values.clone() for name, values in lit.stack.stacked().items()}
    lit.mark_diverged(0, torch.tensor([0.1, math.inf])[-count:])
    assert lit.diverged == [None, 0][-count:]
    weights_are(lit, [2, math.nan][-count:])
    for name, values in lit.final_weights().items():
        assert count == 1 or (values[0] == 2).all()
        assert torch.equal(values[-1], before[name][-1])


@pytest.mark.parametrize("count", [1, 2])
def test_divergence_right_after_a_resume_keeps_the_weights_before_it(count):
    lit = module(count)
    weights_are(lit, [5] * count)
    lit.mark_diverged(3, torch.zeros(count))
    checkpoint = {}
    lit.on_save_checkpoint(checkpoint)
    resumed = module(count)
    resumed.on_load_checkpoint(checkpoint)
    weights_are(resumed, [math.nan] * count)
    resumed.mark_diverged(4, torch.full((count,), math.nan))
    for values in resumed.final_weights().values():
        assert (values == 5).all()


def test_an_epoch_sees_that_its_examples_have_been_written_to():
    def epoch(inputs, targets):
        optimizer = lit.configure_optimizers()
        assert lit.train_epoch(inputs, targets, 20, optimizer)
        return lit.stack.flat.detach().clone()

    def ising():
        torch.manual_seed(0)
        return LitIsingCNN(
            ReplicaStack([IsingCNN(8)]), replicas=describe(1), optimizer=partial(optimizers.Adam, lr=0.1)
        )

    first, second = (torch.randn(1, 20, 8, 8).sign() for _ in range(2))
    targets = torch.randint(0, 2, (1, 20))
    lit = ising()
    epoch(first, targets)
    expected = epoch(second.clone(), 1 - targets)
    lit = ising()
    epoch(first, targets)
    first.copy_(second)
    targets.copy_(1 - targets)
    assert torch.equal(epoch(first, targets), expected)
