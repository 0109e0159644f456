import logging
import runpy
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two test processes share two cores; more threads than that only get in each other's way."""
    torch.set_num_threads(1)


class Command:
    """``python train.py …`` in an empty folder, in this process."""

    MOD_ADD = ("task=mod_add", "P=11", "network.hidden=[16]", "epochs=4", "logger=none", "callbacks=base")
    ISING = (
        *("task=ising", "side=8", "datamodule.snapshots=4", "datamodule.steps=200", "datamodule.train_size=20"),
        *("datamodule.test_size=40", "batch_size=8", "epochs=4", "log_every=1", "logger=none", "callbacks=base"),
    )

    def __init__(self, folder, monkeypatch, capfd):
        self.folder, self._monkeypatch, self._capfd = folder, monkeypatch, capfd

    def __call__(self, *overrides):
        self._monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        self._capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = self._capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    def mod_add(self, *overrides):
        """A tiny run, in the folder ``run`` unless told otherwise; its directory."""
        return self._run(self.MOD_ADD, overrides)

    def ising(self, *overrides):
        """Likewise."""
        return self._run(self.ISING, overrides)

    def _run(self, tiny, overrides):
        given = [o.partition("=")[2] for o in overrides if o.startswith("run_dir=")]
        name = given[0] if given else "run"
        result = self(*tiny, f"run_dir={name}", *overrides)
        assert result.code == 0, result.err
        return self.folder / name


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = logging.getLogger("lit_grok")
    before = log.level, log.propagate, log.handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Command(tmp_path, monkeypatch, capfd)
    for handler in log.handlers:
        handler.close()
    log.level, log.propagate, log.handlers = before
    for number, handler in handlers.items():  # a training that failed does not give them back
        signal.signal(number, handler)
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
