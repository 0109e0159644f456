"""``python reproduce.py …`` as it is typed, on a study of two tiny sweeps."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import studies
from studies.claims import Claim
from studies.readings import end
from studies.runs import Sweep, train_one
from studies.study import Study

ROOT = Path(__file__).parents[1]
TINY = ("P=11", "network.hidden=[8]", "callbacks=base")
SWEEP = Sweep("tiny", "mod_add", (0.1, 1.0), (*TINY, "epochs=3"))
OTHER = Sweep("other", "mod_add", (0.1, 1.0), (*TINY, "epochs=4"))


def study(*sweeps):
    claim = Claim(
        name="small",
        says="Losses are small.",
        source="ours",
        statistic="test loss",
        values=lambda results: end(results[sweeps[0].name], "evaluation/test_loss").sel(init_scale=1, drop=True),
        side="<",
        threshold=100,
    )
    draws = {"evaluation/test_accuracy": None}
    return Study("tiny_study", "Is it tiny?", ("fig99",), sweeps, draws, (claim,), lambda results: {})


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, "all_studies", lambda: [study(SWEEP)])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / "reproduce.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_runs_are_trained_once_and_judged(reproduce, tmp_path):
    listed = reproduce("--seeds", "2")
    assert "tiny_study" in listed.out
    assert "0/2" in listed.out
    assert "not timed yet" in listed.out
    first = reproduce("fig99", "--seeds", "2", "--jobs", "2")
    assert first.code == 0, first.err
    assert first.out.count("done: ") == 2
    assert "undecided" in first.out
    assert (tmp_path / "runs/gallery/index.html").read_text().count("Losses are small") == 1
    again = reproduce("tiny_study", "--seeds", "2")
    assert "done: " not in again.out
    assert "2/2" in reproduce("--seeds", "2").out
    more = reproduce("all", "--seeds", "2:3")
    assert more.out.count("done: ") == 1
    assert " 3 " in more.out  # seeds of before are kept
    assert "reproduced" in more.out
    dry = reproduce("all", "--seeds", "3", "--dry-run")
    assert dry.out.count("complete") == 3


def test_a_run_that_fails_is_told_at_the_end_and_stops_no_other(reproduce, monkeypatch):
    wrong = Sweep("wrong", "mod_add", (0.1,), (*TINY, "epochs=3", "train_fraction=0"))
    monkeypatch.setattr(studies, "all_studies", lambda: [study(SWEEP, wrong)])
    found = reproduce("all", "--seeds", "1")
    assert found.code == 1
    assert "train_fraction=0" in found.err
    assert "error: " in found.err
    assert found.out.count("done: ") == 1
    assert "Losses are small" in found.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fig999"], "did you mean fig99"),
        (["all", "fig999"], "did you mean fig99"),
        (["all", "--seed", "3"], "unrecognized arguments: --seed 3"),
        (["all", "--seeds", "none"], "such as 5"),
        (["all", "--jobs", "0"], "1 or more"),
        (["all", "--launcher", "pbs"], "slurm"),
    ],
)
def test_what_is_not_there_is_refused(reproduce, arguments, said):
    found = reproduce(*arguments)
    assert found.code == 2
    assert said in found.err


def test_a_run_that_was_extended_is_another(reproduce, tmp_path):
    assert reproduce("fig99", "--seeds", "1").code == 0
    run = SWEEP.run(0)
    directory = tmp_path / "runs/studies" / run.name
    resumed = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"resume={directory}", "epochs=8"], capture_output=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert not run.complete(tmp_path / "runs/studies")
    found = reproduce("fig99", "--seeds", "1")
    assert found.code == 1
    assert "holds another training than its name says; move it away" in found.err
    assert directory.exists()


def test_a_damaged_summary_stops_no_other_study(reproduce, monkeypatch, tmp_path):
    table = next(one for one in studies.of_paper("grokking_vs_learning") if "table1" in one.figures)
    monkeypatch.setattr(studies, "all_studies", lambda: [study(SWEEP), table])
    (tmp_path / "runs/results").mkdir(parents=True)
    (tmp_path / "runs/results/tiny_study.json").write_text("{")
    found = reproduce("all", "--seeds", "1")
    assert found.code == 2
    assert "tiny_study.json: cannot be read as the summary of a study" in found.err
    assert (tmp_path / "runs/results/parameters.json").exists()
    assert "tiny_study.json: cannot be read" in (tmp_path / "runs/gallery/index.html").read_text()


def test_a_dry_run_says_what_is_missing(reproduce, tmp_path):
    found = reproduce("fig99", "--seeds", "1", "--dry-run")
    assert found.out.count("python train.py task=mod_add") == 1
    assert "missing" in found.out
    assert not list((tmp_path / "runs/studies").glob("mod_add*"))
    assert "not timed yet" not in reproduce("--seeds", "1").out


def test_a_training_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = Sweep("long", "mod_add", (0.1, 1.0), (*TINY, "epochs=1000", "checkpoint_every=20"))
    run = long.run(0)
    script = (
        "from pathlib import Path; from studies.runs import Sweep, train_one\n"
        f"train_one(Sweep('long', 'mod_add', (0.1, 1.0), {long.overrides!r}).run(0), Path('runs'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    checkpoint = tmp_path / "runs" / run.name / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.complete(Path("runs"))
    assert train_one(run, Path("runs")) is None
    log = (checkpoint.parents[1] / "train.log").read_text()
    assert "going on from" in log


def test_a_training_whose_starter_was_killed_is_waited_for(tmp_path, monkeypatch):
    """It holds its lock by itself: nobody else trains the same run beside it."""
    monkeypatch.chdir(tmp_path)
    overrides = (*TINY, "epochs=600")
    run = Sweep("long", "mod_add", (0.1, 1.0), overrides).run(0)
    script = (
        "from pathlib import Path; from studies.runs import Sweep, train_one\n"
        f"train_one(Sweep('long', 'mod_add', (0.1, 1.0), {overrides!r}).run(0), Path('runs'))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    config = tmp_path / "runs" / run.name / "config.yaml"
    deadline = time.monotonic() + 120
    while not config.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert train_one(run, Path("runs")) is None
    log = (config.parent / "train.log").read_text()
    assert "going on from" not in log
    assert log.count("results in") == 1


def test_a_run_is_known_by_what_it_resolves_to():
    same = Sweep("another_name", "mod_add", (0.1, 1.0), (*TINY, "epochs=3", "learning_rate=0.005", "threads=2"))
    assert same.run(0).name == SWEEP.run(0).name
    assert OTHER.run(0).name != SWEEP.run(0).name
    assert SWEEP.run(1).name != SWEEP.run(0).name
