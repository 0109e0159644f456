import base64
import logging
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.simulated_gpu import gpu  # noqa: F401

ROOT = Path(__file__).parents[1]
#: A PNG of one pixel.
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


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

    PRIME = (
        *("task=prime", "P=11", "train_fraction=0.5", "d_model=8", "network.heads=2", "network.d_mlp=12", "epochs=4"),
        *("log_every=1", "logger=none", "callbacks=base"),
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

    def prime(self, *overrides):
        """Likewise; a callback that is given is measured after every second epoch."""
        given = [o.partition("._target_=")[0] for o in overrides if "._target_=" in o]
        measured = [part for name in given for part in (f"+{name}.every=2",)]
        plus = [f"+{o}" if "._target_=" in o else o for o in overrides]
        return self._run(self.PRIME, (*plus, *measured))

    def _run(self, tiny, overrides):
        given = [o.partition("=")[2] for o in overrides if o.startswith("run_dir=")]
        name = given[0] if given else "run"
        result = self(*tiny, f"run_dir={name}", *overrides)
        assert result.code == 0, result.err
        assert "was not drawn" not in result.err
        return self.folder / name


#: What `composed` has composed, by the files that there were to choose from and what was chosen.
COMPOSED = {}


def composed(name, overrides):
    """Hydra's composition, without composing twice what no test changes: it takes longer than a tiny training."""
    sources = GlobalHydra.instance().config_loader().get_sources()
    key = (*(source.path for source in sources), name, *overrides)
    if key not in COMPOSED:
        COMPOSED[key] = hydra.compose(name, overrides=overrides)
        OmegaConf.set_readonly(COMPOSED[key], True)
    return COMPOSED[key]


@pytest.fixture
def command(request, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lit_grok.choices.compose", composed)
    # Hydra composes every configuration once just to look for hydra.mode, which no file here sets.
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
    if not request.node.get_closest_marker("rendered"):  # pictures take most of the time of a tiny run
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(DOT))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("lit_grok.report.write_report", lambda run_dir: None)  # a quarter of a second for every run
    monkeypatch.setattr("lit_grok.kernels.compiled.announcer.told", True)  # only the first test here would hear it
    monkeypatch.setattr(sys, "path", [*sys.path])  # a run adds the folder it is started in
    log = logging.getLogger("lit_grok")
    before = log.level, log.propagate, log.handlers
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Command(tmp_path, monkeypatch, capfd)
    for handler in log.handlers:
        handler.close()
    log.level, log.propagate, log.handlers = before
    for number, handler in handlers.items():  # a training that failed does not give them back
        signal.signal(number, handler)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _arithmetic():
    """A run sets how this process calculates, for the rest of its life."""
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


def mounted(folder, *options):
    """Mount something, if this machine lets a test do that."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "limit"])
def full_disk(request, tmp_path):
    """A folder in which no file can grow beyond so many bytes: a small disk, or a limit on every file."""
    folder, size = tmp_path / "disk", 1 << 20
    if request.param == "limit":
        folder.mkdir()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield folder, size
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "none")
    yield folder, size
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_copy(tmp_path):
    """A function that copies a folder to where nothing can be written, not even by root."""
    disk = tmp_path / "disk"

    def copy(folder):
        mounted(disk, "-t", "tmpfs", "none")
        shutil.copytree(folder, disk / folder.name)
        mounted(disk, "-o", "remount,ro")
        return disk / folder.name

    yield copy
    subprocess.run(["umount", "-l", str(disk)], capture_output=True)


@pytest.fixture
def read_only(tmp_path, read_only_copy):
    """An empty folder in which nothing can be written."""
    (tmp_path / "empty").mkdir()
    return read_only_copy(tmp_path / "empty")
