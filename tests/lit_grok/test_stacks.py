"""``replicas_at_once``: stacks one after another give what one stack gives."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import lit_grok

THREE = ("init_scale=[0.5,1,10]", "seed=0:2", "callbacks=mod_add", "callbacks.fim_trajectory.inputs=20")


def trees_are_equal(one, other, but=()):
    assert set(one.children) == set(other.children)
    for branch in [name for name in one.children if name not in but]:
        a, b = one[branch].to_dataset(inherit=False), other[branch].to_dataset(inherit=False)
        assert set(a.data_vars) == set(b.data_vars)
        for name in a.data_vars:
            assert a[name].dims == b[name].dims
            assert np.array_equal(a[name].values, b[name].values, equal_nan=True), f"{branch}/{name}"
        assert a.attrs == b.attrs
    for name in ("status", "t_train", "t_test", "epochs"):
        assert np.array_equal(one[name].values, other[name].values, equal_nan=one[name].dtype.kind == "f"), name


def test_stacks_give_what_one_stack_gives(command):
    together = command.mod_add(*THREE, "run_dir=together")
    in_turn = command.mod_add(*THREE, "run_dir=in_turn", "replicas_at_once=4")
    one, other = lit_grok.open_run(together), lit_grok.open_run(in_turn)
    trees_are_equal(one, other, but=["similarity"])  # which compares those of a stack
    assert one.attrs["task"] == other.attrs["task"]
    a, b = (safetensors.torch.load_file(run / "weights.safetensors") for run in (together, in_turn))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    scales = [record["init_scale"] for record in json.loads((in_turn / "summary.json").read_text())]
    assert scales == [0.5, 0.5, 1, 1, 10, 10]
    assert {p.name for p in (in_turn / "stacks").iterdir()} == {"000", "001"}
    assert {p.name for p in (in_turn / "figures").glob("*.png")} >= {
        "grok_time.png",
        "pruning.png",
        "ipr_development.png",
    }
    assert not (in_turn / "stacks/000/figures").exists()
    network = lit_grok.load_network(in_turn, init_scale=10, seed=1)
    wanted = lit_grok.load_network(together, init_scale=10, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), wanted.parameters(), strict=True))


def test_stacks_go_on_where_they_were_stopped_and_further(command):
    together = command.mod_add("seed=0:3", "epochs=6", "run_dir=together")
    in_turn = command.mod_add("seed=0:3", "run_dir=in_turn", "replicas_at_once=2")
    (in_turn / "summary.json").unlink()
    (in_turn / "stacks/001/summary.json").unlink()  # as a kill would leave it
    found = command("resume=in_turn", "epochs=6")
    assert found.code == 0, found.err
    assert found.out.count("going on from in_turn/stacks/") == 2
    trees_are_equal(lit_grok.open_run(together), lit_grok.open_run(in_turn))
    assert yaml.safe_load((in_turn / "config.yaml").read_text())["replicas_at_once"] == 2
    again = command("resume=in_turn")
    assert again.code == 0
    assert again.out.count("is complete") == 2


def test_what_fits_at_once_is_not_divided(command):
    run = command.mod_add("seed=0:2", "replicas_at_once=2")
    assert not (run / "stacks").exists()
    run = command.mod_add("seed=0:2", "replicas_at_once=auto", "run_dir=auto")
    assert not (run / "stacks").exists()


def test_auto_is_what_memory_holds(command, monkeypatch):
    from callbacks import cost

    parameters = 22 * 16 + 16 + 16 * 11 + 11
    monkeypatch.setattr(cost, "_bytes", lambda data: 0)
    free = iter([int(2.6 / 0.8 * 4 * cost.COPIES * parameters)])
    monkeypatch.setattr(cost, "_free_memory", lambda trainer: next(free, 10**10))
    run = command.mod_add("seed=0:5", "replicas_at_once=auto")
    sizes = [len(json.loads((p / "summary.json").read_text())) for p in sorted((run / "stacks").iterdir())]
    assert sizes == [2, 2, 1]


def test_a_dry_run_says_how_many_stacks(command):
    found = command(*command.MOD_ADD, "seed=0:5", "replicas_at_once=2", "dry_run=true")
    assert found.code == 0, found.err
    assert "5 replicas in 3 stacks of at most 2" in found.out
    assert "replicas    2" in found.out
    assert not (command.folder / "runs").exists()


@pytest.mark.parametrize("value", ["0", "many", "1.5"])
def test_other_numbers_are_refused(command, value):
    found = command(*command.MOD_ADD, f"replicas_at_once={value}")
    assert found.code == 2
    assert "replicas_at_once" in found.err
