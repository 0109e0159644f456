"""All analyses of a task together, in real runs."""

import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr

from lit_grok.results import open_run

ANALYSES = {
    "mod_add": {"ipr/mean_ipr", "pruning/compressibility", "weights/gini", "similarity/mean_cka"},
    "ising": {"features/correlation", "pruning/compressibility", "weights/gini", "similarity/mean_cka"},
}


@pytest.fixture
def train(command, monkeypatch):
    """A tiny run with the callbacks of its task."""
    monkeypatch.syspath_prepend(command.folder)

    def run(task, *overrides):
        callbacks = [] if any(o.startswith("callbacks=") for o in overrides) else [f"callbacks={task}"]
        tiny = {"mod_add": command.mod_add, "ising": command.ising}[task]
        return tiny("init_scale=[1,3]", *callbacks, *overrides)

    run.command, run.folder = command, command.folder
    return run


def weights(run_dir):
    return safetensors.torch.load_file(run_dir / "weights.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_all_callbacks_measure_and_change_nothing(train, task):
    plain = weights(train(task, "callbacks=base", "run_dir=plain"))
    run_dir = train(task, "run_dir=all")
    assert equal(weights(run_dir), plain)
    run = open_run(run_dir)
    assert {name.partition("/")[0] for name in ANALYSES[task]} | {"evaluation", "fim_trajectory"} == set(run.children)
    for name in ANALYSES[task]:
        assert run[name].sel(epoch=[0, 1, 4]).notnull().all()


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_resumed_run_has_the_curves_of_one_that_never_stopped(train, task):
    whole = train(task, "run_dir=whole")
    (train.folder / "signalling").touch()
    signal = "+callbacks.signal={_target_:tests.helpers.SignalWhile,epoch:2,number:SIGINT,batch:0}"
    tiny = {"mod_add": train.command.MOD_ADD, "ising": train.command.ISING}[task]
    stopped = train.command(*tiny, "init_scale=[1,3]", f"callbacks={task}", signal, "run_dir=parts")
    assert stopped.code == 130
    (train.folder / "signalling").unlink()
    assert train.command("resume=parts").code == 0
    a, b = open_run(whole), open_run(train.folder / "parts")
    for results in (a, b):  # the command line and the directory differ
        results.attrs.clear()
    xr.testing.assert_identical(a, b)


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_replica_that_diverged_does_not_spoil_the_others(train, task):
    run_dir = train(task, "+callbacks.poison={_target_:tests.helpers.Poison,epoch:2,replica:1}", "log_every=1")
    run = open_run(run_dir)
    for name in ANALYSES[task] - {"similarity/mean_cka"}:
        values = run[name].isel(epoch=-1).values
        assert np.isfinite(values[0]).all(), name
        assert np.isnan(values[1]).all(), name
    assert run.pruning.accuracy.notnull().all("fraction").values.tolist() == [True, False]
    figures = {path.name for path in (run_dir / "figures").iterdir()}
    assert {"pruning.png", "pruning_development.png"} <= figures


def custom(folder, name, body):
    (folder / f"{name}.py").write_text(
        "import numpy as np\nimport torch\nimport xarray as xr\n\nfrom callbacks import AnalysisCallback\n"
        "from lit_grok.measures import weights\n\n\nclass MyCallback(AnalysisCallback):\n"
        f"    def measure(self, network, batch):\n        {body}\n"
    )
    return f"+callbacks.mine._target_={name}.MyCallback"


def test_a_callback_from_outside_the_project(train):
    mine = custom(train.folder, "outside_lab", 'return {"norm": weights.norm(network), "biases": 2}')
    run = open_run(train("mod_add", "callbacks=base", mine, "+callbacks.mine.every=2"))
    assert run.mine.norm.dropna("epoch").epoch.values.tolist() == [0, 2, 4]
    assert (run.mine.biases == 2).all()
    np.testing.assert_allclose(run.mine.norm.isel(epoch=-1), run.evaluation.weight_norm.isel(epoch=-1), rtol=1e-6)


def test_a_name_that_another_callback_has_too_is_in_a_branch_of_its_own(train):
    mine = custom(train.folder, "my_norm", 'return {"weight_norm": weights.norm(network)}')
    run = open_run(train("mod_add", "callbacks=base", mine))
    assert run.evaluation.weight_norm.dropna("epoch").sizes["epoch"] == 5
    assert run.mine.weight_norm.dims == ("replica",)
    np.testing.assert_allclose(run.mine.weight_norm, run.evaluation.weight_norm.isel(epoch=-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("text", 'return {"mine": "many"}', "mine='many' is not a number"),
        ("shape", 'return {"mine": np.ones(3)}', "no names for its dimensions"),
        ("epochs", 'return {"epoch": 1.0}', "mine/epoch: epoch: taken"),
        ("slash", 'return {"a/b": 1.0}', "mine/a/b: a branch and a variable have names of letters"),
        (
            "lengths",
            'return {n: xr.DataArray(np.ones(k), dims="part") for n, k in (("one", 2), ("two", 3))}',
            "mine/two: its dimension part has the length 3, that of mine/one has 2",
        ),
    ],
)
def test_a_wrong_return_value_is_named_with_its_callback_and_epoch(train, name, body, message):
    mine = custom(train.folder, f"my_{name}", f"if network.output.bias.any(): {body}\n        return {{}}")
    with pytest.raises(ValueError, match=message) as error:
        train("mod_add", "callbacks=base", mine, "+callbacks.mine.every=1")
    assert error.value.__notes__ == ["(raised in MyCallback at epoch 1)"]


def test_a_callback_that_raises_stops_the_run_which_can_be_resumed(train, monkeypatch):
    mine = custom(train.folder, "my_bug", "assert not network.output.bias.any()\n        return {'mine': 1.0}")
    with pytest.raises(AssertionError) as error:
        train("mod_add", "callbacks=base", mine, "+callbacks.mine.every=1")
    assert error.traceback[-1].path.name == "my_bug.py"
    assert error.value.__notes__ == ["(raised in MyCallback at epoch 1)"]
    assert open_run(train.folder / "run").evaluation.test_accuracy.epoch.values.tolist() == [0, 1]
    custom(train.folder, "my_bug", "return {'mine': 1.0}")
    monkeypatch.delitem(sys.modules, "my_bug")
    assert train.command("resume=run").code == 0
    assert open_run(train.folder / "run").mine.mine.notnull().all()


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_the_generic_callbacks_fit_every_task(train, task):
    run = open_run(train(task, "callbacks=generic", "run_dir=generic"))
    assert set(run.children) == {"evaluation", "pruning", "weights", "fim_trajectory", "similarity"}
