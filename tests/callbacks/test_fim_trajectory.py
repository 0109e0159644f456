import json
import shutil
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
from matplotlib.figure import Figure

from callbacks import FIMTrajectoryCallback
from datamodules import ModularArithmeticDataModule
from lit_grok.figures.geometry import trajectory
from lit_grok.measures.fisher import fisher_diagonal
from lit_grok.measures.inequality import gini
from lit_grok.measures.trajectory import grokking_period, origin_cosine, step_cosine, step_magnitude
from lit_grok.results import load_network, open_run

VARIANTS = ("classif_logits", "regression")
BOTH = "+callbacks.fim.variants=[classif_logits,regression]"
QUANTITIES = ("step_magnitude", "step_cosine", "origin_cosine")


@pytest.fixture(autouse=True)
def empty_pages(monkeypatch):
    """That drawing takes a second is known; that it works is tested once."""
    monkeypatch.setattr("callbacks.fim_trajectory.trajectory", lambda *_: Figure(figsize=(1, 1)))


BARE = ("callbacks=base", "~callbacks.grok_time", "~callbacks.progress")  # drawing takes longer than these runs


def fim(**options):
    target = {"_target_": "callbacks.FIMTrajectoryCallback"}
    return [*BARE, *(f"+callbacks.fim.{key}={value}" for key, value in (target | options).items())]


@pytest.fixture
def helpers(command, monkeypatch):
    """Callbacks of the test's own, importable by name from the command line."""
    (command.folder / "trajectory_helpers.py").write_text(
        textwrap.dedent("""
            import copy
            from pathlib import Path
            import lightning as L

            class Remember(L.Callback):
                seen = {}

                def on_train_start(self, trainer, module):
                    self.seen[trainer.current_epoch] = [copy.deepcopy(n) for n in module.stack.networks]

                def on_train_epoch_end(self, trainer, module):
                    self.seen[trainer.current_epoch + 1] = [copy.deepcopy(n) for n in module.stack.networks]

            class FailOnce(L.Callback):
                def on_train_batch_start(self, trainer, module, batch, index):
                    flag = Path(trainer.default_root_dir) / "failed"
                    if trainer.current_epoch == 9 and index == 1 and not flag.exists():
                        flag.touch()
                        raise RuntimeError("killed")
            """)
    )
    monkeypatch.syspath_prepend(str(command.folder))
    yield
    sys.modules.pop("trajectory_helpers", None)


def expected(seen, inputs, every, until, stiff_of):
    """Every curve from the networks themselves, nothing but the definitions, everything in memory."""
    due = [e for e in sorted(seen) if e % every == 0 and e <= until]
    flat = {e: torch.stack([torch.cat([p.detach().flatten() for p in n.parameters()]) for n in seen[e]]) for e in seen}
    curves = {}
    for variant in VARIANTS:
        F = {
            e: torch.stack([fisher_diagonal(n, x, variant) for n, x in zip(seen[e], inputs, strict=True)]) for e in seen
        }
        stiff = stiff_of(F[max(seen)])
        masks = {"all": None, "stiff": stiff, "sloppy": ~stiff}
        for (subspace, mask), kind in [(m, k) for m in masks.items() for k in ("fisher", "euclidean")]:
            for i, e in enumerate(due[:-1]):
                step = flat[due[i + 1]] - flat[e]
                metric = F[e] if kind == "fisher" else None
                values = {
                    "step_magnitude": step_magnitude(step, metric, mask),
                    "origin_cosine": origin_cosine(step, flat[e], metric, mask),
                }
                if i:
                    values["step_cosine"] = step_cosine(flat[e] - flat[due[i - 1]], step, metric, mask)
                for quantity, value in values.items():
                    curves.setdefault((quantity, variant, kind, subspace), {})[e] = value.numpy()
    return due, curves


@pytest.mark.parametrize(
    ("options", "stiff_of"),
    [
        ({"stiff_threshold": 1e-3}, lambda F: F >= 1e-3),
        ({"stiff_quantile": 0.75}, lambda F: F.double().quantile(0.75, dim=1, keepdim=True) <= F),
    ],
)
def test_curves_are_those_of_the_definitions(command, helpers, options, stiff_of):
    run = command.mod_add(
        *fim(every=2, until=9, **options),
        BOTH,
        "+callbacks.remember._target_=trajectory_helpers.Remember",
        "epochs=11",
        "init_scale=[1,10]",
    )
    from trajectory_helpers import Remember

    data = ModularArithmeticDataModule(P=11, data_seeds=[0, 0])
    data.setup()
    due, curves = expected(Remember.seen, data.split("train")[0], every=2, until=9, stiff_of=stiff_of)
    results = open_run(run).fim
    assert due == [0, 2, 4, 6, 8]
    assert len(curves) == results.step_cosine[0, 0].size * 3 == 3 * 2 * 2 * 3
    for name, curve in curves.items():
        quantity, variant, metric, subspace = name
        found = results[quantity].sel(variant=variant, metric=metric, subspace=subspace).dropna("epoch", how="all")
        assert found.epoch.values.tolist() == list(curve), name
        np.testing.assert_allclose(found.values.T, np.stack(list(curve.values())), rtol=1e-9, err_msg=str(name))
    for variant in VARIANTS:
        own = results.to_dataset().sel(variant=variant)
        last = Remember.seen[11]
        final = torch.stack([fisher_diagonal(n, x, variant) for n, x in zip(last, data.split("train")[0], strict=True)])
        np.testing.assert_array_equal(own.spectrum, final.sort(1).values)
        np.testing.assert_allclose(own.gini, gini(final))
        np.testing.assert_array_equal(own.stiff_parameters, stiff_of(final).sum(1))
        for metric in ("fisher", "euclidean"):
            for r in range(2):
                curve = own.step_magnitude.sel(metric=metric, subspace="all").dropna("epoch", how="all")[r]
                start, end = grokking_period(curve.epoch.values, curve.values)
                np.testing.assert_equal(own.bump_start.sel(metric=metric)[r].item(), start)
                np.testing.assert_equal(own.bump_end.sel(metric=metric)[r].item(), end)
    assert not (run / "trajectory").exists()
    assert sorted(p.stem for p in (run / "figures").glob("fim*.png")) == ["fim_classif_logits", "fim_regression"]


def test_resume_in_the_middle_loses_and_duplicates_nothing(command, helpers):
    options = [*fim(every=1), BOTH, "epochs=12", "checkpoint_every=4"]
    whole = open_run(command.mod_add(*options, "run_dir=whole"))
    options.append("+callbacks.fail._target_=trajectory_helpers.FailOnce")
    with pytest.raises(RuntimeError, match="killed"):
        command(*command.MOD_ADD, *options, "run_dir=cut")
    # Epoch 9 is past the checkpoint of epoch 8.
    assert [p.stem for p in sorted((command.folder / "cut/trajectory").iterdir())] == [f"{e:09d}" for e in range(10)]
    assert command("resume=cut").code == 0
    resumed = open_run("cut")
    same(resumed, whole)
    assert not (command.folder / "cut/trajectory").exists()


def same(one, other):
    for results in (one, other):  # the command line and the directory differ
        results.attrs.clear()
    xr.testing.assert_identical(one, other)


def test_kept_trajectory_can_be_read(command):
    run = command.mod_add(*fim(every=2, keep_trajectory="true", inputs=30))
    files = sorted((run / "trajectory").iterdir())
    assert [file.name for file in files] == ["000000000.safetensors", "000000002.safetensors", "000000004.safetensors"]
    last = safetensors.torch.load_file(files[-1])
    weights = safetensors.torch.load_file(run / "weights.safetensors")
    names = ["hidden.0.weight", "hidden.0.bias", "output.weight", "output.bias"]
    assert torch.equal(last["position"], torch.cat([weights[name].flatten(1) for name in names], 1))
    assert set(last) == {"position", "classif_logits"}


def extended(command, *options, epochs=(12, 24)):
    """A run that was complete and is made longer, and one that was asked for at once."""
    command.mod_add(*options, f"epochs={epochs[0]}", "run_dir=longer")
    assert command("resume=longer", f"epochs={epochs[1]}").code == 0
    return open_run("longer"), open_run(command.mod_add(*options, f"epochs={epochs[1]}", "run_dir=whole"))


@pytest.mark.parametrize("every", [1, 5])  # with a snapshot at the seam, and with the last one before it
def test_an_extended_run_has_no_gap_at_the_seam(command, every):
    longer, whole = extended(command, *fim(every=every, stiff_threshold=1e-3), BOTH, "init_scale=[1,10]")
    xr.testing.assert_identical(longer.evaluation, whole.evaluation)
    longer, whole = longer.fim.to_dataset(), whole.fim.to_dataset()
    xr.testing.assert_identical(longer.drop_vars(QUANTITIES), whole.drop_vars(QUANTITIES))
    for name in QUANTITIES:
        np.testing.assert_array_equal(longer[name].sel(subspace="all"), whole[name].sel(subspace="all"), err_msg=name)
        # from the last two snapshots before the seam on, the second of them with the step before
        first = (12 // every - (1 if name != "step_cosine" else 0)) * every
        mine, theirs = (results[name].sel(subspace=["stiff", "sloppy"]) for results in (longer, whole))
        np.testing.assert_array_equal(mine.sel(epoch=slice(first, None)), theirs.sel(epoch=slice(first, None)))
        assert mine.sel(epoch=slice(None, first - 1)).isnull().all()
        for subspace in ("stiff", "sloppy"):
            assert theirs.sel(epoch=slice(None, first - 1), subspace=subspace).notnull().any()
    log = (command.folder / "longer/train.log").read_text()
    assert (
        f"if this run is extended, its steps before epoch {12 // every * every - every} will not be told apart" in log
    )
    assert f" of {24 // every + 1} snapshots are not in longer/trajectory" in log
    assert "WARNING" not in log


def test_where_an_extended_run_lacks_nothing_nothing_is_said(command):
    run = command.mod_add(*fim(every=1), "epochs=1")
    assert "will not be told apart" not in (run / "train.log").read_text()


def test_an_extended_run_that_kept_its_trajectory_lacks_nothing(command):
    options = (*fim(every=5, stiff_threshold=1e-3, keep_trajectory="true"), BOTH, "init_scale=[1,10]")
    longer, whole = extended(command, *options)
    assert whole.fim.step_cosine.sel(subspace=["stiff", "sloppy"]).notnull().any(["replica", "epoch", "metric"]).all()
    same(longer, whole)
    log = (command.folder / "longer/train.log").read_text()
    assert "lack" not in log
    assert "snapshots are not in" not in log


def test_a_run_extended_beyond_the_last_snapshot(command):
    longer, whole = extended(command, *fim(every=1, until=6), epochs=(4, 12))
    xr.testing.assert_identical(longer.evaluation, whole.evaluation)
    for name in whole.fim.data_vars:
        mine, theirs = longer.fim[name], whole.fim[name]
        if name in QUANTITIES:
            mine, theirs = mine.sel(subspace="all"), theirs.sel(subspace="all")
        if name != "stiff_parameters":
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", ["write_results", "write_summary", "show"])
@pytest.mark.parametrize("cut", [False, True])  # whether the run had been resumed before
def test_a_kill_between_the_last_epoch_and_the_final_write_loses_nothing(command, helpers, monkeypatch, at, cut):
    options = [*fim(every=1, stiff_threshold=1e-3), BOTH, "epochs=12", "checkpoint_every=4"]
    whole = open_run(command.mod_add(*options, "run_dir=whole"))
    options += ["+callbacks.fail._target_=trajectory_helpers.FailOnce"]
    (command.folder / "killed").mkdir()
    if cut:
        with pytest.raises(RuntimeError, match="killed"):
            command(*command.MOD_ADD, *options, "run_dir=killed")
    else:
        (command.folder / "killed").rmdir()
        options.pop()

    def kill(*_):
        raise Killed

    where = {"write_results": "lit_grok.results.write_results", "write_summary": "lit_grok.results.write_summary"}
    with monkeypatch.context() as patch:
        patch.setattr(where.get(at, "rich.console.Console.print"), kill)
        with pytest.raises(Killed):
            command("resume=killed") if cut else command(*command.MOD_ADD, *options, "run_dir=killed")
    assert command("resume=killed").code == 0
    resumed = open_run("killed")
    same(resumed, whole)
    assert not (command.folder / "killed/trajectory").exists()


def test_a_complete_run_that_is_resumed_keeps_its_results(command):
    run = command.mod_add(*fim(every=1))
    before = open_run(run)
    result = command(f"resume={run}")
    assert (result.code, "is complete; epochs=… makes it longer" in result.out) == (0, True)
    xr.testing.assert_identical(open_run(run), before)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:20], lambda _: b"", lambda b: b.replace(b"F32", b"I32")]
)
def test_a_damaged_snapshot_costs_its_steps_and_no_more(command, helpers, damage):
    options = [*fim(every=1), "epochs=12", "checkpoint_every=4", "+callbacks.fail._target_=trajectory_helpers.FailOnce"]
    with pytest.raises(RuntimeError, match="killed"):
        command(*command.MOD_ADD, *options, "run_dir=cut")
    path = command.folder / "cut/trajectory/000000003.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert command("resume=cut").code == 0
    results = open_run("cut").fim
    fisher = results.to_dataset().sel(metric="fisher")
    assert fisher.step_cosine.sel(subspace="all").dropna("epoch").epoch.values.tolist() == list(range(1, 12))
    sloppy = fisher.step_magnitude.sel(subspace="sloppy").dropna("epoch")
    assert sloppy.epoch.values.tolist() == [0, 1, *range(4, 12)]
    assert log_lines(command.folder / "cut", "000000003.safetensors: cannot be read as a snapshot of this run") == 1


def log_lines(run, text):
    return sum(text in line for line in (run / "train.log").read_text().splitlines())


def test_steps_without_length_are_nan_and_counted(command):
    run = command.mod_add(*fim(every=1), "learning_rate=0")
    results = open_run(run).fim
    assert results.degenerate_steps.sel(variant="classif_logits").values.tolist() == [[4, 4]]
    for quantity in QUANTITIES:
        assert results[quantity].isnull().all()
    assert "callbacks.fim, init_scale=1 seed=0: 4 of 4 steps have no length" in (run / "train.log").read_text()


def test_no_stiff_parameter_is_nan_and_said_in_the_log_alone(command):
    result = command(*command.MOD_ADD, *fim(every=1, stiff_threshold=1e9), "run_dir=run")
    assert "is stiff" not in result.out + result.err
    assert open_run("run").fim.step_cosine.sel(subspace="stiff").isnull().all()
    assert "no parameter of the trained network is stiff" in (command.folder / "run" / "train.log").read_text()


def test_training_is_the_same_with_and_without(command):
    bare = command.mod_add(*BARE, "run_dir=bare", "init_scale=[1,10]")
    measured = command.mod_add(*fim(every=1), BOTH, "run_dir=measured", "init_scale=[1,10]")
    assert (bare / "weights.safetensors").read_bytes() == (measured / "weights.safetensors").read_bytes()
    xr.testing.assert_identical(open_run(bare).evaluation, open_run(measured).evaluation)


@pytest.mark.parametrize("ablation", ["weight_decay=0", "optimizer=sgd", "optimizer=adamw", "label_noise=0.1"])
@pytest.mark.parametrize("task", ["ising", "mod_add"])
def test_ablations(command, task, ablation):
    results = open_run(getattr(command, task)(*fim(every=1), BOTH, ablation))
    steps = results.fim.step_magnitude.sel(metric="fisher", subspace="all").notnull().sum("epoch")
    assert steps.variant.values.tolist() == list(VARIANTS)
    assert steps.values.tolist() == [[4, 4]]


@pytest.mark.parametrize("task", ["ising", "mod_add"])
def test_on_by_default(command, task):
    run = getattr(command, task)(f"callbacks={task}", "callbacks.fim_trajectory.every=2", "~callbacks.pruning")
    branch = open_run(run).fim_trajectory
    assert set(QUANTITIES) <= set(branch.data_vars)
    assert branch.variant.values.tolist() == list(VARIANTS)
    assert branch.metric.values.tolist() == ["fisher", "euclidean"]
    assert branch.subspace.values.tolist() == ["all", "stiff", "sloppy"]
    assert branch.attrs["stiff"] == "F ≥ 0.1"


def test_curves_go_to_the_loggers(command):
    run = command.mod_add(*fim(every=1), "logger=csv")
    names = [
        f"{quantity}/classif_logits/{rest}"
        for quantity, rest in (
            ("step_cosine", "fisher/all"),
            ("step_cosine", "fisher/sloppy"),
            ("step_magnitude", "euclidean/all"),
        )
    ]
    header, *rows = next((run / "csv").iterdir()).read_text().splitlines()
    assert {f"fim/{name}" for name in names} <= set(header.split(","))
    assert len(rows) == 5


@pytest.mark.parametrize(("until", "epochs"), [(None, 4), (None, 5), (3, 5), (0, 5)])
def test_the_number_of_snapshots_is_known_beforehand(until, epochs):
    callback = FIMTrajectoryCallback(every=2, until=until)
    assert callback.measurements(epochs) == sum(callback.is_due(e) for e in range(epochs + 1))


def test_the_size_of_the_snapshots_is_known_beforehand(command):
    run = command.mod_add(*fim(every=2, keep_trajectory="true"), BOTH)
    there = sum(file.stat().st_size for file in (run / "trajectory").iterdir())
    parameters = sum(p.numel() for p in load_network(run).parameters())
    callback = FIMTrajectoryCallback(every=2, variants=["classif_logits", "regression"])
    assert callback.disk(parameters, 4) == pytest.approx(there, rel=0.1)


def test_a_disk_too_small_is_refused_in_one_sentence_and_leaves_nothing(command, monkeypatch):
    usage = SimpleNamespace(free=30_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = command(*command.MOD_ADD, *fim(every=1), "run_dir=run")
    assert result.code == 2
    snapshots, rest = 5 * 4 * 2 * 555 / 1e3, 40 * 555 / 1e3  # kB: position and F in float32; checkpoints and weights
    assert result.err == (
        f"error: 1 replica(s) of 555 parameters take about {snapshots + rest:.1f} kB of disk, {snapshots:.1f} kB of it "
        "for callbacks.fim, and the disk has 30.0 kB left: train fewer at once, or measure less often\n"
    )
    assert not (command.folder / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"until": -1}, "until=-1"),
        ({"inputs": 0}, "inputs=0"),
        ({"variants": []}, "classif_logits, regression"),
        ({"variants": ["logits"]}, "classif_logits, regression"),
        ({"stiff_quantile": 1.5}, "stiff_quantile=1.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FIMTrajectoryCallback(**options)


def test_one_is_enough(command):
    second = "+callbacks.second={_target_: callbacks.FIMTrajectoryCallback, every: 3}"
    result = command(*command.MOD_ADD, *fim(every=1), second)
    assert (result.code, result.err) == (2, "error: FIMTrajectoryCallback: one is enough, it takes several variants\n")


def test_figures_of_one_replica_and_of_many(command):
    results = open_run(command.mod_add(*fim(every=1), "init_scale=[1,10]", "seed=0:2"))
    first = trajectory(results, "fim", "classif_logits").axes[0]
    assert len({line.get_color() for line in first.lines}) >= 2  # a line for each init_scale,
    assert len(first.collections) == 2  # in a band over its seeds
    single = open_run(command.mod_add(*fim(every=1), "run_dir=single"))
    assert not trajectory(single, "fim", "classif_logits").axes[0].collections


def test_figures_survive_what_was_never_measured(command):
    results = open_run(command.mod_add(*fim(every=1), "learning_rate=0", "init_scale=0"))
    trajectory(results, "fim", "classif_logits").canvas.draw()


def test_a_divergence_is_dated_when_it_is_seen(command):
    poison = "+callbacks.poison={_target_:tests.helpers.Poison,epoch:11,replica:1}"
    run = command.mod_add(*fim(every=6), "seed=0:2", "epochs=24", "log_every=10", poison)
    (_, record), results = json.loads((run / "summary.json").read_text()), open_run(run)
    assert record["status"] == "diverged"
    assert record["test_accuracy"] == results.evaluation.test_accuracy.sel(seed=1, epoch=10).item()
