import json
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

import lit_grok
from callbacks import AnalysisCallback, AnalysisError
from callbacks.base import _array, _join, save_figures
from lit_grok.modules import LitClassifier
from tests.helpers import Constant

VANDAL = "+callbacks.vandal._target_=tests.helpers.Vandal"
CONSTANT = "+callbacks.constant._target_=tests.helpers.Constant"
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")


def measured(run, name="constant/number", replica=0):
    return run[name].isel(replica=replica).dropna("epoch").epoch.values.tolist()


def same(run, other, names=CURVES):
    assert (run / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    mine, theirs = (lit_grok.open_run(r).evaluation for r in (run, other))
    for name in names:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


# When


def test_every():
    assert [e for e in range(30) if Constant(every=10).is_due(e)] == [0, 10, 20]
    assert not any(Constant().is_due(e) for e in range(100))


@pytest.mark.parametrize("per_decade", [1, 2, 3, 10])
def test_per_decade_is_evenly_spaced_on_a_logarithmic_axis(per_decade):
    exact = {0} | {round(10 ** (k / per_decade)) for k in range(4 * per_decade + 1)}
    assert {e for e in range(10_001) if Constant(per_decade=per_decade).is_due(e)} == exact
    assert {0, 1, 10, 100, 1000, 10_000} <= exact


@pytest.mark.parametrize("options", [{"every": 0}, {"every": -1}, {"per_decade": 0}, {"split": "all"}])
def test_impossible_cadences(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Constant.{name}={value}: "):
        Constant(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["every=2"], [0, 2, 4, 5]),  # before the first step, on the cadence, at the end
        (["every=5"], [0, 5]),  # and not twice where the end is on the cadence
        (["per_decade=2"], [0, 1, 3, 5]),
        (["every=100"], [0, 5]),
    ],
)
def test_measured_at_the_start_on_the_cadence_and_at_the_end(command, options, expected):
    run = command.mod_add("epochs=5", CONSTANT, *(f"+callbacks.constant.{o}" for o in options))
    results = lit_grok.open_run(run)
    assert measured(results) == expected
    assert results.constant.epoch.values.tolist() == expected  # an axis of its own
    assert results.evaluation.epoch.values.tolist() == [0, 1, 2, 3, 4, 5]


def test_without_a_cadence_once_at_the_end(command):
    branch = lit_grok.open_run(command.mod_add(CONSTANT, "seed=0:2")).constant
    assert branch.number.dims == ("replica",)
    assert branch.number.values.tolist() == [1.5, 1.5]
    assert "epoch" not in branch.coords


def test_nothing_is_measured_twice_when_a_run_goes_on(command, monkeypatch):
    # epochs 0 … 4, then 4 … 6 of the same run: the state of each callback goes with the checkpoint
    run = command.mod_add(CONSTANT, "+callbacks.constant.every=1")
    calls = []
    monkeypatch.setattr(Constant, "measure", lambda self, *_: calls.append(1) or {"number": 2.5})
    assert command(f"resume={run}", "epochs=6").code == 0
    values = lit_grok.open_run(run).constant.number.isel(replica=0)
    assert values.values.tolist() == [1.5] * 5 + [2.5] * 2
    assert len(calls) == 2


# An analysis never changes the training


@pytest.mark.parametrize("seeds", ["seed=3", "seed=0:3"])
@pytest.mark.parametrize("split", ["test", "train"])
def test_a_destructive_analysis_changes_nothing(command, seeds, split):
    plain = command.mod_add("run_dir=plain", seeds, "datamodule.shuffle=true")
    ruined = command.mod_add(
        *("run_dir=ruined", seeds, "datamodule.shuffle=true", VANDAL),
        *("+callbacks.vandal.every=1", f"+callbacks.vandal.split={split}"),
    )
    same(plain, ruined)
    assert len(measured(lit_grok.open_run(ruined), "vandal/noise")) == 5  # it did run


def test_a_destructive_analysis_changes_nothing_in_ising(command):
    plain = command.ising("run_dir=plain", "init_scale=[1,3]")
    ruined = command.ising("run_dir=ruined", "init_scale=[1,3]", VANDAL, "+callbacks.vandal.every=1")
    same(plain, ruined)


# Where the numbers go


class Shapes(AnalysisCallback):
    def measure(self, network, batch):
        inputs, targets = batch
        assert not network.training
        assert len(inputs) == len(targets)
        return {
            "count": torch.tensor(len(inputs)),
            "power": xr.DataArray(
                np.arange(3.0),
                dims="frequency",
                coords={"frequency": [1, 2, 4]},
                attrs={"long_name": "power of a mode", "units": "1/frequency"},
            ),
            "flag": True,
        }


def test_what_measure_may_return(command, monkeypatch):
    monkeypatch.setattr("tests.helpers.Constant.measure", Shapes.measure)
    run = command.mod_add(CONSTANT, "+callbacks.constant.every=4", "+callbacks.constant.split=train", "seed=0:2")
    branch = lit_grok.open_run(run).constant
    assert branch["count"].values[:, 0].tolist() == [84, 84]  # ⌊0.7 · 121⌋, all of them
    assert branch.power.dims == ("replica", "epoch", "frequency")
    assert branch.power.sel(frequency=4, epoch=4).values.tolist() == [2, 2]
    assert branch.flag.values[:, 0].tolist() == [1, 1]
    assert branch.power.attrs == {"long_name": "power of a mode", "units": "1/frequency"}
    assert branch.flag.attrs == {"long_name": "flag"}


def test_scalars_reach_the_loggers_at_their_epoch(command):
    run = command.mod_add(CONSTANT, "+callbacks.constant.every=2", "logger=csv", "seed=0:2")
    rows = (run / "csv" / "init_scale=1_seed=1.csv").read_text().splitlines()
    names = rows[0].split(",")
    column, epochs = names.index("constant/number"), names.index("epoch")
    assert [(r.split(",")[epochs], r.split(",")[column]) for r in rows[1:]] == [
        *[("0", "1.5"), ("1", ""), ("2", "1.5"), ("3", ""), ("4", "1.5")]
    ]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("text", "not a number"), (None, "not a number"), ([1, 2], "not a number"), (1j, "not a real number")],
)
def test_what_is_not_a_measurement(value, complaint):
    with pytest.raises(AnalysisError, match=f"x.*{complaint}"):
        _array("x", value)


def test_arrays_need_names_and_equal_shapes():
    with pytest.raises(AnalysisError, match=r"no names for its dimensions: return xarray.DataArray"):
        _join({0: {"x": _array("x", torch.ones(3))}}, 1)
    arrays = {r: {"x": xr.DataArray(np.ones(2 + r), dims="neuron")} for r in range(2)}
    with pytest.raises(AnalysisError, match="different shape"):
        _join(arrays, 2)


def test_a_replica_that_was_left_out_is_nan():
    joined = _join({1: {"x": _array("x", 2.0)}}, 3)["x"]
    np.testing.assert_array_equal(joined, [np.nan, 2, np.nan])


# Several instances, and errors that say whose


def test_several_instances_of_one_class(command):
    run = command.mod_add(
        *("epochs=4", CONSTANT, "+callbacks.constant.every=2", "logger=csv"),
        *("+callbacks.other._target_=tests.helpers.Constant", "+callbacks.other.every=3"),
    )
    results = lit_grok.open_run(run)
    assert measured(results, "constant/number") == results.constant.epoch.values.tolist() == [0, 2, 4]
    assert measured(results, "other/number") == results.other.epoch.values.tolist() == [0, 3, 4]
    header = next((run / "csv").iterdir()).read_text().splitlines()[0].split(",")
    assert {"constant/number", "other/number"} <= set(header)
    states = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in states if key.startswith("Constant")]) == 2


class TwoCadences(AnalysisCallback):
    pass


def test_state_keys_tell_instances_apart():
    one, other = TwoCadences(every=1), TwoCadences(every=1)
    assert one.branch == "two_cadences"
    one.branch = "slow"
    assert one.state_key != other.state_key


@pytest.mark.parametrize("key", ["my-norm", "seed", "epoch", "status"])
def test_a_key_that_cannot_name_a_branch_is_refused_in_one_sentence(command, key):
    result = command(*command.MOD_ADD, "run_dir=run", f"+callbacks.{key}._target_=tests.helpers.Constant")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(f"error: callbacks.{key}: the results have ")
    assert not (command.folder / "run").exists()


def test_a_failure_names_the_callback_and_the_epoch(command):
    (command.folder / "failing").touch()
    overrides = ("+callbacks.fails._target_=tests.helpers.FailsWhile", "+callbacks.fails.epoch=3")
    with pytest.raises(RuntimeError, match="no such luck") as failure:
        command(*command.MOD_ADD, *overrides, "+callbacks.fails.every=1")
    assert failure.value.__notes__ == ["(raised in FailsWhile at epoch 3)"]


def test_nan_is_never_silent(command, monkeypatch):
    monkeypatch.setattr("tests.helpers.Constant.measure", lambda *_: {"number": float("nan")})
    result = command(*command.MOD_ADD, "run_dir=run", CONSTANT, "+callbacks.constant.every=1", "seed=0:2")
    assert result.code == 0
    assert (
        result.err.count("callbacks.constant, epoch 0: number is NaN (init_scale=1 seed=0; init_scale=1 seed=1)") == 1
    )
    assert result.err.count("number is NaN") == 1  # said once


def test_measure_must_be_defined():
    with pytest.raises(NotImplementedError, match=r"TwoCadences must say what it measures"):
        TwoCadences().measure(None, None)


def test_a_class_from_outside_the_project(command, monkeypatch):
    (command.folder / "my_lab.py").write_text(
        "from callbacks import AnalysisCallback\n"
        "class Mine(AnalysisCallback):\n"
        "    def measure(self, network, batch):\n"
        "        return {'norm': sum(p.square().sum() for p in network.parameters()).sqrt()}\n"
    )
    monkeypatch.syspath_prepend(command.folder)
    run = command.mod_add("+callbacks.mine._target_=my_lab.Mine", "+callbacks.mine.every=2")
    results = lit_grok.open_run(run)
    np.testing.assert_allclose(results.mine.norm, results.evaluation.weight_norm.sel(epoch=[0, 2, 4]), rtol=1e-6)
    assert json.loads((run / "summary.json").read_text())[0]["epochs"] == 4


def test_a_drawing_that_fails_costs_a_warning_and_nothing_else(command):
    run = ("run_dir=run", "+callbacks.bad._target_=tests.helpers.Undrawable", "+callbacks.bad.every=1")
    result = command(*command.MOD_ADD, *run)
    assert result.code == 0, result.err
    assert result.err.count("was not drawn") == 1
    assert "figures/bad was not drawn (KeyError: 'no such curve')" in result.err
    assert lit_grok.open_run(command.folder / "run").bad.number.notnull().all()
    assert (command.folder / "run" / "summary.json").exists()


class Drawn(Constant):
    """Draws the whole run once, and notes what was there by then."""

    calls: ClassVar[list] = []

    def draw(self, run):
        there = {path.name for path in Path("run").iterdir()}
        self.calls.append((run.constant.number.shape, there))
        return {"": Figure(figsize=(1, 1)), "again": Figure(figsize=(1, 1))}


def test_figures_are_drawn_once_for_all_replicas_when_everything_is_written(command, monkeypatch):
    monkeypatch.setattr("tests.helpers.Constant", Drawn)
    monkeypatch.setattr(Drawn, "calls", [])
    run = command.mod_add(CONSTANT, "seed=0:3", "~callbacks.grok_time")
    ((shape, there),) = Drawn.calls
    assert shape == (3,)
    assert {"results.nc", "weights.safetensors", "summary.json"} <= there
    assert "figures" not in there
    figures = sorted(path.name for path in (run / "figures").iterdir())
    assert figures == ["constant.pdf", "constant.png", "constant_again.pdf", "constant_again.png"]


class Wandb(WandbLogger):
    """Keeps what it is given."""

    def __init__(self):
        self.summary, self.points, self.images = {}, [], []

    @property
    def experiment(self):
        return SimpleNamespace(summary=self.summary)

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))

    def log_image(self, key, images):
        self.images.append((key, images))


def test_what_is_measured_once_goes_to_the_summary_of_wandb_and_is_no_curve():
    first, second = Wandb(), Wandb()
    module = SimpleNamespace(loggers=[first, second])
    LitClassifier.log_replicas(module, {"constant/number": np.array([1.5, 2.5])}, 4, once=True)
    assert (first.points, second.points) == ([], [])
    assert (first.summary, second.summary) == ({"constant/number": 1.5}, {"constant/number": 2.5})
    LitClassifier.log_replicas(module, {"constant/number": np.array([3.5, 4.5])}, 4)
    assert second.points == [(4, {"epoch": 4, "constant/number": 4.5})]
    assert second.summary == {"constant/number": 2.5}


@pytest.mark.parametrize(("cadence", "once"), [({}, [True, True]), ({"every": 2}, [False, False, False])])
def test_only_what_has_no_cadence_is_logged_as_measured_once(command, monkeypatch, cadence, once):
    logged, log_replicas = [], LitClassifier.log_replicas

    def note(self, scalars, epoch, once=False):
        if any(name.startswith("constant/") for name in scalars):
            logged.append(once)
        log_replicas(self, scalars, epoch, once)

    monkeypatch.setattr(LitClassifier, "log_replicas", note)
    monkeypatch.setattr("tests.helpers.Constant.measure_final", lambda *_: {} if cadence else {"final": 2.0})
    command.mod_add(CONSTANT, *(f"+callbacks.constant.{k}={v}" for k, v in cadence.items()))
    assert logged == once


def test_figures_go_to_wandb_with_the_first_replica(tmp_path):
    callback, loggers = Drawn(), [Wandb(), Wandb()]
    callback.draw = lambda _: {"": Figure(figsize=(1, 1)), "again": Figure(figsize=(1, 1))}
    save_figures(xr.DataTree(), [callback], tmp_path, loggers)
    assert loggers[0].images == [
        (f"drawn/{name}", [str(tmp_path / "figures" / file)])
        for name, file in (("figure", "drawn.png"), ("again", "drawn_again.png"))
    ]
    assert loggers[1].images == []


def test_labelled_numbers_are_logged_and_long_arrays_are_not(command, monkeypatch):
    arrays = {
        "by_set": xr.DataArray([1.0, 2.0], dims="set", coords={"set": ["a", "b"]}),
        "by_neuron": xr.DataArray(np.ones(5), dims="neuron"),
    }
    monkeypatch.setattr("tests.helpers.Constant.measure", lambda *_: arrays)
    run = command.mod_add(CONSTANT, "+callbacks.constant.every=2", "logger=csv")
    header = next((run / "csv").iterdir()).read_text().splitlines()[0].split(",")
    assert [name for name in header if name.startswith("constant/")] == ["constant/by_set/a", "constant/by_set/b"]


def test_an_analysis_is_given_copies_on_the_cpu(command, monkeypatch):
    given = []

    class Elsewhere(Constant):
        def measure(self, network, batch):
            given.append((next(network.parameters()), *batch))
            return super().measure(network, batch)

        def measure_replicas(self, module, batch):
            own = {part.data_ptr() for part in (*batch, *module.stack.stacked().values())}
            values = super().measure_replicas(module, batch)
            assert not own & {tensor.data_ptr() for tensor in given[-1]}
            return values

    monkeypatch.setattr("tests.helpers.Constant", Elsewhere)
    command.mod_add(CONSTANT, "+callbacks.constant.every=2")
    assert len(given) == 3
    assert {tensor.device.type for tensors in given for tensor in tensors} == {"cpu"}


@pytest.mark.parametrize("epochs", [1, 2, pytest.param(3, marks=pytest.mark.rendered)])
def test_a_run_of_any_length_ends_well_with_all_analyses(command, epochs):
    command.mod_add("callbacks=mod_add", f"epochs={epochs}", "run_dir=mod_add")


@pytest.mark.parametrize("epochs", [1, 2, 199, 200, 201, pytest.param(401, marks=pytest.mark.rendered)])
def test_an_ising_run_of_any_length_ends_well_with_all_analyses(command, epochs):
    command.ising("callbacks=ising", f"epochs={epochs}", "log_every=100", "batch_size=20")


def test_other_labels_for_other_replicas_are_refused():
    arrays = {r: {"x": xr.DataArray([1.0, 2.0], {"layer": ["a", f"b{r}"]}, "layer")} for r in range(2)}
    with pytest.raises(AnalysisError, match="x has other labels for different replicas"):
        _join(arrays, 2)


def test_the_first_dimension_is_the_replica(command, monkeypatch):
    wrong = xr.DataArray(np.ones((2, 2)), dims=("layer", "thing"))
    monkeypatch.setattr("tests.helpers.Constant.measure_replicas", lambda *_: {"x": wrong})
    with pytest.raises(AnalysisError, match="x: its first dimension is layer, and must be replica"):
        command(*command.MOD_ADD, "run_dir=run", "seed=0:2", CONSTANT)


def test_one_figure_need_not_have_a_name(command, monkeypatch):
    monkeypatch.setattr("tests.helpers.Constant.draw", lambda self, run: Figure(), raising=False)
    assert (command.mod_add(CONSTANT) / "figures" / "constant.png").exists()
