import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from callbacks import AnalysisCallback
from callbacks.cost import COPIES, refuse_too_many
from lit_grok import open_run
from lit_grok.cli import UsageError
from lit_grok.networks import IsingCNN
from lit_grok.results import CHECKPOINT

FIM = ("+callbacks.fim._target_=callbacks.FIMTrajectoryCallback", "+callbacks.fim.every=1")


@pytest.fixture
def machine(monkeypatch):
    """A machine with this many bytes of free memory and disk."""

    def limit(memory=1e15, disk=1e15):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(memory)))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(disk)))

    limit()
    return limit


@pytest.mark.parametrize("epochs", [0, 1, 2, 9, 10, 11, 99, 100, 101, 1000])
@pytest.mark.parametrize(
    "cadence", [{}, {"every": 1}, {"every": 7}, *({"per_decade": n} for n in (1, 2, 5, 10, 20, 50))]
)
def test_the_number_of_measurements_is_known_beforehand(cadence, epochs):
    callback = AnalysisCallback(**cadence)
    counted = sum(callback.is_due(epoch) for epoch in range(epochs + 1))
    assert callback.measurements(epochs) == (counted or 1)  # without a cadence: once, at the end


# Refused at once


def test_replicas_that_do_not_fit_into_memory(command, machine):
    needed = 1000 * 4 * COPIES * 555
    machine(memory=needed - 1)
    result = command(*command.MOD_ADD, "seed=0:1000", "run_dir=run")
    assert result.code == 2
    assert result.err == (
        "error: 1000 replicas of 555 parameters take about 22.2 MB of memory, and 22.2 MB are free: "
        "at most 999 fit at once (replicas_at_once=auto trains stacks of so many, one after the other)\n"
    )
    assert not (command.folder / "run").exists()


def test_a_hundred_thousand_replicas_are_refused_before_they_are_made(command, machine, monkeypatch):
    machine(memory=20e9)
    for made_for_each in ("lit_grok.networks.scale_parameters", "datamodules.IsingDataModule.__init__"):
        monkeypatch.setattr(made_for_each, None)
    result = command("task=ising", "seed=0:100000", "logger=none")
    assert result.code == 2
    assert result.err.startswith("error: 100000 replicas of 6798 parameters take about 27.2 GB of memory, and 20.0 GB ")
    assert list(command.folder.iterdir()) == []


def test_the_data_of_many_replicas_count_where_each_has_its_own(command, machine):
    spins = 60 * 8 * 8 * 4
    parameters = sum(p.numel() for p in IsingCNN(8).parameters())
    machine(memory=3 * 4 * COPIES * parameters + 3 * spins)  # the labels are too much
    assert command(*command.ISING, "seed=0:3", "run_dir=run").code == 2
    assert command(*command.ISING, "seed=0:3", "seeds.data=0", "run_dir=run").code == 0


def test_checkpoints_that_do_not_fit_onto_the_disk(command, machine):
    machine(disk=100_000)
    result = command(*command.MOD_ADD, "seed=0:5", "run_dir=run")
    assert result.code == 2
    assert re.fullmatch(
        r"error: 5 replica\(s\) .* 111\.0 kB of disk, 111\.0 kB of it for checkpoints, .*\n", result.err
    )
    assert not (command.folder / "run").exists()


def test_what_a_resumed_run_has_written_needs_no_more_room(command, machine):
    run = command.mod_add(*FIM)
    machine(disk=2000)
    assert command(f"resume={run}", "epochs=6").code == 0
    assert command(f"resume={run}", "epochs=10000").code == 2


def test_on_a_gpu_its_own_memory_counts(machine, monkeypatch):
    machine(memory=1e15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**9))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda:0")))
    with pytest.raises(UsageError, match=r"27\.2 MB of memory, and 1\.0 MB are free"):
        refuse_too_many(100, IsingCNN(16), {}, trainer)


def test_results_that_do_not_fit(command, machine):
    machine(memory=1e9)
    result = command(*command.MOD_ADD, "epochs=100000000", "run_dir=run")
    assert result.code == 2
    assert re.fullmatch(
        r"error: the results of 100000000 epochs take about 2\.0 GB, 2\.0 GB of it for callbacks\.evaluation, and "
        r"memory and disk have room for 250\.0 MB: measure less often\n",
        result.err,
    )


def test_the_size_of_the_results_is_the_right_one(command, machine):
    run = command.mod_add("epochs=300")
    nbytes = sum(array.nbytes for array in open_run(run).evaluation.data_vars.values())
    machine(memory=4 * nbytes)
    assert command(*command.MOD_ADD, "epochs=300").code == 0
    machine(memory=4 * nbytes - 4)
    assert command(*command.MOD_ADD, "epochs=300").code == 2


# Told by a dry run


def said(result):
    """First word to the rest of each line."""
    assert result.code == 0, result.err
    assert result.err == ""
    return dict(line.split(maxsplit=1) for line in result.out.splitlines())


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(command):
    lines = said(command(*command.MOD_ADD, *FIM, "epochs=200", "init_scale=[1,10]", "logger=wandb", "dry_run=true"))
    assert list(lines) == ["replicas", "parameters", "epochs", "time", "memory", "disk"]
    assert lines["replicas"] == "2"
    assert lines["parameters"] == "555 per replica"
    assert lines["epochs"] == "200 of 2 step(s)"
    assert re.match(r"about .*: .*training", lines["time"])
    assert "free" in lines["memory"]
    assert re.fullmatch(rf"at most .*fim {2 * 201 * 4 * 2 * 555 / 1e6:.1f} MB.*; .*B are free", lines["disk"])
    assert list(command.folder.iterdir()) == []


def test_a_dry_run_looks_at_the_disk_that_the_run_would_be_on(command, monkeypatch):
    (command.folder / "scratch").mkdir()
    seen = set()
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (seen.add(Path(path).parent), usage(path))[1])
    said(command(*command.MOD_ADD, "run_dir=scratch/mine/run", "dry_run=true"))
    assert seen == {Path("scratch")}
    assert list(command.folder.rglob("*")) == [command.folder / "scratch"]


def test_a_dry_run_that_fails_leaves_nothing_either(command):
    assert command(*command.MOD_ADD, "dry_run=true", "P=1").code == 2
    fails = (
        "+callbacks.fails._target_=tests.helpers.FailsWhile",
        "+callbacks.fails.epoch=1",
        "+callbacks.fails.every=1",
    )
    (command.folder / "failing").touch()
    with pytest.raises(RuntimeError, match="no such luck"):
        command(*command.MOD_ADD, *fails, "dry_run=true")
    assert [path.name for path in command.folder.iterdir()] == ["failing"]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_dry_run_of_very_few_epochs(command, epochs):
    lines = said(command(*command.MOD_ADD[:-1], "callbacks=mod_add", f"epochs={epochs}", "dry_run=true"))
    assert lines["epochs"] == f"{epochs} of 2 step(s)"
    assert "nan" not in str(lines)
    assert "inf" not in str(lines)


@pytest.mark.parametrize(("threads", "clock"), [(1, "process_time"), (2, "perf_counter")])
def test_the_time_is_what_each_part_takes_as_often_as_it_is_asked_for(command, monkeypatch, threads, clock):
    # A second for whatever is timed; of one thread the waiting of a busy machine is not counted.
    monkeypatch.setattr(f"time.{clock}", iter(range(10**6)).__next__)
    lines = said(command(*command.MOD_ADD, "epochs=1000", "log_every=10", f"threads={threads}", "dry_run=true"))
    # 1000 epochs, 100 evaluations (the one at epoch 0 has been), and whatever an analysis measures at the end.
    assert lines["time"] == "about 0:18:21: training 0:16:40, evaluation 0:01:41; without drawing"


def test_an_epoch_that_was_disturbed_does_not_count(command, monkeypatch):
    waits = itertools.chain([0, 0, 0, 50, 0, 0, 7], itertools.repeat(0))
    monkeypatch.setattr("time.process_time", (n + w for n, w in enumerate(itertools.accumulate(waits))).__next__)
    lines = said(command(*command.MOD_ADD, "epochs=1000", "log_every=10", "threads=1", "dry_run=true"))
    assert lines["time"].startswith("about 0:18:21: ")


def test_a_first_measurement_that_compiles_does_not_count(command, monkeypatch):
    slow = ("+callbacks.slow._target_=tests.helpers.WarmsUp", "+callbacks.slow.every=500")
    monkeypatch.setattr("time.process_time", itertools.count().__next__)
    lines = said(command(*command.MOD_ADD, *slow, "epochs=1000", "log_every=10", "threads=1", "dry_run=true"))
    assert lines["time"] == "about 0:18:24: training 0:16:40, evaluation 0:01:41; without drawing"


def test_an_analysis_that_is_not_due_in_these_few_epochs(command, monkeypatch):
    seldom = ("+callbacks.seldom._target_=tests.helpers.WarmsUp", "+callbacks.seldom.per_decade=1")
    run = command.mod_add(*seldom, "epochs=50")
    monkeypatch.setattr("callbacks.cost.CostCallback.__init__.__defaults__", (0.0,))
    lines = said(command(f"resume={run}", "epochs=1000", "dry_run=true"))
    assert lines["epochs"] == "950 of 2 step(s)"
    assert "inf" not in str(lines)


def test_checkpoints_are_those_of_the_whole_run(command):
    options = (*FIM[:-1], "+callbacks.fim.every=20", "epochs=45")
    whole = 2 * (command.mod_add(*options) / CHECKPOINT).stat().st_size / 1e6
    disk = said(command(*command.MOD_ADD, *options, "dry_run=true"))["disk"]
    amount, unit = re.search(r"checkpoints ([.0-9]+) (kB|MB)", disk).groups()
    assert float(amount) * {"kB": 1e-3, "MB": 1}[unit] == pytest.approx(whole, rel=0.1)


def test_a_dry_run_of_a_continuation(command):
    run = command.mod_add()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lines = said(command(f"resume={run}", "epochs=1000", "dry_run=true"))
    assert lines["epochs"] == "996 of 2 step(s)"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    result = command(f"resume={run}", "dry_run=true")
    assert result.code == 2
    assert result.err == "error: epochs=4: that run has made 4 epochs already; give more\n"
    assert json.loads((run / "summary.json").read_text())[0]["epochs"] == 4


def test_an_ordinary_run_says_nothing_of_it(command):
    result = command(*command.MOD_ADD, "run_dir=run")
    assert result.code == 0
    assert "disk" not in result.out + (command.folder / "run" / "train.log").read_text()
