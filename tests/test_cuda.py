"""Training on a CUDA device, and on the simulated one where there is none."""

import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

import lit_grok
from datamodules import ModularArithmeticDataModule
from lit_grok.modules import LitIsingCNN, LitModularArithmetic
from lit_grok.networks import IsingCNN, ModularMLP
from lit_grok.optimizers import SGD, Adam, AdamW
from lit_grok.replicas import ReplicaStack
from tests.conftest import Command
from tests.simulated_gpu import NAME

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIMIZERS = [partial(Adam, lr=5e-3), partial(AdamW, lr=5e-3), partial(SGD, lr=0.05)]


def trained(task: str, optimizer, device: str, epochs: int, way: str) -> torch.Tensor:
    """Weights (R, D) after some epochs of three replicas with weight decays of their own.

    After the fourth the learning rate is halved, after the fifth the order of the examples is reversed in their place.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    kind, make = (
        (LitModularArithmetic, lambda: ModularMLP(11, [64]))
        if task == "mod_add"
        else (LitIsingCNN, lambda: IsingCNN(8))
    )
    described = [{"init_scale": 1, "seed": r, "weight_decay": decay} for r, decay in enumerate((0.0, 1e-3, 1e-2))]
    options = {"classes": 11 if task == "mod_add" else 2, "generalisation": 0.9}
    module = kind(ReplicaStack([make() for _ in described]), replicas=described, optimizer=optimizer, **options)
    if task == "mod_add":
        data = ModularArithmeticDataModule(P=11, batch_size=32, data_seeds=[0, 1, 2], order_seeds=[0, 1, 2])
        data.setup()
        inputs, targets = data.split("train")
    else:
        inputs, targets = torch.randn(3, 90, 8, 8).sign(), torch.randint(0, 2, (3, 90))
    module, inputs, targets = module.to(device), inputs.to(device), targets.to(device)
    adam = module.configure_optimizers()
    for epoch in range(epochs):
        if epoch == 4:
            adam.param_groups[0]["lr"] /= 2
        if epoch == 5:
            inputs.copy_(inputs.flip(1))
            targets.copy_(targets.flip(1))
        if way == "epoch":
            assert module.train_epoch(inputs, targets, 32, adam)
            continue
        for batch in zip(inputs.split(32, 1), targets.split(32, 1), strict=True):
            loss = module.training_step(batch, 0)
            adam.zero_grad()
            loss.backward()
            adam.step()
    copy.deepcopy(module)
    return module.stack.flat.detach().cpu()


@pytest.fixture(params=[pytest.param("cuda", marks=CUDA), NAME])
def device(request):
    """Name of a device that takes its steps as CUDA does."""
    if request.param == NAME:
        request.getfixturevalue("gpu")
    return request.param


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_graph_trains_as_its_steps_do_to_the_bit(device, task, optimizer):
    stepwise, graph = (trained(task, optimizer, device, 8, way) for way in ("step", "epoch"))
    assert torch.equal(stepwise, graph)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_the_device_changes_rounding_only(device, task, optimizer):
    cpu, cuda = (trained(task, optimizer, device, 2, "epoch") for device in ("cpu", device))
    torch.testing.assert_close(cpu, cuda, rtol=1e-3, atol=1e-3)


#: The least of every task that has all of its parts.
RUNS = {
    "mod_add": Command.MOD_ADD[:3],
    "ising": Command.ISING[:7],
    "prime": Command.PRIME[:5],
    "mnist": (
        *("task=mnist", "network.hidden=[8,8]", "datamodule.train_size=100", "datamodule.test_size=200"),
        "batch_size=20",
    ),
    "polygons": ("task=polygons", "symbols=2", "network.classes=13", "side=16", "network.width=2", "batch_size=4"),
}


@pytest.mark.parametrize("task", RUNS)
def test_a_run_on_a_gpu_finds_what_one_on_the_cpu_does(gpu, command, task):
    runs = {}
    replicas = "seed=0" if task == "polygons" else "seed=0:2"  # batch normalisation is not stacked
    for kind in ("cpu", "gpu"):
        gpu.watch()
        result = command(
            *RUNS[task], replicas, "epochs=4", "log_every=1", "logger=none", f"accelerator={kind}", f"run_dir={kind}"
        )
        assert result.code == 0, result.err
        assert "was not drawn" not in result.err
        assert bool(gpu.operations) is (kind == "gpu")
        runs[kind] = lit_grok.open_run(kind)
    assert {node.path for node in runs["cpu"].subtree} == {node.path for node in runs["gpu"].subtree}
    for node in runs["cpu"].subtree:
        for name, values in node.data_vars.items():
            found = runs["gpu"][node.path][name].values
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found, values.values, rtol=1e-3, atol=1e-4, err_msg=f"{node.path}/{name}")
            else:
                assert (found == values.values).all(), (node.path, name)


@pytest.mark.parametrize("task", RUNS)
def test_a_step_on_a_gpu_waits_for_nothing(gpu, command, task):
    """Beside the order of an epoch, which comes from generators of the CPU; and an epoch is a replay, not launches."""
    quiet = "callbacks=base", "log_every=1000", "checkpoint_every=1000", "logger=none", "accelerator=gpu"
    counts, first = [], 12 if task == "prime" else 3  # where a warm-up of ten steps changes the rate
    for epochs in (first, first + 3):
        gpu.watch()
        result = command(*RUNS[task], *quiet, f"epochs={epochs}", f"run_dir={epochs}")
        assert result.code == 0, result.err
        counts.append((Counter(gpu.waits), gpu.recorded, gpu.replayed, gpu.operations))
    (few, *_, least), (many, recorded, replayed, most) = counts
    shuffled = task in ("mnist", "polygons")
    assert many - few == ({"_copy_from": 3} if shuffled else {})
    assert (recorded, replayed) == (1, first + 2 if task != "prime" else 4)
    assert most - least <= (60 if shuffled else 0)


#: What is measured after every epoch, and how often that waits at most.
MEASURED = [
    *((task, "callbacks=base", "log_every=1", 16) for task in ("mod_add", "prime", "mnist")),
    ("mod_add", "callbacks=base", "+callbacks.fim={_target_: callbacks.FIMTrajectoryCallback, every: 1}", 20),
]


@pytest.mark.parametrize(("task", "callbacks", "option", "most"), MEASURED)
def test_many_replicas_are_measured_by_as_many_operations_as_one(gpu, command, task, callbacks, option, most):
    counts = {}
    for replicas in (1, 5):
        for epochs in (3, 5):
            gpu.watch()
            result = command(
                *(*RUNS[task], f"seed=0:{replicas}", f"epochs={epochs}", callbacks, option),
                *("logger=none", "accelerator=gpu", f"run_dir={replicas}_{epochs}"),
            )
            assert result.code == 0, result.err
            counts[replicas, epochs] = len(gpu.waits), gpu.operations
    each = [[b - a for a, b in zip(counts[r, 3], counts[r, 5], strict=True)] for r in (1, 5)]
    (waits, operations), many = each
    assert many[0] == waits <= 2 * most
    assert many[1] <= operations


SGD_MOMENTUM = "optimizer=sgd optimizer.momentum=0.9"


@pytest.mark.parametrize("then", ["gpu", "cpu"])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        *(("mod_add", ""), ("prime", ""), ("mnist", ""), ("polygons", "")),
        *(("mod_add", "optimizer=sgd"), ("mod_add", SGD_MOMENTUM), ("mod_add", "optimizer=adamw")),
    ],
)
def test_a_run_on_a_gpu_goes_on(gpu, command, task, options, then):
    """To the bit there, and up to rounding on the CPU; convolutions of the simulated device are rounded as well."""
    seeds = [0] if task == "polygons" else [0, 1]
    quiet = f"seed={seeds}".replace(" ", ""), "callbacks=base", "logger=none", "accelerator=gpu"
    first = 12 if task == "prime" else 3
    for name, epochs in (("whole", first + 4), ("parts", first)):
        result = command(*RUNS[task], *options.split(), *quiet, f"epochs={epochs}", f"run_dir={name}")
        assert result.code == 0, result.err
    result = command("resume=parts", f"epochs={first + 4}", f"accelerator={then}")
    assert result.code == 0, result.err
    tolerance = 1e-4 if then == "cpu" else 1e-6 if task == "polygons" else 0.0
    for seed in seeds:
        whole, parts = (lit_grok.load_network(name, seed=seed).state_dict() for name in ("whole", "parts"))
        for name, weight in whole.items():
            torch.testing.assert_close(parts[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", ["", "optimizer=sgd", SGD_MOMENTUM])
def test_a_run_on_the_cpu_goes_on_on_a_gpu(gpu, command, options):
    for name, epochs in (("whole", 8), ("parts", 4)):
        quiet = "callbacks=base", "logger=none", "accelerator=cpu", f"epochs={epochs}", f"run_dir={name}"
        assert command(*RUNS["mod_add"], *options.split(), *quiet).code == 0
    assert not gpu.operations
    result = command("resume=parts", "epochs=8", "accelerator=gpu")
    assert result.code == 0, result.err
    assert gpu.replayed
    whole, parts = (lit_grok.load_network(name).state_dict() for name in ("whole", "parts"))
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-4)
