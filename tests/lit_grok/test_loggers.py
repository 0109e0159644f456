import csv
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import wandb

from lit_grok import loggers
from tests.helpers import files_with, wandb_ids

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


@pytest.mark.parametrize(
    "content", ["[", "", "{}", "3", '["../../x", "y"]', '["0123abcd"]', "[[1], [2]]", "\0", "[" * 10**5]
)
def test_a_damaged_ids_file_costs_the_ids_and_a_word(tmp_path, started, caplog, monkeypatch, content):
    monkeypatch.setattr("lit_grok.loggers.log.propagate", True)
    (tmp_path / "wandb_ids.json").write_text(content)
    assert start(tmp_path) == started
    ids = [run.options["id"] for run in started]
    assert len(set(ids)) == 2
    assert json.loads((tmp_path / "wandb_ids.json").read_text()) == ids
    (record,) = caplog.records
    assert "wandb_ids.json: cannot be read as 2 W&B ids" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1


# A server that is not what it should be


KEY = "0123456789abcdef0123456789abcdef01234567"


class Server(BaseHTTPRequestHandler):
    """W&B's server as far as a run needs it to start, and as long as it lives."""

    answers: ClassVar = {
        "RunResumeStatus": {"model": None},
        "UpsertBucket": {
            "upsertBucket": {
                "bucket": {
                    "id": "x",
                    "name": "x",
                    "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
                },
                "inserted": True,
            }
        },
    }

    def do_POST(self):
        query = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        name = re.search(r"(query|mutation) (\w+)", query)
        self.server.released.wait() if self.server.hangs else None
        answer = json.dumps({"data": self.answers.get(name[2] if name else "", {})})
        body = b"<html>Welcome to the hotel!</html>" if self.server.garbage else answer.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on loopback that W&B takes for its own."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    httpd.hangs = httpd.garbage = False
    httpd.handle_error = lambda *_: None  # W&B does not wait for every answer
    httpd.released = threading.Event()
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(loggers, "_PATIENCE", 2)
    monkeypatch.setattr(loggers, "_PATIENCE_AT_THE_END", 2)
    monkeypatch.setattr("lit_grok.loggers.log.propagate", True)
    wandb.teardown()  # its process has read other settings
    yield httpd
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()
    wandb.teardown()


def test_wandb_that_dies_before_the_end_costs_nothing(monkeypatch, caplog):
    class Fake:
        def __init__(self, name):
            self.experiment = Run({"id": name})
            self.experiment.offline = True

    def dead(exit_code=0):
        raise BrokenPipeError("its process is gone")

    monkeypatch.setattr(loggers, "WandbLogger", Fake)
    both = [Fake("first"), Fake("second")]
    both[0].experiment.finish = dead
    loggers.finish(both, [{"status": "steady"}, {"status": "grokked"}], 0)
    assert "W&B could not close run first: its process is gone" in caplog.text
    assert both[1].experiment.exit_code == 0
    assert both[1].experiment.summary == {"status": "grokked"}


@pytest.mark.parametrize("kind", ["refuses", "hangs", "garbage"])
def test_without_a_server_the_run_goes_on_offline(tmp_path, server, caplog, kind):
    if kind == "refuses":
        server.shutdown()
        server.server_close()
    else:
        setattr(server, kind, True)
    caplog.set_level("INFO", "lit_grok")
    both = start(tmp_path, mode="online")
    assert [logger.experiment.offline for logger in both] == [True, True]
    said = [record.getMessage() for record in caplog.records if record.name == "lit_grok"]
    assert said[0] == "connecting to W&B, for 2 s at most"
    assert said[1].startswith("W&B cannot be reached, the run goes on offline (wandb sync uploads it later): ")
    assert len(said) == 2
    both[0].log_metrics({"epoch": 1, "a": 2.0}, step=1)
    loggers.finish(both, [], 0)
    assert not files_with(tmp_path, KEY)
    ids = json.loads((tmp_path / "wandb_ids.json").read_text())
    assert wandb_ids(tmp_path) == sorted(ids)


def test_a_server_that_stops_answering_later_does_not_hold_the_end_up_for_ever(tmp_path, server, caplog):
    caplog.set_level("INFO", "lit_grok")
    both = start(tmp_path, mode="online")
    assert [logger.experiment.offline for logger in both] == [False, False]
    server.hangs = True
    both[0].log_metrics({"epoch": 1, "a": 2.0}, step=1)
    loggers.finish(both, [], 0)
    said = [record.getMessage() for record in caplog.records if record.name == "lit_grok"]
    assert not files_with(tmp_path, KEY)
    assert said[-1] == "uploading to W&B, for 2 s at most for each of 2 runs"


def test_unknown_mode(tmp_path):
    with pytest.raises(ValueError, match=r"logger.mode=cloud: unknown; allowed: offline, online"):
        start(tmp_path, mode="cloud")
