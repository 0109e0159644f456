"""The runs that studies need: described by command lines, found by what these resolve to, trained where missing.

A sweep is a command line of train.py without a seed; a run is that with one seed, all its init_scales side by side. A
run's directory is named by a digest of its resolved configuration, less where it is written, how it is watched, and
what is switched off: two studies that ask for the same training find the same directory, a default that changes asks
for a new one, and an option that comes later, and is off, for none.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lit_grok.results import CONFIG, essence, finished, has_checkpoint, read_config

TRAIN = Path(__file__).parents[1] / "train.py"
CONFIG_DIR = TRAIN.parent / "configs"

_DIGITS = 10


@dataclass(frozen=True)
class Sweep:
    """Every init_scale of one setting, to be trained with several seeds.

    Args:
        name: How studies call it.
        task: The task.
        init_scales: Trained side by side.
        overrides: What else the command line says.

    Raises:
        ValueError: Where that is a seed, which a run brings along.
    """

    name: str
    task: str
    init_scales: tuple[float, ...]
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if seeds := [part for part in self.overrides if part.partition("=")[0].lstrip("+") == "seed"]:
            raise ValueError(f"sweep {self.name}: {seeds[0]}: a seed is what a run of it brings along")

    def run(self, seed: int) -> "Run":
        """The run of one seed."""
        return Run(self, seed)

    @property
    def varied(self) -> tuple[str, str]:
        """Its task and its init_scales, as they are typed."""
        return f"task={self.task}", f"init_scale=[{','.join(f'{scale:g}' for scale in self.init_scales)}]"


@dataclass(frozen=True)
class Run:
    """One training: a sweep with one seed."""

    sweep: Sweep
    seed: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """What its command line says."""
        return (*self.sweep.varied, f"seed={self.seed}", *self.sweep.overrides)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, but for what makes no difference to what is found."""
        config = deepcopy(_composed((*self.sweep.varied, *self.sweep.overrides)))
        config.seed = self.seed
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        return essence(resolved)

    @property
    def epochs(self) -> int:
        """How long it trains."""
        return int(self.config["epochs"])

    @cached_property
    def name(self) -> str:
        """Its directory's name: the task, the seed and a digest of the configuration."""
        return f"{self._stem}-{_digest(self.config)}"

    @property
    def _stem(self) -> str:
        return f"{self.sweep.task}-seed{self.seed}"

    def command(self, root: Path) -> list[str]:
        """What trains it, or goes on with what a kill has left."""
        directory = root / self.name
        start = [sys.executable, str(TRAIN)]
        if has_checkpoint(directory):
            return [*start, f"resume={directory}", "threads=1"]
        return [*start, *self.overrides, f"run_dir={directory}", "logger=none", "threads=1"]

    @property
    def typed(self) -> str:
        """The command as one would type it."""
        return shlex.join(["python", "train.py", *self.overrides])

    def complete(self, root: Path) -> bool:
        """Whether it has ended, with results and a summary of this training and no other."""
        if next(root.glob(f"{self._stem}-*"), None) is None:  # so that a listing of nothing resolves no configuration
            return False
        return bool(finished(root / self.name, self.epochs)) and not self.strange(root)

    def strange(self, root: Path) -> str | None:
        """Why what is in its directory is another training: one that was extended, say; None where it is not."""
        directory = root / self.name
        if not (directory / CONFIG).exists():
            return None
        found = read_config(directory)
        if _digest(essence(found)) == _digest(self.config):
            return None
        return f"{directory}: holds another training than its name says; move it away"


def switched_on(config: Any) -> Any:
    """A configuration without what is null, false, zero, ``none`` or empty.

    Example:
        >>> switched_on({"loss": "mse", "shuffle": False, "hole": "none", "layers": [0, 1], "logger": {"tags": []}})
        {'loss': 'mse', 'layers': [0, 1]}
    """
    if not isinstance(config, Mapping):
        return config
    kept = {key: switched_on(value) for key, value in config.items()}
    return {key: value for key, value in kept.items() if value and value != "none"}


def _digest(config: Mapping[str, Any]) -> str:
    canonical = json.dumps(switched_on(config), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGITS]


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of a command line, not resolved: that takes half a second, which the seeds of a sweep share."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", [*overrides, "run_dir=runs"])


def train_one(run: Run, root: Path) -> str | None:
    """Train one run, or go on with what a kill has left of it; another process that trains it is waited for.

    Args:
        run: Which.
        root: Where runs are.

    Returns:
        None where it is complete, else why it is not: the last line that the training said.
    """
    with _alone(root / f".{run.name}.lock") as lock:
        if run.complete(root):
            return None
        directory = root / run.name
        if reason := run.strange(root):
            return reason
        if directory.exists() and not has_checkpoint(directory):
            shutil.rmtree(directory)
        said = root / f".{run.name}.log"
        # Lock and log are the training's own: it goes on where what has started it is killed.
        with said.open("w") as log:
            found = subprocess.run(
                run.command(root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )
        if run.complete(root):
            said.unlink()
            return None
        lines = [line for line in said.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with exit code {found.returncode} and said nothing"


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Hold a lock that dies with the last process that has the file open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{path.stem.removeprefix('.')}: another process is training it; waiting for that\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def train_here(runs: Iterable[Run], root: Path, jobs: int, ended: Callable[[Run, str | None], None]) -> None:
    """Train runs on this machine, so many at a time, one thread each.

    Args:
        runs: Those that are missing.
        root: Where runs are.
        jobs: How many at a time.
        ended: Called with each run when it has ended, and with what `train_one` says of it.
    """
    with ThreadPoolExecutor(jobs) as pool:
        training = {pool.submit(train_one, run, root): run for run in runs}
        for one in as_completed(training):
            ended(training[one], one.result())
