import csv
import json

import pytest
import wandb

from lit_grok import loggers

LABELS = ["init_scale=1 seed=0", "init_scale=10 seed=0"]
REPLICAS = [{"init_scale": 1.0, "seed": 0}, {"init_scale": 10.0, "seed": 0}]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Tables


def test_one_table_per_replica(tmp_path):
    both = loggers.csv_loggers(LABELS, run_dir=tmp_path, config={}, replicas=REPLICAS)
    for r, logger in enumerate(both):
        logger.log_metrics({"epoch": 0, "a": 0.5 + r}, step=0)
        logger.log_metrics({"epoch": 10, "a": 1.5 + r}, step=10)
        logger.log_metrics({"epoch": 10, "b": 2}, step=10)
        logger.finalize("success")
    assert sorted(p.name for p in (tmp_path / "csv").iterdir()) == [
        "init_scale=10_seed=0.csv",
        "init_scale=1_seed=0.csv",
    ]
    rows = read(tmp_path / "csv" / "init_scale=10_seed=0.csv")
    assert rows == [{"epoch": "0", "a": "1.5", "b": ""}, {"epoch": "10", "a": "2.5", "b": "2"}]


def test_a_resumed_table_goes_on_and_never_back(tmp_path):
    first = loggers.CSVLogger(tmp_path / "x.csv")
    for epoch in (0, 1, 2):
        first.log_metrics({"epoch": epoch, "a": epoch / 2})
    first.save()
    second = loggers.CSVLogger(tmp_path / "x.csv")
    second.log_metrics({"epoch": 2, "a": 7})  # an epoch that is done again after a kill
    second.log_metrics({"epoch": 3, "a": 8})
    second.save()
    assert [(r["epoch"], float(r["a"])) for r in read(tmp_path / "x.csv")] == [("0", 0), ("1", 0.5), ("2", 7), ("3", 8)]
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def test_no_loggers():
    assert loggers.no_loggers(LABELS, run_dir="x", config={}, replicas=REPLICAS) == []


# Weights & Biases


class Run:
    def __init__(self, options):
        self.options, self.exit_code, self.summary, self.id = options, None, {}, options["id"]

    def define_metric(self, *args, **kwargs):
        pass

    def finish(self, exit_code=0):
        self.exit_code = exit_code


@pytest.fixture
def started(monkeypatch):
    """W&B runs that were asked for, without starting W&B."""
    runs = []

    def init(**options):
        runs.append(Run(options))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(loggers, "WandbLogger", lambda experiment: experiment)
    return runs


def start(folder, **options):
    return loggers.wandb_loggers(LABELS, folder, {"task": "ising", "epochs": 5}, REPLICAS, **options)


def test_one_run_per_replica_in_one_group(tmp_path, started):
    assert start(tmp_path / "2026", tags=["x"]) == started
    assert [run.options["group"] for run in started] == ["2026", "2026"]
    assert len({run.options["id"] for run in started}) == 2
    assert [run.options["config"] for run in started] == [{"task": "ising", "epochs": 5, **r} for r in REPLICAS]
    assert {(run.options["mode"], run.options["reinit"]) for run in started} == {("offline", "create_new")}
    assert [run.options["name"] for run in started] == [f"ising {label}" for label in LABELS]
    assert all(run.options["dir"] == str(tmp_path / "2026") for run in started)


def test_a_resumed_run_keeps_its_ids(tmp_path, started):
    start(tmp_path)
    start(tmp_path, mode="online")
    ids = [run.options["id"] for run in started]
    assert ids[:2] == ids[2:]
    assert json.loads((tmp_path / "wandb_ids.json").read_text()) == ids[:2]
    assert [run.options["resume"] for run in started] == [None, None, "allow", "allow"]


class Odd(Exception):
    pass


@pytest.mark.parametrize("error", [OSError("disk full"), Odd(), RuntimeError("first line\nsecond line"), ValueError()])
def test_a_failing_start_costs_a_warning_and_nothing_else(tmp_path, started, monkeypatch, caplog, error):
    whole = wandb.init

    def init(**options):
        if len(started) == 1:
            raise error
        return whole(**options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("lit_grok.loggers.log.propagate", True)
    assert start(tmp_path) == []
    assert started[0].exit_code == 1  # the one that did start is closed
    (record,) = caplog.records
    assert "W&B could not start" in record.getMessage()
    assert "second line" not in record.getMessage()


def test_a_damaged_ids_file_does_not_stop_the_training(tmp_path, started):
    (tmp_path / "wandb_ids.json").write_text("[")
    loggers_or_none = start(tmp_path)
    assert loggers_or_none in ([], started)


def test_unknown_mode(tmp_path):
    with pytest.raises(ValueError, match=r"logger.mode=cloud: unknown; allowed: offline, online"):
        start(tmp_path, mode="cloud")
