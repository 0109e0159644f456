import itertools
import json
import re
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import lit_grok
from callbacks import CheckpointCallback

ROOT = Path(__file__).parents[2]
SIGNAL = (
    *("+callbacks.signal._target_=tests.helpers.SignalWhile", "+callbacks.signal.epoch=5"),
    "+callbacks.signal.number=SIGINT",
)
FAILS = ("+callbacks.fails._target_=tests.helpers.FailsWhile", "+callbacks.fails.epoch=5", "+callbacks.fails.every=1")
ANALYSIS = ("+callbacks.constant._target_=tests.helpers.Constant", "+callbacks.constant.every=2")
SHUFFLED = ("datamodule.shuffle=true", "epochs=8", "checkpoint_every=3", *ANALYSIS)


def identical(run, other, states=True):
    """Weights, curves, callback states, optimiser and summary (but for the seconds), bit by bit."""
    assert (run / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    mine, theirs = (lit_grok.open_run(r) for r in (run, other))
    for results in (mine, theirs):  # the command line and the directory differ
        results.attrs.clear()
    xr.testing.assert_identical(mine, theirs)
    saved = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, other)]
    for state in saved:
        (clock,) = (s for s in state["callbacks"].values() if "seconds" in s)
        assert clock.pop("seconds") > 0
    if states:
        assert saved[0]["callbacks"] == saved[1]["callbacks"]
        assert saved[0]["epoch"] == saved[1]["epoch"]
    assert saved[0]["global_step"] == saved[1]["global_step"]
    moments = [state["optimizer_states"][0]["state"] for state in saved]
    for a, b in zip(moments[0].values(), moments[1].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    records = [json.loads((r / "summary.json").read_text()) for r in (run, other)]
    for record in (*records[0], *records[1]):
        assert record.pop("seconds") > 0
    assert records[0] == records[1]


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_killed_and_resumed_is_as_if_it_had_never_stopped(command, task):
    """Of a process that really is killed: `tests.test_reproduce`."""
    tiny = {"mod_add": command.MOD_ADD, "ising": command.ISING}[task]
    replicas = {"mod_add": "seed=3", "ising": "init_scale=[1,10]"}[task]
    copies = "+callbacks.copies={_target_: tests.helpers.CopiesRun, epoch: 6, to: killed}"
    assert command(*tiny, *SHUFFLED, replicas, copies, "run_dir=whole").code == 0
    half = lit_grok.open_run("killed")
    assert half.evaluation.epoch.values[-1] == 3  # what was there at the last checkpoint
    assert not (command.folder / "killed" / "summary.json").exists()
    assert command("resume=killed").code == 0
    identical(command.folder / "killed", command.folder / "whole")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_after_the_epoch_and_the_run_goes_on_later(command, number):
    options = [o.replace("SIGINT", number) for o in (*command.MOD_ADD, *SHUFFLED, "checkpoint_every=100", *SIGNAL)]
    before = signal.getsignal(signal.Signals[number])
    (command.folder / "signalling").touch()
    result = command(*options, "run_dir=stopped")
    assert result.code == 130
    assert f"{number}: saving after this epoch" in result.out
    assert "resume=stopped" in result.out
    assert signal.getsignal(signal.Signals[number]) == before
    half = lit_grok.open_run("stopped")
    assert half.evaluation.epoch.values[-1] == 5  # the signal came in the fifth epoch, which was finished
    assert not (command.folder / "stopped" / "summary.json").exists()
    (command.folder / "signalling").unlink()
    assert command("resume=stopped").code == 0
    command.mod_add(*options, "run_dir=whole")
    identical(command.folder / "stopped", command.folder / "whole")


def test_a_signal_in_the_last_epoch(command):
    (command.folder / "signalling").touch()
    result = command(*command.MOD_ADD, "epochs=5", *SIGNAL, "run_dir=stopped")
    assert result.code in (0, 130)
    (command.folder / "signalling").unlink()
    assert command("resume=stopped").code == 0
    command.mod_add("epochs=5", *SIGNAL, "run_dir=whole")
    identical(command.folder / "stopped", command.folder / "whole")


def test_a_second_sigterm_changes_nothing():
    callback = CheckpointCallback()
    for number in (signal.SIGTERM, signal.SIGTERM):
        callback._on_signal(number, None)


def test_a_second_signal_stops_at_once():
    callback = CheckpointCallback(every=1)
    callback._on_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        callback._on_signal(signal.SIGINT, None)


@pytest.mark.parametrize("epoch", [1, 5, 8])
def test_a_failing_analysis_costs_no_epoch(command, epoch):
    options = [o.replace("fails.epoch=5", f"fails.epoch={epoch}") for o in (*command.MOD_ADD, *SHUFFLED, *FAILS)]
    (command.folder / "failing").touch()
    # it may fail before the first step already (the helper looks at the epoch that is about to end)
    with pytest.raises(RuntimeError, match="no such luck"):
        command(*options, "run_dir=failed")
    if epoch == 1:
        assert not (command.folder / "failed" / "checkpoints" / "last.ckpt").exists()
        assert "has no checkpoint yet" in command("resume=failed").err
        return
    saved = torch.load(command.folder / "failed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == epoch * 2  # 84 examples in batches of 64
    (command.folder / "failing").unlink()
    assert command("resume=failed").code == 0
    command.mod_add(*options, "run_dir=whole")
    # after a failure in the last epoch nothing is trained any more, so no checkpoint is written: it stays the older one
    identical(command.folder / "failed", command.folder / "whole", states=epoch < 8)
    for run in ("failed", "whole"):
        assert command(f"resume={run}", "epochs=10").code == 0
    identical(command.folder / "failed", command.folder / "whole")


def test_a_failure_at_the_end_of_the_training_costs_nothing(command):
    # without a cadence the analysis runs after the last epoch alone
    options = (*command.MOD_ADD, *SHUFFLED, *FAILS[:2])
    (command.folder / "failing").touch()
    with pytest.raises(RuntimeError, match="no such luck"):
        command(*options, "run_dir=failed")
    (command.folder / "failing").unlink()
    assert command("resume=failed").code == 0
    command.mod_add(*options, "run_dir=whole")
    identical(command.folder / "failed", command.folder / "whole", states=False)
    for run in ("failed", "whole"):
        assert command(f"resume={run}", "epochs=10").code == 0
    identical(command.folder / "failed", command.folder / "whole")


def test_more_epochs_later_are_as_if_asked_for_at_once(command):
    command.mod_add(*SHUFFLED, "epochs=4", "run_dir=longer")
    assert command("resume=longer", "epochs=8").code == 0
    command.mod_add(*SHUFFLED, "run_dir=whole")
    curves = [lit_grok.open_run(r).evaluation.test_loss.values for r in ("longer", "whole")]
    np.testing.assert_array_equal(*curves)
    weights = [(command.folder / r / "weights.safetensors").read_bytes() for r in ("longer", "whole")]
    assert weights[0] == weights[1]


def test_a_diverged_replica_stays_so_when_the_run_goes_on(command):
    poison = (
        "+callbacks.poison._target_=tests.helpers.Poison",
        "+callbacks.poison.epoch=2",
        "+callbacks.poison.replica=1",
    )
    options = ("seed=0:2", *SHUFFLED, *poison)
    command.mod_add(*options, "epochs=5", "run_dir=longer")
    result = command("resume=longer", "epochs=8")
    assert result.code == 0
    assert "has diverged" not in result.err  # said already
    command.mod_add(*options, "run_dir=whole")
    weights = [(command.folder / r / "weights.safetensors").read_bytes() for r in ("longer", "whole")]
    assert weights[0] == weights[1]
    assert json.loads((command.folder / "longer" / "summary.json").read_text())[1]["status"] == "diverged"


# Disks that fill up, and disks that lie

FULL = r"cannot be written \((No space left on device|File too large)\); what was written before is whole; "
FULL += "once there is room, "


def filled(command, disk, epoch, *overrides):
    """A run that finds the disk full at an epoch, and where it is."""
    fill = ("+callbacks.fill._target_=tests.helpers.FillsDisk", f"+callbacks.fill.disk={disk}")
    options = (*SHUFFLED, "checkpoint_every=2", *overrides, *fill, f"+callbacks.fill.epoch={epoch}")
    (command.folder / "filling").touch()
    result = command(*command.MOD_ADD, *options, f"run_dir={disk}/run")
    (command.folder / "filling").unlink()
    return result, options, disk / "run"


def make_room(disk):
    (disk / "filler").unlink(missing_ok=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)


def hidden(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".") or "partial" in path.name]


@pytest.mark.parametrize("logger", ["none", "csv"])
def test_a_full_disk_ends_the_run_in_one_sentence_and_loses_nothing(command, full_disk, logger):
    disk, _ = full_disk
    result, options, run = filled(command, disk, 5, f"logger={logger}")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert re.match(f"error: .*{FULL}go on with: python train.py resume={run}$", result.err)
    assert not hidden(disk)
    assert lit_grok.open_run(run).evaluation.epoch.values[-1] == 4
    assert lit_grok.load_network(run)(torch.tensor([[1, 2]])).shape == (1, 11)
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 3
    make_room(disk)
    assert command(f"resume={run}").code == 0
    command.mod_add(*options, "run_dir=whole")
    identical(run, command.folder / "whole")


def test_a_disk_that_is_full_from_the_start(command, full_disk):
    result, _, run = filled(command, full_disk[0], 1)
    assert result.code == 1
    assert re.match(f"error: {run}/.*{FULL}start again: nothing was saved yet$", result.err)
    assert not hidden(full_disk[0])


@pytest.mark.rendered
@pytest.mark.parametrize("kind", ["figures", "trajectory"])
def test_a_full_disk_in_the_middle_of_an_analysis(command, full_disk, kind):
    disk, _ = full_disk
    extra = "callbacks.grok_time._target_=callbacks.GrokTimeCallback"
    if kind == "trajectory":
        extra = "+callbacks.fim={_target_: callbacks.FIMTrajectoryCallback, every: 1}"
    result, *_, run = filled(command, disk, {"figures": 8, "trajectory": 3}[kind], extra, "checkpoint_every=1")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert re.match(f"error: {run}/.*{FULL}go on with: python train.py resume={run}$", result.err)
    assert not hidden(disk)
    make_room(disk)
    assert command(f"resume={run}").code == 0
    assert lit_grok.open_run(run).evaluation.epoch.values[-1] == 8


def test_a_read_only_place_is_said_before_anything_is_trained(command, read_only):
    result = command(*command.MOD_ADD, f"run_dir={read_only}/run")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert re.match(rf"error: run_dir={read_only}/run: cannot be written \((Read-only|Permission)", result.err)
    result = command(*command.ISING, f"datamodule.data_dir={read_only}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert re.match(rf"error: datamodule.data_dir={read_only}: cannot be written \((Read-only|Permission)", result.err)


def test_a_run_in_a_read_only_place_cannot_go_on(command, read_only_copy):
    run = command.mod_add()
    copy = read_only_copy(run)
    result = command(f"resume={copy}", "epochs=8")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert re.match(rf"error: resume={copy}: cannot be written \((Read-only|Permission)", result.err)
    assert lit_grok.open_run(copy).evaluation.epoch.values[-1] == 4


def test_the_checkpoint_before_the_last_one_is_kept(command):
    run = command.mod_add("epochs=8", "checkpoint_every=3")
    epochs = {p.name: torch.load(p, weights_only=True)["epoch"] for p in (run / "checkpoints").iterdir()}
    assert epochs == {"last.ckpt": 7, "previous.ckpt": 5}


def flip(content):
    """Turn one bit of the largest member, the weights' own, which PyTorch would not notice."""
    return bytes(b ^ (i == len(content) // 2) for i, b in enumerate(content))


DAMAGES = {
    "cut": lambda content: content[:-1000],
    "flipped": flip,
    "empty": lambda _: b"",
    "foreign": lambda _: b"something else altogether",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_costs_the_epochs_since_the_one_before(command, damage):
    options = ("seed=3", *SHUFFLED, *SIGNAL)
    (command.folder / "signalling").touch()
    assert command(*command.MOD_ADD, *options, "run_dir=stopped").code == 130  # after epoch 5, with one of epoch 3
    (command.folder / "signalling").unlink()
    run = command.folder / "stopped"
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    result = command("resume=stopped")
    assert result.code == 0
    assert re.fullmatch(
        r"warning: stopped/checkpoints/last.ckpt: cannot be read as .*: going on from the one before, "
        r"stopped/checkpoints/previous.ckpt\n",
        result.err,
    )
    assert "going on from stopped/checkpoints/previous.ckpt" in (run / "train.log").read_text()
    command.mod_add(*options, "run_dir=whole")
    identical(run, command.folder / "whole")
    (run / "summary.json").unlink()
    for path in (last, previous):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    result = command("resume=stopped")
    assert (result.code, len(result.err.splitlines())) == (2, 2)  # both are named
    assert "error: stopped/checkpoints/previous.ckpt: cannot be read as " in result.err


def test_a_kill_between_the_two_names_leaves_the_one_before(command):
    run = command.mod_add("epochs=8", "checkpoint_every=3", "run_dir=run")
    (run / "checkpoints" / "last.ckpt").unlink()
    (run / "summary.json").unlink()
    result = command("resume=run")
    assert (result.code, result.err) == (0, "")
    assert "going on from run/checkpoints/previous.ckpt" in result.out
    command.mod_add("epochs=8", "checkpoint_every=3", "run_dir=whole")
    identical(run, command.folder / "whole")


def test_seconds_count_all_sessions(command, monkeypatch):
    ticks = itertools.count(0, 1000)
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.checkpoint.time", SimpleNamespace(monotonic=lambda: next(ticks)))
        run = command.mod_add("epochs=4")
    first = json.loads((run / "summary.json").read_text())[0]["seconds"]
    assert first >= 2000  # between a start, a checkpoint and the end
    assert command(f"resume={run}", "epochs=8").code == 0
    both = json.loads((run / "summary.json").read_text())[0]["seconds"]
    assert first - 1000 < both < first  # up to the checkpoint, and the real seconds of the second session


def test_no_cadence_below_one():
    with pytest.raises(ValueError, match="checkpoint_every=0: must be at least 1"):
        CheckpointCallback(every=0)
