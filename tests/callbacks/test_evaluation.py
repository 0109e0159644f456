import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lit_grok
from datamodules import ModularArithmeticDataModule
from lit_grok.networks import ModularMLP

POISON = ("+callbacks.poison._target_=tests.helpers.Poison", "+callbacks.poison.epoch=2")
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")


def test_curves_are_those_of_the_whole_sets(command):
    run = command.mod_add("init_scale=[1,3]", "seed=4", "epochs=3")
    curves = lit_grok.open_run(run).evaluation.to_dataset()
    assert curves.epoch.values.tolist() == [0, 1, 2, 3]
    data = ModularArithmeticDataModule(P=11, data_seeds=[4])
    data.setup()
    for scale in (1, 3):
        network = lit_grok.load_network(run, init_scale=scale)
        last = curves.sel(init_scale=scale, seed=4, epoch=3)
        for name in ("train", "test"):
            inputs, targets = (part[0] for part in data.split(name))
            logits = network(inputs)
            assert last[f"{name}_loss"].item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
            hits = (logits.argmax(1) == targets).float().mean().item()
            assert last[f"{name}_accuracy"].item() == pytest.approx(hits, rel=1e-6)
        norm = sum(p.double().square().sum() for p in network.parameters()).sqrt().item()
        assert last.weight_norm.item() == pytest.approx(norm, rel=1e-5)


def test_epoch_zero_is_before_the_first_step(command):
    curves = lit_grok.open_run(command.mod_add("seed=5")).evaluation
    torch.manual_seed(5)
    norm = sum(p.square().sum() for p in ModularMLP(11, [16]).parameters()).sqrt().item()
    assert curves.weight_norm.sel(epoch=0).item() == pytest.approx(norm, rel=1e-5)


def test_log_every_is_the_cadence(command):
    curves = lit_grok.open_run(command.mod_add("log_every=3", "epochs=7")).evaluation
    assert curves.epoch.values.tolist() == [0, 3, 6, 7]


# A run that diverges


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_diverging_replica_leaves_the_others_bit_identical(command, task):
    train = getattr(command, task)
    healthy = train("run_dir=healthy", "seed=0:3", "epochs=5")
    sick = train("run_dir=sick", "seed=0:3", "epochs=5", *POISON, "+callbacks.poison.replica=1")
    one, other = (lit_grok.open_run(run).evaluation for run in (healthy, sick))
    for seed in (0, 2):
        for name in CURVES:
            np.testing.assert_array_equal(one[name].sel(seed=seed), other[name].sel(seed=seed))
        pairs = zip(*(lit_grok.load_network(run, seed=seed).parameters() for run in (healthy, sick)), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_a_diverging_replica_keeps_what_was_sound(command):
    short = command.mod_add("run_dir=short", "seed=0:2", "epochs=2")
    result = command(
        *command.MOD_ADD, "run_dir=run", "seed=0:2", "epochs=5", *POISON, "+callbacks.poison.replica=1", "logger=csv"
    )
    assert result.code == 0
    assert result.err.count("seed=1: the weights are not finite at epoch 3: this run has diverged") == 1
    run = command.folder / "run"
    good, bad = json.loads((run / "summary.json").read_text())
    assert bad["status"] == "diverged"
    assert bad["grokked"] is False
    assert good["status"] != "diverged"
    # weights and summary are those of its last sound evaluation, at epoch 2
    last = lit_grok.open_run(run).evaluation.to_dataset().sel(seed=1, epoch=2)
    assert all(bad[name] == last[name].item() for name in CURVES)
    pairs = zip(*(lit_grok.load_network(r, seed=1).parameters() for r in (short, run)), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    np.testing.assert_array_equal(
        lit_grok.open_run(run).evaluation.train_loss.sel(seed=1, epoch=[0, 1, 2]),
        lit_grok.open_run(short).evaluation.train_loss.sel(seed=1),
    )


def test_a_single_diverging_run_stops_with_a_message(command):
    result = command(*command.MOD_ADD, "run_dir=run", "epochs=50", *POISON, "+callbacks.poison.replica=0")
    assert result.code == 0
    assert "has diverged" in result.err
    (record,) = json.loads((command.folder / "run" / "summary.json").read_text())
    assert record["status"] == "diverged"
    assert record["epochs"] == 3  # stopped there
    assert all(p.isfinite().all() for p in lit_grok.load_network(command.folder / "run").parameters())


@pytest.mark.parametrize("scales", ["1e30", "[1,1e30]"])
def test_divergence_before_the_first_step(command, scales):
    result = command(*command.MOD_ADD, "run_dir=run", f"init_scale={scales}")
    assert result.code == 0, result.err
    records = json.loads((command.folder / "run" / "summary.json").read_text())
    assert records[-1]["status"] == "diverged"
    assert records[-1]["t_train"] is None
    network = lit_grok.load_network(command.folder / "run", init_scale=1e30)
    assert next(network.parameters()).abs().max() > 1e28  # its initial weights
    assert [path.name for path in (command.folder / "run" / "figures").glob("*.png")] == ["grok_time.png"]
    assert len(records) == len(lit_grok.open_run(command.folder / "run").status)


def test_other_analyses_skip_a_diverged_replica(command):
    run = command.mod_add(
        *("seed=0:2", *POISON, "+callbacks.poison.replica=0"),
        *("+callbacks.constant._target_=tests.helpers.Constant", "+callbacks.constant.every=1"),
    )
    values = lit_grok.open_run(run).constant.number.values
    np.testing.assert_array_equal(values, [[1.5, 1.5, 1.5, np.nan, np.nan], [1.5] * 5])
