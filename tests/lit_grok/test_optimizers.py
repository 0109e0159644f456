import copy

import pytest
import torch

from lit_grok import optimizers

KINDS = {
    "adam": (optimizers.Adam, torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.99)}),
    "adamw": (optimizers.AdamW, torch.optim.AdamW, {"lr": 0.02}),
    "sgd": (optimizers.SGD, torch.optim.SGD, {"lr": 0.05}),
    "momentum": (optimizers.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}
SHAPES = [(3, 4, 5), (3, 5), (3, 2, 1, 3, 3)]


def parameters(transposed=False):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in SHAPES]
    if transposed:
        tensors[0] = tensors[0].mT.contiguous().mT
    return [torch.nn.Parameter(t) for t in tensors]


def step(optimizer, tensors, i):
    """A loss whose gradient is neither constant nor zero, the same for every optimiser."""
    optimizer.zero_grad()
    sum((p.sin() * (i + 1) + p * p.roll(1, -1)).sum() for p in tensors).backward()
    optimizer.step()


def reference(kind, decays, steps, tensors):
    """torch's own optimiser, replica by replica, unfused."""
    _, theirs, options = KINDS[kind]
    result = []
    for r in range(3):
        own = [torch.nn.Parameter(t.detach()[r].clone()) for t in tensors]
        optimizer = theirs(own, weight_decay=decays[r], foreach=False, fused=False, **options)
        for i in range(steps):
            step(optimizer, own, i)
        result.append(own)
    return [torch.stack([own[j].detach() for own in result]) for j in range(len(tensors))]


@pytest.mark.parametrize("decays", [[0.0] * 3, [0.1] * 3, [0.0, 0.1, 0.003]])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_replica_by_replica(kind, transposed, decays):
    ours, _, options = KINDS[kind]
    tensors = parameters(transposed)
    expected = reference(kind, decays, 30, tensors)
    optimizer = ours(tensors, weight_decay=decays, **options)
    for i in range(30):
        step(optimizer, tensors, i)
    for mine, theirs in zip(tensors, expected, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=1e-11, atol=1e-12)
    assert tensors[0].is_contiguous() is not transposed


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_number_for_all(kind, transposed):
    ours, theirs, options = KINDS[kind]
    mine, other = parameters(transposed), parameters(transposed)
    both = ours(mine, weight_decay=0.1, **options), theirs(other, weight_decay=0.1, fused=False, **options)
    for i in range(30):
        step(both[0], mine, i)
        step(both[1], other, i)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_adam_is_coupled_and_adamw_is_not():
    ends = {}
    for kind in ("adam", "adamw"):
        tensors = parameters()
        optimizer = KINDS[kind][0](tensors, lr=0.01, weight_decay=[0.0, 0.5, 0.5])
        for i in range(10):
            step(optimizer, tensors, i)
        ends[kind] = tensors[0].detach()
    torch.testing.assert_close(ends["adam"][0], ends["adamw"][0])  # no decay, no difference
    assert (ends["adam"][1] - ends["adamw"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("decays", [0.1, [0.0, 0.1, 0.003]])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_through_a_file(kind, transposed, decays, tmp_path):
    ours, _, options = KINDS[kind]
    straight, broken = parameters(transposed), parameters(transposed)
    whole = ours(straight, weight_decay=decays, **options)
    for i in range(12):
        step(whole, straight, i)

    first = ours(broken, weight_decay=decays, **options)
    for i in range(7):
        step(first, broken, i)
    torch.save({"optimizer": first.state_dict(), "parameters": [p.detach() for p in broken]}, tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    resumed = parameters(transposed)
    with torch.no_grad():
        for parameter, value in zip(resumed, saved["parameters"], strict=True):
            parameter.copy_(value)
    second = ours(resumed, weight_decay=decays, **options)
    second.load_state_dict(saved["optimizer"])
    for i in range(7, 12):
        step(second, resumed, i)
    assert all(map(torch.equal, straight, resumed))


def test_the_gradient_of_a_frozen_parameter_is_not_needed():
    tensors = parameters()
    frozen = copy.deepcopy(tensors[1])
    optimizer = optimizers.Adam(tensors, lr=0.1, weight_decay=[0.0, 0.1, 0.2])
    tensors[0].sum().backward()
    optimizer.step()
    assert torch.equal(tensors[1], frozen)


def test_zero_learning_rate_stands_still():
    for kind, (ours, _, options) in KINDS.items():
        tensors = parameters()
        before = copy.deepcopy(tensors)
        step(ours(tensors, weight_decay=[0.0, 0.1, 0.2], **(options | {"lr": 0.0})), tensors, 0)
        assert all(map(torch.equal, tensors, before)), kind


# In single precision, rows of the compiled loop


def rows(seed=0, count=3, size=48):
    return torch.nn.Parameter(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


SINGLE = {
    **KINDS,
    "maximised": (optimizers.Adam, torch.optim.Adam, {"lr": 0.02, "maximize": True}),
    "maximised adamw": (optimizers.AdamW, torch.optim.AdamW, {"lr": 0.02, "maximize": True}),
    "maximised sgd": (optimizers.SGD, torch.optim.SGD, {"lr": 0.02, "maximize": True, "momentum": 0.5}),
    "dampened": (optimizers.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "amsgrad": (optimizers.Adam, torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
}


@pytest.mark.parametrize("decays", [0.1, [0.0, 0.1, 0.003]])
@pytest.mark.parametrize("kind", SINGLE)
def test_the_compiled_loop_equals_torch_in_double_precision(kind, decays):
    ours, theirs, options = SINGLE[kind]
    single = rows()
    each = decays if isinstance(decays, list) else [decays] * 3
    double = [torch.nn.Parameter(single.detach()[r].double()) for r in range(3)]
    mine = ours([single], weight_decay=decays, **options)
    others = [theirs([p], weight_decay=d, **options) for p, d in zip(double, each, strict=True)]
    assert mine.compiles(single) is (kind != "amsgrad")
    for i in range(10):
        step(mine, [single], i)
        for other, p in zip(others, double, strict=True):
            step(other, [p], i)
    torch.testing.assert_close(single.double(), torch.stack(double), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_moved_alike_to_the_bit_wherever_it_stands(kind):
    ours, _, options = KINDS[kind]
    decays = [0.0, 0.1, 0.003, 0.1]

    def end(order):
        moved = torch.nn.Parameter(rows(1, 4)[order].detach().clone())
        each = [decays[r] for r in order]
        optimizer = ours([moved], weight_decay=each, **options)
        for i in range(20):
            step(optimizer, [moved], i)
        return dict(zip(order, moved.detach(), strict=True))

    whole = end([0, 1, 2, 3])
    for order in ([3, 1], [2], [1, 0, 2]):
        assert all(torch.equal(row, whole[r]) for r, row in end(order).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_transposed_gradient_is_applied_where_it_belongs(kind):
    ours, theirs, options = KINDS[kind]
    start = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    mine = torch.nn.Parameter(start.clone().mT.contiguous().mT)
    other = torch.nn.Parameter(start.clone())
    ours, theirs = (kind([p], weight_decay=0.1, **options) for kind, p in ((ours, mine), (theirs, other)))
    for i in range(3):
        gradient = torch.sin(start + i)
        mine.grad, other.grad = gradient.contiguous(), gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decays", [0.1, [0.0, 0.1, 0.2]])
def test_a_step_returns_its_loss_and_calls_its_hooks_once(decays):
    tensors, calls = parameters(), []
    optimizer = optimizers.Adam(tensors, lr=0.1, weight_decay=decays)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # PyTorch wraps the step of a class at its first use

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in tensors)
        loss.backward()
        calls.append("loss")
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert calls == ["before", "loss", "after"] * 3


def test_a_frozen_parameter_stays_in_later_steps_too():
    tensors = parameters()
    optimizer = optimizers.Adam(tensors, lr=0.1, weight_decay=0.1)
    step(optimizer, tensors, 0)
    frozen = tensors[1].detach().clone()
    optimizer.zero_grad()
    (tensors[0].sum() + tensors[2].sum()).backward()
    optimizer.step()
    assert torch.equal(tensors[1], frozen)


def test_gradients_are_forgotten_or_set_to_zero():
    tensors = parameters()
    optimizer = optimizers.Adam(tensors, lr=0.1)
    for keep in (False, True):
        sum(p.sum() for p in tensors).backward()
        optimizer.zero_grad(set_to_none=not keep)
        assert all((p.grad == 0).all() if keep else p.grad is None for p in tensors)
