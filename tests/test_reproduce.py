"""``python reproduce.py …`` as it is typed, on a study of two tiny sweeps."""

import os
import re
import runpy
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

import studies
from studies import pages, reproduction
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
def reproduce(command, monkeypatch, capfd):
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


class AtOnce(Executor):
    """Does in this thread what it is asked to do: only there can a training listen to signals."""

    def __init__(self, jobs):
        assert jobs == 1

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture
def here(command, monkeypatch):
    """A function from which on ``train.py`` runs in this process: one of its own imports for longer than it trains."""

    def run(arguments, stdout=None, **_):
        python, script, *overrides = arguments
        assert (python, Path(script)) == (sys.executable, ROOT / "train.py")
        said, code = stdout if hasattr(stdout, "write") else StringIO(), 0
        with monkeypatch.context() as patched, redirect_stdout(said), redirect_stderr(said):
            patched.setattr(sys, "argv", ["train.py", *overrides])
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        return subprocess.CompletedProcess(arguments, code, said.getvalue() if said is not stdout else None)

    def begin():
        monkeypatch.setattr("studies.runs.ThreadPoolExecutor", AtOnce)
        for module in ("runs", "reproduction"):
            monkeypatch.setattr(f"studies.{module}.subprocess", SimpleNamespace(run=run, DEVNULL=None))

    return begin


def test_runs_are_trained_once_and_judged(reproduce, here, monkeypatch, tmp_path):
    listed = reproduce("--seeds", "2")
    assert "tiny_study" in listed.out
    assert "0/2" in listed.out
    assert "not timed yet" in listed.out
    first = reproduce("fig99", "--seeds", "2", "--jobs", "2")
    assert first.code == 0, first.err
    assert first.out.count("done: ") == 2
    assert "too few seeds" in first.out
    assert (tmp_path / "runs/gallery/index.html").read_text().count("Losses are small") == 1
    here()
    again = reproduce("tiny_study", "--seeds", "2")
    assert "done: " not in again.out
    assert "2/2" in reproduce("--seeds", "2").out
    elsewhere = reproduce("--seeds", "2", "--runs", "none").out
    assert "0/2" in elsewhere
    assert "not timed yet" in elsewhere
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "runs/results")  # as if these were committed
    assert "not timed yet" not in reproduce("--seeds", "2", "--runs", "none").out
    more = reproduce("all", "--seeds", "2:3")
    assert more.out.count("done: ") == 1
    assert " 3 " in more.out  # seeds of before are kept
    assert "reproduced" in more.out
    dry = reproduce("all", "--seeds", "3", "--dry-run")
    assert dry.out.count("complete") == 3


def test_a_run_that_fails_is_told_at_the_end_and_stops_no_other(reproduce, here, monkeypatch):
    here()
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
        (["all", "--seed", "3"], "unrecognized arguments: --seed 3 (did you mean --seeds?)"),
        (["all", "--dryrun"], "unrecognized arguments: --dryrun (did you mean --dry-run?)"),
        (["all", "--nothing=1"], "unrecognized arguments: --nothing=1\n"),
        (["all", "--seeds", "none"], "such as 5"),
        (["all", "--jobs", "0"], "1 or more"),
        (["all", "--launcher", "pbs"], "slurm"),
    ],
)
def test_what_is_not_there_is_refused(reproduce, arguments, said):
    found = reproduce(*arguments)
    assert found.code == 2
    assert said in found.err


def test_a_run_that_was_extended_is_another(reproduce, here, command, tmp_path):
    here()
    assert reproduce("fig99", "--seeds", "1").code == 0
    run = SWEEP.run(0)
    directory = tmp_path / "runs/studies" / run.name
    assert command(f"resume={directory}", "epochs=8").code == 0
    assert not run.complete(tmp_path / "runs/studies")
    found = reproduce("fig99", "--seeds", "1")
    assert found.code == 1
    assert "holds another training than its name says; move it away" in found.err
    assert directory.exists()


def test_a_damaged_summary_stops_no_other_study(reproduce, here, monkeypatch, tmp_path):
    here()
    table = next(one for one in studies.of_paper("grokking_vs_learning") if "table1" in one.figures)
    monkeypatch.setattr(studies, "all_studies", lambda: [study(SWEEP), table])
    (tmp_path / "runs/results").mkdir(parents=True)
    (tmp_path / "runs/results/tiny_study.json").write_text("{")
    found = reproduce("all", "--seeds", "1")
    assert found.code == 2
    assert "tiny_study.json: cannot be read as the summary of a study" in found.err
    assert (tmp_path / "runs/results/parameters.json").exists()
    assert "tiny_study.json: cannot be read" in (tmp_path / "runs/gallery/index.html").read_text()


def test_a_dry_run_says_what_is_missing(reproduce, here, tmp_path):
    here()
    found = reproduce("fig99", "--seeds", "1", "--dry-run")
    assert found.out.count("python train.py task=mod_add") == 1
    assert "missing" in found.out
    assert not list((tmp_path / "runs/studies").glob("mod_add*"))
    assert "not timed yet" not in reproduce("--seeds", "1").out


def test_a_training_that_was_killed_goes_on_as_if_it_had_not(here, command, tmp_path):
    mine = "+callbacks.mine={_target_: tests.helpers.SignalWhile, epoch: 5, number: SIGKILL, batch: 0}"
    run = Sweep("long", "mod_add", (0.1, 1.0), (*TINY, "epochs=6", "checkpoint_every=2", mine)).run(0)
    (tmp_path / "signalling").touch()
    assert train_one(run, Path("runs"))
    assert not run.complete(Path("runs"))
    (tmp_path / "signalling").unlink()
    here()
    assert train_one(run, Path("runs")) is None
    assert run.complete(Path("runs"))
    found = tmp_path / "runs" / run.name
    assert (found / "train.log").read_text().count("going on from") == 1
    assert command(*run.overrides, "run_dir=whole", "logger=none").code == 0
    weights = [folder / "weights.safetensors" for folder in (found, tmp_path / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


#: A training that ends when somebody has been told to wait for it.
AWAITED = """
import os, shutil, sys, time
open("training", "w").close()
deadline = time.monotonic() + 120
while not os.path.exists("told") and time.monotonic() < deadline:
    time.sleep(0.02)
shutil.copytree("complete", sys.argv[1])
"""


def test_a_training_whose_starter_was_killed_is_waited_for(command, tmp_path, monkeypatch):
    """It holds its lock by itself: nobody else trains the same run beside it."""
    run = SWEEP.run(0)
    command(*run.overrides, "run_dir=complete", "logger=none")
    starter = (
        "import sys; from pathlib import Path; from studies import runs\n"
        f"run = runs.Sweep('tiny', 'mod_add', (0.1, 1.0), {SWEEP.overrides!r}).run(0)\n"
        f"runs.Run.command = lambda run, root: [sys.executable, '-c', {AWAITED!r}, str(root / run.name)]\n"
        "runs.train_one(run, Path('runs'))"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not (tmp_path / "training").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    monkeypatch.setattr("studies.runs.subprocess.run", None)  # here nothing is trained
    told = tmp_path / "told"
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=told.write_text))
    assert train_one(run, Path("runs")) is None
    assert "another process is training it; waiting for that" in told.read_text()


@pytest.mark.parametrize("seed", ["seed=3", "+seed=3"])
def test_a_sweep_brings_no_seed(seed):
    with pytest.raises(ValueError, match=rf"sweep mine: {re.escape(seed)}: a seed is what a run of it brings along"):
        Sweep("mine", "mod_add", (1.0,), (seed,))


def test_a_run_is_known_by_what_it_resolves_to():
    same = Sweep("another_name", "mod_add", (0.1, 1.0), (*TINY, "epochs=3", "learning_rate=0.005", "threads=2"))
    assert same.run(0).name == SWEEP.run(0).name
    assert OTHER.run(0).name != SWEEP.run(0).name
    assert SWEEP.run(1).name != SWEEP.run(0).name


def test_a_page_begins_with_what_its_studies_take(reproduce, here, monkeypatch, tmp_path):
    here()
    reproduce("fig99", "--seeds", "2")
    unknown = study(SWEEP, OTHER)
    monkeypatch.setattr(studies, "of_paper", lambda paper: [study(SWEEP), replace(unknown, name="untried")])
    (tmp_path / "runs/results/costs.json").write_text('{"tiny": 5400}')
    page = pages.all_verdicts("ours", "ours", tmp_path / "runs/results")
    assert "| [tiny_study](#is-it-tiny-fig99) | Is it tiny? | 1 too few seeds | 2 | 1.5 |" in page
    assert "| untried | Is it tiny? | not run yet | 0 | not timed |" in page
    assert "## Is it tiny? (fig99)" in page
