import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from lit_grok import optimizers
from lit_grok.cli import CONFIG_DIR, replicas
from lit_grok.networks import IsingCNN, ModularMLP, scale_parameters
from lit_grok.replicas import ReplicaStack, build_stack
from train import build as build_run

PAIRS = torch.cartesian_prod(torch.arange(11), torch.arange(11))
TASKS = {
    "ising": (lambda: IsingCNN(8), lambda g: 2.0 * torch.randint(0, 2, (40, 8, 8), generator=g) - 1, 2),
    "mod_add": (lambda: ModularMLP(11, [32]), lambda g: PAIRS[torch.randperm(121, generator=g)[:40]], 11),
}


def build(task, replica, scale=1.0):
    torch.manual_seed(replica)
    return scale_parameters(TASKS[task][0](), scale)


def data(task, replica):
    generator = torch.Generator().manual_seed(replica)
    inputs = TASKS[task][1](generator)
    return inputs, torch.randint(0, TASKS[task][2], (40,), generator=generator)


def shared(stack):
    """Whether each plain network lives in the memory of the stack."""
    return all(
        network.get_parameter(name).data_ptr() == values[r].data_ptr()
        and torch.equal(network.get_parameter(name), values[r])
        for name, values in stack.stacked().items()
        for r, network in enumerate(stack.networks)
    )


# One memory


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("replicas", [1, 3])
def test_networks_and_stack_share_their_memory_both_ways(task, replicas):
    networks = [build(task, r) for r in range(replicas)]
    before = [copy.deepcopy(n.state_dict()) for n in networks]
    stack = ReplicaStack(networks)
    assert len(stack) == replicas
    assert stack.networks[0] is networks[0]
    assert all(torch.equal(v, before[r][k]) for r, n in enumerate(networks) for k, v in n.state_dict().items())
    assert shared(stack)

    last, parameter = replicas - 1, next(stack.parameters())
    with torch.no_grad():
        parameter.add_(1)  # up: an optimiser step is seen by the networks
        name = next(iter(before[last]))
        torch.testing.assert_close(networks[last].get_parameter(name), before[last][name] + 1)
        networks[last].get_parameter(name).zero_()  # down
    assert not stack.stacked()[name][last].any()
    assert replicas == 1 or stack.stacked()[name][0].any()


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_memory_stays_shared_after_moving_and_loading(task, replicas):
    stack = ReplicaStack([build(task, r) for r in range(replicas)])
    assert stack.to(torch.float64) is stack
    assert all(p.dtype == torch.float64 for n in stack.networks for p in n.parameters())
    assert shared(stack)
    other = ReplicaStack([build(task, 10 + r) for r in range(replicas)]).double()
    other.load_state_dict(stack.state_dict())
    assert shared(other)
    for mine, theirs in zip(stack.networks, other.networks, strict=True):
        assert all(map(torch.equal, mine.parameters(), theirs.parameters()))
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert not next(other.networks[-1].parameters()).any()


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_copied_network_is_plain_and_its_own(replicas):
    stack = ReplicaStack([build("mod_add", r) for r in range(replicas)])
    network = copy.deepcopy(stack.networks[-1])
    assert torch.equal(network(PAIRS), stack.networks[-1](PAIRS))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert next(stack.networks[-1].parameters()).any()
    assert next(network.parameters()).untyped_storage().nbytes() == 4 * 32 * 22  # not that of the whole stack


def test_a_copied_stack_is_tied_together_again():
    stack = copy.deepcopy(ReplicaStack([build("mod_add", r) for r in range(3)]))
    assert shared(stack)
    with torch.no_grad():
        next(stack.parameters()).zero_()
    assert not next(stack.networks[2].parameters()).any()


@pytest.mark.parametrize("replicas", [1, 3])
def test_only_the_stacked_parameters_are_trained(replicas):
    stack = ReplicaStack([build("mod_add", r) for r in range(replicas)])
    assert list(stack.parameters()) == [stack.flat]
    assert list(stack.state_dict()) == ["flat"]
    shapes = [tuple(p.shape) for p in stack.networks[0].parameters()]
    assert [tuple(v.shape) for v in stack.stacked().values()] == [(replicas, *s) for s in shapes]


def test_a_row_holds_every_number_once_and_starts_on_a_boundary():
    stack = ReplicaStack([build("mod_add", r) for r in range(3)])
    with torch.no_grad():
        stack.flat.copy_(torch.arange(stack.flat.numel()).view_as(stack.flat))
    numbers = torch.cat([values.flatten(1) for values in stack.stacked().values()], 1)
    count = sum(p.numel() for p in stack.networks[0].parameters())
    assert all(len(row.unique()) == count for row in numbers)
    assert all((row.long() // stack.flat.shape[1] == r).all() for r, row in enumerate(numbers))
    assert stack.flat.shape[1] % 16 == 0
    assert all(values.data_ptr() % 64 == 0 for values in stack.stacked().values())


def test_the_gaps_of_a_row_stay_zero():
    stack = train("mod_add", range(3), dict.fromkeys(range(3), 1e-3), steps=20)
    used = torch.zeros_like(stack.flat)
    for part in stack.split(used):
        part.fill_(1)
    assert used.sum() < used.numel()
    assert not stack.flat[used == 0].any()


def test_what_is_copied_out_is_contiguous():
    stack = ReplicaStack([build("mod_add", r) for r in range(3)])
    network = stack.copy(1)
    assert torch.nn.utils.parameters_to_vector(network.parameters()).numel() > 0
    assert torch.equal(network(PAIRS), stack.networks[1](PAIRS))


# One answer


class Odd(nn.Module):
    """A network without a stacked forward."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("replicas", [1, 3])
def test_outputs_are_those_of_the_networks(replicas):
    for networks, inputs in (
        ([Odd() for _ in range(replicas)], torch.randn(replicas, 5, 3)),
        ([build("ising", r) for r in range(replicas)], torch.ones(replicas, 5, 8, 8).bernoulli_() * 2 - 1),
        ([build("mod_add", r) for r in range(replicas)], torch.randint(0, 11, (replicas, 5, 2))),
    ):
        outputs = ReplicaStack(networks)(inputs)
        for r in range(replicas):
            torch.testing.assert_close(outputs[r], networks[r](inputs[r]), rtol=1e-5, atol=1e-6)


def test_one_replica_runs_directly(monkeypatch):
    monkeypatch.setattr("lit_grok.replicas.vmap", None)
    network, inputs = Odd(), torch.randn(1, 5, 3)
    assert torch.equal(ReplicaStack([network])(inputs)[0], network(inputs[0]))


# One training


RATES = {"ising": 1e-4, "mod_add": 5e-3}


def train(task, members, decays, steps=200, optimizer=optimizers.Adam, scales=None, dtype=torch.float32):
    """Train these replicas as a stack, each on its own data."""
    scales = scales or dict.fromkeys(members, 1.0)
    stack = ReplicaStack([build(task, r, scales[r]) for r in members]).to(dtype)
    each = [decays[r] for r in members]
    step = optimizer(stack.parameters(), lr=RATES[task], weight_decay=each if len(each) > 1 else each[0])
    examples = [data(task, r) for r in members]
    inputs, targets = (torch.stack(parts) for parts in zip(*examples, strict=True))
    for i in range(steps):
        batch = slice(None) if task == "ising" else slice(20 * (i % 2), 20 * (i % 2) + 20)
        step.zero_grad()
        logits = stack(inputs[:, batch])
        loss = F.cross_entropy(logits.flatten(0, 1), targets[:, batch].flatten(), reduction="none")
        loss.view(len(members), -1).mean(1).sum().backward()
        step.step()
    return stack


def train_alone(task, r, decay, steps=200, dtype=torch.float32):
    """The same in plain PyTorch: no stack, no optimiser of ours."""
    network = build(task, r).to(dtype)
    step = torch.optim.Adam(network.parameters(), lr=RATES[task], weight_decay=decay, foreach=False, fused=False)
    inputs, targets = data(task, r)
    for i in range(steps):
        batch = slice(None) if task == "ising" else slice(20 * (i % 2), 20 * (i % 2) + 20)
        step.zero_grad()
        F.cross_entropy(network(inputs[batch]), targets[batch]).backward()
        step.step()
    return network


def largest_difference(network, other):
    return max((p - q).abs().max().item() for p, q in zip(network.parameters(), other.parameters(), strict=True))


# Rounding is all that may differ, but in single precision Adam blows it up wherever a gradient is all but zero: after
# 200 steps of modular addition, torch's own fused and unfused Adam are 0.07 apart. In double precision it shows whether
# the six are the same computation; in single precision for as long as rounding stays rounding.
@pytest.mark.parametrize(
    ("task", "dtype", "steps", "tolerance"),
    [
        ("ising", torch.float64, 60, 1e-10),
        ("mod_add", torch.float64, 200, 1e-10),
        ("ising", torch.float32, 50, 1e-5),
        ("mod_add", torch.float32, 10, 1e-5),
    ],
)
@pytest.mark.parametrize("decays", [[3e-5] * 6, [0, 1e-4, 1e-3, 0.1, 0, 3e-3]], ids=["one decay", "mixed decays"])
def test_six_together_equal_each_one_alone(task, dtype, steps, tolerance, decays):
    stack = train(task, range(6), decays, steps, dtype=dtype)
    for r, network in enumerate(stack.networks):
        start = build(task, r).to(dtype)
        assert largest_difference(network, start) > steps * RATES[task] / 5  # it did learn
        assert largest_difference(network, train_alone(task, r, decays[r], steps, dtype)) < tolerance
        alone = train(task, [r], decays, steps, dtype=dtype).networks[0]
        assert largest_difference(network, alone) < tolerance


@pytest.mark.parametrize("task", TASKS)
def test_six_together_equal_one_alone_at_the_settings_of_the_task(task, tmp_path, monkeypatch):
    """In single precision, on the real batches: a replica alone is rounded almost as it is among others."""
    monkeypatch.chdir(tmp_path)

    def trained(*overrides):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            small = ["datamodule.snapshots=40", "datamodule.steps=2000"] if task == "ising" else []
            config = compose("train", [f"task={task}", "run_dir=.", "callbacks=base", *small, *overrides])
        config = OmegaConf.to_container(config, resolve=True)
        module, data, _ = build_run(config, replicas(config))
        optimizer, steps = module.configure_optimizers(), 0
        while steps < 200:
            for batch in list(data.train_dataloader())[: 200 - steps]:
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
                steps += 1
        return module.stack.networks

    six = trained("init_scale=[0.1,1,10]", "seed=[0,1]")
    for i, init_scale in enumerate((0.1, 1, 10)):
        alone = trained(f"init_scale={init_scale}", "seed=1")[0]
        assert largest_difference(six[2 * i + 1], alone) < 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_do_not_matter(task):
    decays = dict.fromkeys(range(6), 1e-3)
    together = train(task, [4, 2, 0], decays, steps=20).networks[1]
    others = train(task, [1, 2, 5], decays, steps=20).networks[1]
    for mine, theirs in zip(together.parameters(), others.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("optimizer", [optimizers.Adam, optimizers.AdamW, optimizers.SGD])
def test_a_broken_neighbour_leaves_the_others_bit_identical(task, bad, optimizer):
    decays = {0: 1e-3, 1: 0.0, 2: 1e-2}
    healthy = train(task, range(3), decays, 10, optimizer)
    broken = train(task, range(3), decays, 10, optimizer, scales={0: 1.0, 1: bad, 2: 1.0})
    assert not all(p.isfinite().all() for p in broken.networks[1].parameters())
    for r in (0, 2):
        for mine, theirs in zip(healthy.networks[r].parameters(), broken.networks[r].parameters(), strict=True):
            assert torch.equal(mine, theirs)


# What cannot be stacked


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ReplicaStack([])


def test_different_networks_are_refused():
    with pytest.raises(ValueError, match="same parameter"):
        ReplicaStack([ModularMLP(11, [4]), ModularMLP(11, [5])])
    with pytest.raises(ValueError, match="same parameter"):
        ReplicaStack([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)])


def test_buffers_are_refused_with_a_reason_unless_alone():
    networks = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"batch normalisation.*one replica at a time"):
        ReplicaStack(networks)
    assert ReplicaStack(networks[:1])(torch.randn(1, 5, 2)).shape == (1, 5, 3)


# From seeds to replicas, as train.py builds them


def replica(**changes):
    seeds = {"seed_init": 0, "seed_data": 0, "seed_order": 0}
    return {"init_scale": 1.0, "seed": 0, "weight_decay": 0.0, **seeds, **changes}


MLP = {"_target_": "lit_grok.networks.ModularMLP", "P": 11, "hidden": [8]}


def test_initialisation_depends_on_the_own_init_seed_alone():
    ours = replica(seed_init=5, init_scale=3.0)
    alone = build_stack(MLP, [ours]).networks[0]
    torch.rand(7)  # whatever was drawn before
    many = build_stack(MLP, [replica(seed_init=1), replica(seed_init=2, seed=9), ours]).networks[2]
    other_streams = build_stack(MLP, [ours | {"seed": 3, "seed_data": 4, "seed_order": 6}]).networks[0]
    for other in (many, other_streams):
        assert all(map(torch.equal, alone.parameters(), other.parameters()))
    different = build_stack(MLP, [ours | {"seed_init": 0}]).networks[0]
    assert not torch.equal(next(alone.parameters()), next(different.parameters()))
    small = build_stack(MLP, [ours | {"init_scale": 1.0}]).networks[0]
    assert all(torch.equal(p, 3 * q) for p, q in zip(alone.parameters(), small.parameters(), strict=True))


def test_building_keeps_the_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_stack(MLP, [replica(seed_init=5)])
    assert torch.equal(torch.rand(3), expected)


def two_threads(replicas=6):
    return ReplicaStack([nn.Linear(1, 1) for _ in range(replicas)], threads=2)


def test_each_keeps_the_order_and_the_calling_thread_is_one_of_the_threads():
    both_are_there = threading.Barrier(2, timeout=30)

    def where(r):
        if r < 2:
            both_are_there.wait()
        return r, threading.current_thread()

    numbers, threads = zip(*two_threads().each(where, [4, 0, 1, 3]), strict=True)
    assert numbers == (4, 0, 1, 3)
    assert threading.current_thread() in threads
    assert len(set(threads)) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_each_raises_what_the_first_replica_raised_and_can_be_called_again(threads):
    stack = ReplicaStack([nn.Linear(1, 1) for _ in range(6)], threads)

    def fail(r):
        if r >= 2:
            raise ValueError(r)

    with pytest.raises(ValueError, match="2"):
        stack.each(fail)
    assert stack.each(lambda r: r * r) == [0, 1, 4, 9, 16, 25]


def test_each_may_be_called_inside_each():
    stack = two_threads()
    assert stack.each(lambda r: sum(stack.each(lambda s: r * s))) == [15 * r for r in range(6)]


def test_each_leaves_the_number_of_torch_threads():
    stack, before = two_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert set(stack.each(lambda r: torch.get_num_threads())) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
