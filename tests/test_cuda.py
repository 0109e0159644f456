"""What only a CUDA device can show; skipped where there is none."""

import copy
from functools import partial

import pytest
import torch

from datamodules import ModularArithmeticDataModule
from lit_grok.modules import LitIsingCNN, LitModularArithmetic
from lit_grok.networks import IsingCNN, ModularMLP
from lit_grok.optimizers import SGD, Adam, AdamW
from lit_grok.replicas import ReplicaStack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIMIZERS = [partial(Adam, lr=5e-3), partial(AdamW, lr=5e-3), partial(SGD, lr=0.05)]


def trained(task: str, optimizer, device: str, epochs: int, way: str) -> torch.Tensor:
    """Weights (R, D) after some epochs of three replicas with weight decays of their own."""
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
    for _ in range(epochs):
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_graph_trains_as_its_steps_do_to_the_bit(task, optimizer):
    stepwise, graph = (trained(task, optimizer, "cuda", 6, way) for way in ("step", "epoch"))
    assert torch.equal(stepwise, graph)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_the_device_changes_rounding_only(task, optimizer):
    cpu, cuda = (trained(task, optimizer, device, 2, "epoch") for device in ("cpu", "cuda"))
    torch.testing.assert_close(cpu, cuda, rtol=1e-3, atol=1e-3)
