"""Lightning's own callbacks and ``self.log``, from the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

import lit_grok
from tests.helpers import NotesEvaluation

LIGHTNING = "lightning.pytorch.callbacks"
WATCHED = "+callbacks.watch={_target_: tests.helpers.SignalWhile, epoch: 1, number: SIGINT, file: none}"
POISON = "+callbacks.poison={_target_: tests.helpers.Poison, epoch: 1, replica: 0}"


def stop(monitor="test_loss", **options):
    """An EarlyStopping for which nothing is an improvement, so that it counts every look after its first."""
    given = {"monitor": monitor, "mode": "min", "min_delta": 1000, "check_finite": "true", **options}
    return (
        f"+callbacks.stop={{_target_: {LIGHTNING}.EarlyStopping, {', '.join(f'{k}: {v}' for k, v in given.items())}}}"
    )


def table(run, label):
    with open(run / "csv" / f"{label}.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary(run):
    return json.loads((run / "summary.json").read_text())


# What is monitored


@pytest.mark.parametrize("way", [(), (WATCHED,)], ids=["short", "Lightning's"])
def test_the_evaluation_of_the_sound_replicas_is_monitored(command, way):
    NotesEvaluation.seen.clear()
    run = command.mod_add("seed=0:3", POISON, *way, "+callbacks.notes._target_=tests.helpers.NotesEvaluation")
    curves = lit_grok.open_run(run).evaluation
    assert len(NotesEvaluation.seen) == 4
    for epoch, (watched, found) in enumerate(NotesEvaluation.seen, 1):
        assert watched == bool(way)
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm"):
            values = curves[name].sel(epoch=epoch).values
            assert np.isnan(values[0]) == (epoch >= 2)
            expected = [np.nanmean(values), np.nanmin(values), np.nanmax(values)]
            assert [found[name], found[f"{name}_min"], found[f"{name}_max"]] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("way", [(), (WATCHED,)], ids=["short", "Lightning's"])
@pytest.mark.parametrize(("cadence", "end"), [(1, 4), (5, 20)])
def test_early_stopping_counts_evaluations(command, way, cadence, end):
    run = command.mod_add("epochs=40", f"log_every={cadence}", stop(patience=3), *way)
    assert lit_grok.open_run(run).evaluation.epoch.values.tolist() == list(range(0, end + 1, cadence))
    assert [(record["epochs"], record["stopped"]) for record in summary(run)] == [(end, True)]
    result = command(f"resume={run.name}")
    assert result.code == 0
    assert f"is complete; a stopping rule has ended it after {end} epochs" in result.out + result.err
    assert summary(run)[0]["epochs"] == end


def test_early_stopping_goes_on_counting_in_a_resumed_run(command):
    options = ("epochs=40", "log_every=5", stop(patience=3), "checkpoint_every=1")
    signalling = "+callbacks.signal={_target_: tests.helpers.SignalWhile, epoch: 12, number: SIGINT}"
    (command.folder / "signalling").touch()
    assert command(*command.MOD_ADD, *options, signalling, "run_dir=run").code == 130
    (command.folder / "signalling").unlink()
    assert command("resume=run").code == 0
    assert summary(command.folder / "run")[0]["epochs"] == 20


def test_the_best_checkpoint_is_that_of_the_best_evaluation(command):
    best = f"+callbacks.best={{_target_: {LIGHTNING}.ModelCheckpoint, monitor: test_loss, mode: max}}"
    NotesEvaluation.seen.clear()
    notes = "+callbacks.notes._target_=tests.helpers.NotesEvaluation"
    run = command.mod_add("epochs=9", "log_every=3", "learning_rate=0.1", best, notes)
    assert not any(watched for watched, _ in NotesEvaluation.seen)  # its hook in a step has nothing to do
    losses = lit_grok.open_run(run).evaluation.test_loss.values[0, 1:]
    (path,) = (run / "checkpoints" / "best").iterdir()
    kept = torch.load(path, weights_only=True)
    assert kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 3 * (1 + losses.argmax())
    assert not (command.folder / "checkpoints").exists()


def test_a_monitor_that_nobody_measures(command):
    result = command(*command.MOD_ADD, stop("nope"), "run_dir=run")
    complaint = "error: EarlyStopping: monitor=nope: not measured; allowed: train_loss, train_loss_min, "
    assert (result.code, result.err.splitlines()[-1][: len(complaint)]) == (2, complaint)


# self.log


@pytest.mark.parametrize(
    ("hook", "expected"),
    [("on_train_epoch_start", [1, 2, 3, 4]), ("on_train_epoch_end", [1, 2, 3, 4]), ("on_train_batch_end", None)],
)
def test_what_a_callback_logs_is_a_curve(command, hook, expected):
    logs = f"+callbacks.logs={{_target_: tests.helpers.Logs, hook: {hook}}}"
    run = command.mod_add("seed=[3,5]", "batch_size=20", "logger=csv", logs)
    steps = len(range(0, round(0.7 * 121), 20))
    expected = expected or [epoch * (1 + steps) / 2 for epoch in (1, 2, 3, 4)]  # the mean over the steps
    curves = lit_grok.open_run(run).logged.mine
    assert curves.epoch.values.tolist() == [1, 2, 3, 4]
    for curve in curves.values:
        assert curve == pytest.approx(expected)
    rows = {int(row["epoch"]): row["logged/mine"] for row in table(run, "init_scale=1_seed=5")}
    assert [float(rows[epoch]) for epoch in (1, 2, 3, 4)] == pytest.approx(expected)


def test_what_is_logged_is_kept_when_a_run_goes_on(command):
    logs = "+callbacks.logs={_target_: tests.helpers.Logs, every: 2}"
    module = "module._target_=tests.helpers.LogsInModule"
    command.mod_add("epochs=4", logs, module, "checkpoint_every=1")
    assert command("resume=run", "epochs=6").code == 0
    found = lit_grok.open_run(command.folder / "run")
    assert found.logged.mine.dropna("epoch").epoch.values.tolist() == [2, 4, 6]
    assert found.logged.twice.dropna("epoch").values.tolist() == [[2, 4, 6, 8, 10, 12]]


def test_early_stopping_on_a_logged_value_counts_what_is_new(command):
    logs = "+callbacks.logs={_target_: tests.helpers.Logs, every: 5}"
    assert (
        command(*command.MOD_ADD, logs, stop("mine", patience=2, strict="false"), "epochs=40", "run_dir=run").code == 0
    )
    assert summary(command.folder / "run")[0]["epochs"] == 15


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            "hook: on_train_batch_end, on_step: true",
            "on_step=True): a curve has one value an epoch, the mean; leave it",
        ),
        ("values: 2", "2 values, where one stands for all replicas; return one per replica from measure_replicas"),
        ("hook: on_train_start", "in on_train_start: no epoch has begun; return it from measure"),
        ("hook: on_train_end", "return it from measure or, at the end, measure_final"),
    ],
)
def test_what_cannot_be_a_curve_is_refused(command, options, complaint):
    result = command(*command.MOD_ADD, f"+callbacks.logs={{_target_: tests.helpers.Logs, {options}}}", "run_dir=run")
    line = result.err.splitlines()[-1]
    assert result.code == 2
    assert line.startswith("error: self.log('mine'")
    assert complaint in line


# The learning rate

MONITOR = f"+callbacks.lr={{_target_: {LIGHTNING}.LearningRateMonitor}}"


def test_the_learning_rate_is_logged_at_its_epoch(command):
    run = command.mod_add("logger=csv", "log_every=2", "learning_rate=0.25", MONITOR)
    rows = {int(row["epoch"]): row for row in table(run, "init_scale=1_seed=0")}
    assert [rows[epoch]["lr-Adam"] for epoch in (0, 1, 2, 3, 4)] == ["", "0.25", "0.25", "0.25", "0.25"]
    assert [rows[epoch]["evaluation/test_loss"] == "" for epoch in (1, 2)] == [True, False]


def test_wandb_gets_the_learning_rate_with_its_epoch(command, monkeypatch):
    rows = []
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda self, metrics, step=None: rows.append((step, metrics)))
    command.mod_add("logger=wandb", "learning_rate=0.25", MONITOR)
    learning_rates = [(step, metrics) for step, metrics in rows if "lr-Adam" in metrics]
    assert learning_rates == [(epoch, {"epoch": epoch, "lr-Adam": 0.25}) for epoch in (1, 2, 3, 4)]


def test_the_learning_rate_without_a_logger(command):
    result = command(*command.MOD_ADD, MONITOR, "run_dir=run")
    assert result.code == 2
    assert (
        result.err == "error: callbacks.lr: it logs, and logger=none keeps nothing; choose logger=csv or logger=wandb\n"
    )
    assert not (command.folder / "run").exists()


@pytest.mark.parametrize("name", ["test_loss", "epoch", "seed", "2nd"])
def test_a_name_that_is_no_curve_of_its_own_is_refused_in_one_sentence(command, name):
    logs = f"+callbacks.logs={{_target_: tests.helpers.Logs, name: {name}}}"
    result = command(*command.MOD_ADD, logs, "run_dir=run")
    assert result.code == 2
    assert f"self.log('{name}'): " in result.err
    assert len(result.err.splitlines()) == 1
