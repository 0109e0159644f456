import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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
    mine, theirs = (lit_grok.open_run(r).drop_attrs() for r in (run, other))
    xr.testing.assert_identical(mine, theirs)
    saved = [torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, other)]
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


def killed(folder, *overrides):
    """Run until the process kills itself; SIGKILL leaves no time for anything."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_killed_and_resumed_is_as_if_it_had_never_stopped(command, task):
    tiny = {"mod_add": command.MOD_ADD, "ising": command.ISING}[task]
    replicas = {"mod_add": "seed=3", "ising": "init_scale=[1,10]"}[task]
    options = (*tiny, *SHUFFLED, replicas, *SIGNAL)
    options = [o.replace("SIGINT", "SIGKILL").replace("signal.epoch=5", "signal.epoch=6") for o in options]
    (command.folder / "signalling").touch()
    result = killed(command.folder, *options, "run_dir=killed")
    assert result.returncode == -signal.SIGKILL
    half = lit_grok.open_run("killed")
    assert half.epoch.values[-1] == 3  # what was there at the last checkpoint
    assert not (command.folder / "killed" / "summary.json").exists()
    (command.folder / "signalling").unlink()
    assert command("resume=killed").code == 0
    assert command(*options, "run_dir=whole").code == 0
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
    assert half.epoch.values[-1] == 5  # the signal came in the fifth epoch, which was finished
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
    curves = [lit_grok.open_run(r).test_loss.values for r in ("longer", "whole")]
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


def test_a_failing_write_leaves_the_old_checkpoint(command, monkeypatch):
    import lightning

    real, calls = lightning.Trainer.save_checkpoint, []

    def half(self, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of")
            raise OSError(28, "No space left on device")
        real(self, path, *args, **kwargs)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", half)
    with pytest.raises(OSError, match="No space left"):
        command(*command.MOD_ADD, "run_dir=run", "checkpoint_every=2")
    monkeypatch.undo()
    monkeypatch.chdir(command.folder)
    # the third attempt, when the failure was handled, may have succeeded; what is there can be read
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] in (1, 3)
    assert command("resume=run").code == 0


def test_no_cadence_below_one():
    with pytest.raises(ValueError, match="checkpoint_every=0: must be at least 1"):
        CheckpointCallback(every=0)
