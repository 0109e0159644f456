"""Networks with running statistics: what training does to them, what reads them, and what keeps them."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lit_grok import optimizers
from lit_grok.modules import LitClassifier
from lit_grok.networks import ResNet18
from lit_grok.replicas import ReplicaStack
from lit_grok.results import has_checkpoint, load_network, open_run, read_checkpoint

BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}


def resnet(**options):
    with isolate_rng():
        torch.manual_seed(0)
        return ResNet18(classes=5, width=2, stem="small", **options)


def lit(network, decay=1e-4):
    replicas = [{"init_scale": 1.0, "seed": 0, "weight_decay": decay, "seed_init": 0, "seed_data": 0, "seed_order": 0}]
    adam = lambda parameters, **options: optimizers.Adam(parameters, lr=1e-3, **options)  # noqa: E731
    return LitClassifier(ReplicaStack([network]), replicas=replicas, optimizer=adam, classes=5, generalisation=0.9)


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (24, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 5, (24,), generator=generator)


def states(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_training_is_that_of_a_plain_loop(normalisation, examples):
    """In double precision, where rounding stays rounding."""
    network = resnet(normalisation=normalisation).double()
    plain = copy.deepcopy(network)
    module = lit(network)
    ours = module.configure_optimizers()
    theirs = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=1e-4)
    for step in range(6):
        inputs, targets = (part[8 * (step % 3) : 8 * (step % 3) + 8] for part in examples)
        ours.zero_grad()
        module.training_step((inputs[None], targets[None]), step).backward()
        ours.step()
        module.evaluate(examples[0][None], examples[1][None])  # which must leave no trace
        theirs.zero_grad()
        F.cross_entropy(plain(inputs), targets).backward()
        theirs.step()
    start = resnet(normalisation=normalisation).double().state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=1e-6)
        assert not torch.equal(value, start[name])


def test_a_step_updates_the_running_statistics_and_an_evaluation_reads_them(examples):
    module = lit(resnet())
    network, (inputs, targets) = module.stack.networks[0], (part[None] for part in examples)
    before = states(network)
    module.training_step((inputs, targets), 0)
    after = states(network)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in network.named_buffers()}
    found = module.evaluate(inputs, targets)
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())
    assert network.training
    assert all(layer.training for layer in network.modules())
    plain = copy.deepcopy(network).eval()
    torch.testing.assert_close(found["loss"][0], F.cross_entropy(plain(examples[0]), examples[1]))
    torch.testing.assert_close(module.stack.copy(0)(examples[0]), plain(examples[0]))


def test_an_evaluation_that_fails_leaves_the_training_mode(examples):
    module = lit(resnet())
    with pytest.raises(RuntimeError):
        module.evaluate(torch.zeros(1, 4, 7, 16, 16), examples[1][None, :4])
    assert module.stack.networks[0].training


def test_a_layer_that_drops_neurons_keeps_them_all_in_an_evaluation():
    networks = [nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 5)) for _ in range(2)]
    replicas = [{"init_scale": 1.0, "seed": s, "weight_decay": 0.0} for s in range(2)]
    module = LitClassifier(
        ReplicaStack(networks), replicas=replicas, optimizer=optimizers.Adam, classes=5, generalisation=0.9
    )
    inputs, targets = torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.long)
    assert torch.equal(module.evaluate(inputs, targets)["loss"], module.evaluate(inputs, targets)["loss"])
    assert not torch.equal(module(inputs), module(inputs))


def test_the_state_of_a_stack_holds_the_buffers_and_loading_reaches_the_network(examples):
    one, other = ReplicaStack([resnet()]), ReplicaStack([resnet()])
    one(examples[0][None])
    assert {name.rpartition("/")[2] for name in one.state_dict()} == {"flat"} | BUFFERS
    other.load_state_dict(one.state_dict())
    assert not torch.equal(other.networks[0].bn1.running_mean, torch.zeros(2))
    for mine, theirs in zip(one.networks[0].buffers(), other.networks[0].buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("change", [copy.deepcopy, lambda stack: stack.double()])
def test_buffers_stay_those_of_the_network(change, examples):
    stack = change(ReplicaStack([resnet()]))
    stack(examples[0][None])
    assert stack.networks[0].bn1.running_mean.dtype == stack.flat.dtype
    for name, values in stack.stacked_buffers().items():
        assert values.data_ptr() == stack.networks[0].get_buffer(name).data_ptr()
        assert torch.equal(values[0], stack.networks[0].get_buffer(name))


def test_group_normalisation_has_no_buffers_and_can_be_stacked(examples):
    networks = [ResNet18(classes=5, width=2, stem="small", normalisation="group") for _ in range(2)]
    stack = ReplicaStack(networks)
    assert stack.stacked_buffers() == {}
    assert list(stack.state_dict()) == ["flat"]
    outputs = stack(torch.stack([examples[0], examples[0].flip(0)]))
    torch.testing.assert_close(outputs[0], networks[0](examples[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1], networks[1](examples[0].flip(0)), rtol=1e-4, atol=1e-5)


def test_a_network_that_diverges_leaves_the_last_finite_statistics(examples):
    module = lit(resnet())
    module(examples[0][None])
    module.mark_diverged(1, torch.zeros(1))
    expected = states(module.stack.networks[0])
    checkpoint = {}
    module(torch.full((1, 24, 16, 16), torch.nan))
    with torch.no_grad():
        module.stack.flat.fill_(torch.nan)
    module.mark_diverged(2, torch.tensor([torch.nan]))
    module.on_save_checkpoint(checkpoint)
    fresh = lit(resnet())
    fresh.on_load_checkpoint(checkpoint)
    for each in (module, fresh):
        weights = each.final_weights()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(values[0], expected[name]) for name, values in weights.items())
    checkpoint["finite_buffers"] = {"bn1.running_mean": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match="finite_buffers: not those of such a network"):
        fresh.on_load_checkpoint(checkpoint)


# A whole run

POLYGONS = (
    *(
        "task=polygons",
        "threads=1",
        "symbols=3",
        "network.classes=17",
        "side=16",
        "network.width=2",
        "batch_size=8",
        "logger=none",
    ),
    *("callbacks=base", "epochs=4", "log_every=1", "seeds.order=3"),
)


def test_a_run_saves_resumes_and_gives_back_the_statistics(command):
    def curves(run):
        return [open_run(command.folder / run).evaluation[name].values for name in ("train_loss", "test_loss")]

    assert command(*POLYGONS, "run_dir=whole").code == 0
    assert command(*POLYGONS, "run_dir=parts", "epochs=2").code == 0
    assert has_checkpoint(command.folder / "parts")
    assert any("running_var" in name for name in read_checkpoint("parts/checkpoints/last.ckpt")["state_dict"])
    result = command("resume=parts", "epochs=4")
    assert result.code == 0, result.err
    for mine, theirs in zip(curves("parts"), curves("whole"), strict=True):
        np.testing.assert_array_equal(mine, theirs)

    network, again = load_network("whole"), load_network("parts")
    assert network.bn1.num_batches_tracked == 4 * 3
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    from datamodules import PolygonsDataModule

    data = PolygonsDataModule(symbols=3, side=16)
    data.setup()
    inputs, targets = (part[0] for part in data.split("test"))
    loss = F.cross_entropy(network.eval()(inputs), targets).item()
    assert loss == pytest.approx(json.loads((command.folder / "whole/summary.json").read_text())[0]["test_loss"])


def test_replicas_with_running_statistics_are_refused_together_and_trained_in_turn(command):
    result = command(*POLYGONS, "seed=0:2", "run_dir=both")
    assert result.code == 2
    assert "train one replica at a time" in result.err
    assert len(result.err.strip().splitlines()) == 1
    result = command(*POLYGONS, "seed=0:2", "epochs=1", "replicas_at_once=1", "run_dir=turns")
    assert result.code == 0, result.err
    assert load_network("turns", seed=1).bn1.num_batches_tracked == 3


def test_replicas_with_group_normalisation_train_together(command):
    result = command(*POLYGONS, "seed=0:2", "network.normalisation=group", "epochs=1", "run_dir=both")
    assert result.code == 0, result.err
    assert open_run("both").evaluation.test_loss.sizes["replica"] == 2
