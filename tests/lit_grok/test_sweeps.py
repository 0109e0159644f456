import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import lit_grok
from lit_grok import cli, slurm
from lit_grok.results import essence
from lit_grok.sweeps import Outcome


def records(run):
    return json.loads((run / "summary.json").read_text())


def sweep(command, *overrides):
    return command("-m", *command.MOD_ADD, "run_dir=sweep", *overrides)


def test_a_failed_job_leaves_the_others_alone_and_is_listed_at_the_end(command):
    result = sweep(command, "init_scale=1,-1,10", "epochs=1")
    assert result.code == 1
    assert result.out.splitlines()[-3:-1] == [
        "3 jobs: 2 done, 1 failed",
        "#1 init_scale=-1: failed: init_scale=-1: must be a finite number, 0 or more",
    ]
    assert result.out.endswith("the same command skips what is complete and goes on with what was stopped\n")
    assert lit_grok.open_runs("sweep*").init_scale.values.tolist() == [1, 10]


def test_a_bug_keeps_its_traceback(command):
    (command.folder / "failing").touch()
    mine = "+callbacks.mine={_target_: tests.helpers.FailsWhile, epoch: 1, every: 1}"
    result = sweep(command, "init_scale=1,2", "epochs=1", mine)
    assert result.code == 1
    assert result.err.count("Traceback") >= 2
    assert "#0 init_scale=1: failed: RuntimeError: no such luck" in result.out


def test_jobs_do_not_collide_whatever_the_pattern(command):
    assert sweep(command, "init_scale=1,2,3", "epochs=1").code == 0
    assert sorted(path.name for path in command.folder.glob("sweep*")) == ["sweep", "sweep-1", "sweep-2"]
    assert len(lit_grok.open_runs("sweep*").replica) == 3


def test_the_same_command_skips_what_is_complete(command):
    assert sweep(command, "init_scale=1,2", "epochs=1").code == 0
    before = {path: path.stat().st_mtime_ns for path in command.folder.glob("sweep*/*")}
    result = sweep(command, "init_scale=1,2", "epochs=1", "threads=2", "checkpoint_every=7")
    assert result.code == 0
    assert result.out.splitlines() == [
        "sweep is complete: skipped",
        "sweep-1 is complete: skipped",
        "2 jobs: 2 skipped",
    ]
    assert {path: path.stat().st_mtime_ns for path in command.folder.glob("sweep*/*")} == before


def test_another_configuration_is_another_run(command):
    assert sweep(command, "init_scale=1,2", "epochs=1").code == 0
    result = sweep(command, "init_scale=1,2", "epochs=2")
    assert result.code == 1  # job 1 finds a stranger under both its names
    assert "#1 init_scale=2: failed: run_dir=sweep: it and sweep-1 hold something else; choose another" in result.out
    assert records(command.folder / "sweep-0")[0]["epochs"] == 2


def test_what_was_stopped_goes_on_and_ends_as_if_nothing_had_happened(command):
    signalling = "+callbacks.mine={_target_: tests.helpers.SignalWhile, epoch: 3, number: SIGTERM, batch: 0}"
    arguments = ("init_scale=1,2", "epochs=6", "log_every=1", signalling)
    (command.folder / "signalling").touch()
    assert sweep(command, *arguments).code == 130  # in one process that stops the sweep
    (command.folder / "signalling").unlink()
    result = sweep(command, *arguments)
    assert result.code == 0
    assert "going on from sweep/checkpoints/last.ckpt" in result.out
    assert result.out.splitlines()[-1] == "2 jobs: 2 done"
    assert command(*command.MOD_ADD, "run_dir=other", "init_scale=1", *arguments[1:]).code == 0
    resumed, through = (lit_grok.open_run(run, "evaluation").evaluation for run in ("sweep", "other"))
    assert resumed.test_loss.values.tolist() == through.test_loss.values.tolist()


def test_a_run_without_a_checkpoint_starts_anew(command):
    assert sweep(command, "epochs=2").code == 0
    for name in ("summary.json", "checkpoints/last.ckpt", "checkpoints/previous.ckpt"):
        (command.folder / "sweep" / name).unlink(missing_ok=True)
    result = sweep(command, "epochs=2")
    assert result.out.splitlines()[-1] == "1 job: 1 done"
    assert "going on" not in result.out
    assert records(command.folder / "sweep")[0]["epochs"] == 2


def test_a_run_that_another_process_trains_is_left_alone(command):
    assert sweep(command, "epochs=1").code == 0
    with FileLock(command.folder / ".sweep.lock"):
        result = sweep(command, "epochs=1")
    assert result.code == 1
    assert ": failed: run_dir=sweep: another process trains it" in result.out


def test_a_place_that_cannot_be_written(command):
    (command.folder / "file").touch()
    result = command("-m", *command.MOD_ADD, "run_dir=file/sweep", "init_scale=1,2")
    assert result.code == 1
    assert "#1 init_scale=2: failed: run_dir=file/sweep: cannot be written (" in result.out


def test_a_pattern_may_name_the_job(command):
    assert (
        command("-m", *command.MOD_ADD, "run_dir=s/${init_scale}_${hydra:job.num}", "init_scale=1,2", "epochs=1").code
        == 0
    )
    assert sorted(path.name for path in command.folder.glob("s/[!.]*")) == ["1_0", "2_1"]


def test_joblib_runs_jobs_side_by_side(tmp_path):
    train = Path(cli.__file__).parents[1] / "train.py"
    tiny = ["task=mod_add", "P=11", "network.hidden=[16]", "epochs=1", "logger=none", "callbacks=base", "run_dir=sweep"]
    arguments = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *tiny, "init_scale=1,-1,2"]
    result = subprocess.run(
        [sys.executable, train, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout.splitlines()[-3:-1] == [
        "3 jobs: 2 done, 1 failed",
        "#1 init_scale=-1: failed: init_scale=-1: must be a finite number, 0 or more",
    ]
    assert result.stderr == "error: init_scale=-1: must be a finite number, 0 or more\n"
    assert all(re.match(r"#[02] |\d jobs|#1 init|the same ", line) for line in result.stdout.splitlines())
    commands = [lit_grok.open_run(path).attrs["command"] for path in tmp_path.glob("sweep*")]
    assert all(command.startswith("python train.py task=mod_add P=11 ") for command in commands)
    assert sorted(command.split()[-1] for command in commands) == ["init_scale=1", "init_scale=2"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "hydra.launcher.timeout_min=2",
            "hydra.launcher.timeout_min=2: must be longer than hydra.launcher.signal_dela",
        ),
        (
            "hydra.launcher.partition=cpu",
            "hydra/launcher=slurm: SLURM's commands (sbatch, srun, squeue) are not on thi",
        ),
        ("hydra.launcher.time=2", "hydra.launcher.time: no such key"),
        ("hydra/launcher=slurmm", "hydra/launcher=slurmm: unknown (did you mean slurm?)"),
    ],
)
def test_slurm_is_told_in_one_sentence_what_is_wrong(command, monkeypatch, override, message):
    monkeypatch.setattr("shutil.which", lambda name: None)
    launcher = [] if override.startswith("hydra/") else ["hydra/launcher=slurm"]
    result = sweep(command, *launcher, override, "init_scale=1,2")
    assert result.code == 2
    assert result.err.startswith(f"error: {message}"), result.err


class FakeJob:
    """A job of submitit whose result is there, or not."""

    def __init__(self, job_id, folder, outcome=None):
        self.job_id, self.outcome = job_id, outcome
        self.paths = SimpleNamespace(result_pickle=folder / job_id, stderr=folder / "err")
        if outcome:
            self.paths.result_pickle.touch()

    def exception(self):
        return None

    def result(self):
        return SimpleNamespace(return_value=self.outcome)


def test_a_killed_slurm_job_is_told_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "LATE_SECONDS", 0.05)
    jobs = [
        FakeJob("7_0", tmp_path, Outcome("done")),
        FakeJob("7_1", tmp_path),
        FakeJob("7_2", tmp_path),
        FakeJob("7_3", tmp_path),
    ]
    answers = iter([None, {"7_1": "RUNNING", "7_2": "PENDING"}, None])

    def states():
        try:
            return next(answers)
        except StopIteration:
            jobs[2].outcome = Outcome("stopped")
            jobs[2].paths.result_pickle.touch()
            return {"7_1": "CANCELLED"}

    monkeypatch.setattr(slurm, "_states", states)
    found = {i: (failure, returned) for i, failure, returned in slurm.gather(jobs)}
    assert [found[i][1].return_value.status if found[i][1] else "failed" for i in range(4)] == [
        *("done", "failed", "stopped", "failed")
    ]
    how = "as by scancel or a limit; it had not begun"
    assert found[1][0] == f"SLURM job 7_1 was killed (CANCELLED), {how}"
    assert found[3][0] == f"SLURM job 7_3 was killed, {how}"


def test_what_makes_no_difference_is_not_compared(command):
    run = command.mod_add("threads=1", "checkpoint_every=3")
    other = command.mod_add("threads=2", "run_dir=other", "logger=csv", "accelerator=cpu")
    same, differs = essence(lit_grok.results.read_config(run)), essence(lit_grok.results.read_config(other))
    assert same == differs
    longer = command.mod_add("run_dir=longer", "epochs=5")
    assert essence(lit_grok.results.read_config(longer)) != same


def test_jobs_share_the_cores(command, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores: 16)
    assert cli.threads("auto") == 16
    assert cli.threads(3) == 3
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    for launcher, expected in (
        ({"n_jobs": 4}, 4),
        ({"n_jobs": -1}, 1),
        ({"n_jobs": 99}, 1),
        ({"cpus_per_task": 2}, 2),
        ({}, 16),
    ):
        found = SimpleNamespace(mode=RunMode.MULTIRUN, launcher=launcher)
        monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(HydraConfig, "get", lambda found=found: found)
        assert cli.threads("auto") == expected, launcher
