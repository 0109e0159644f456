"""The command line: what the keys may be, which replicas they ask for, and errors in one sentence."""

import difflib
import itertools
import logging
import math
import re
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.utils import get_object
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from tqdm import tqdm

from lit_grok.files import ReadError, WriteError, reading
from lit_grok.results import CHECKPOINT, CONFIG, PREVIOUS_CHECKPOINT, read_checkpoint, read_config

log = logging.getLogger("lit_grok")

EXIT_FAILED, EXIT_USAGE = 1, 2
CONFIG_DIR = Path(__file__).parents[1] / "configs"
#: What may differ between a run and its continuation.
RESUMABLE = ("epochs", "threads", "accelerator", "checkpoint_every")


#: The directories that this process made for its runs.
_made: set[Path] = set()


class UsageError(Exception):
    """Bad input; its message names the key, the value and what is allowed."""


def exit_with(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """End with one line and this exit code."""
    sys.stderr.write(f"error: {' '.join(str(message).split())}\n")
    sys.exit(code)


@contextmanager
def bad_input(run_dir: str | Path) -> Iterator[None]:
    """While everything is still being built a refused value is the user's to correct; the directories made go again."""
    built = False
    try:
        yield
        built = True
    except InstantiationException as error:
        cause = error.__cause__
        key = re.search(r"full_key: (\S+)", str(error))
        where = f"{key.group(1)}: " if key else ""
        if isinstance(cause, ValueError | MisconfigurationException):
            raise UsageError(str(cause)) from None
        missing = re.search(r"Error locating target '([^']+)'", str(error))
        if missing:
            raise UsageError(f"{where}_target_={missing.group(1)}: cannot be imported ({_innermost(error)})") from None
        if isinstance(cause, TypeError):
            raise UsageError(f"{where}{cause}") from None
        raise (cause or error) from None
    except (ValueError, MisconfigurationException) as error:
        raise UsageError(str(error)) from None
    finally:
        if not built:
            for path in [path for path in (Path(run_dir), *Path(run_dir).parents) if path in _made]:
                with suppress(OSError):  # somebody has put something into it
                    path.rmdir()


@contextmanager
def restoring(resume: str | None, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What fails while a resumed run is put together again from its files is due to what they hold."""
    try:
        yield
    except (UsageError, ReadError, WriteError):
        raise
    except Exception as error:
        if resume is None or until():
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise UsageError(
            f"resume={Path(resume).parents[1]}: {CONFIG} and {resume} are not those of a run that can go on "
            f"({type(error).__name__}: {reason})"
        ) from error


@contextmanager
def writing(run_dir: str | Path) -> Iterator[None]:
    """Where a file cannot be written, say how to go on."""
    try:
        yield
    except WriteError as error:
        saved = any((Path(run_dir) / name).exists() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT))
        hint = f"go on with: python train.py resume={run_dir}" if saved else "start again: nothing was saved yet"
        raise WriteError(f"{error}; what was written before is whole; once there is room, {hint}") from error


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what bad input raises into one line; anything else is a bug and keeps its traceback."""
    try:
        yield
    except (UsageError, ReadError) as error:
        exit_with(str(error))
    except WriteError as error:
        exit_with(str(error), EXIT_FAILED)
    except OverrideParseException as error:
        exit_with(f"{error.override}: cannot be read as KEY=VALUE ({str(error).splitlines()[1]})")
    except MissingConfigException as error:
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        options = [o for o in error.options or [] if o]
        exit_with(f"{group}={value}: unknown; allowed: {', '.join(options)}" if options else str(error))
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):
            raise
        exit_with(
            f"{str(error)[0].lower()}{str(error)[1:]}: task, optimizer, callbacks, logger and trainer take a name"
        )
    except (HydraException, OmegaConfBaseException) as error:
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        exit_with(_no_such_key(unknown.group(1)) if unknown else str(error).splitlines()[0])


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _no_such_key(key: str) -> str:
    """Say which keys there are beside the one that is not, and which of them was meant."""
    groups = [
        a
        for a in sys.argv[1:]
        if "=" in a and a.split("=")[0] in ("task", "optimizer", "callbacks", "logger", "trainer")
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=groups)
    path = key.split(".")[:-1]
    while path and not isinstance(OmegaConf.select(config, ".".join(path)), DictConfig):
        path = path[:-1]
    node = OmegaConf.select(config, ".".join(path)) if path else config
    there = [".".join([*path, str(name)]) for name in node]
    close = difflib.get_close_matches(key, there, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{key}: no such key{hint}; allowed: {', '.join(there)}"


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse numbers that make no sense."""
    threads(config["threads"])
    for key in ("epochs", "batch_size", "log_every", "checkpoint_every"):
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{key}={value}: must be a whole number, 1 or more")
    _number("learning_rate", config["learning_rate"])
    kinds = {"cpu": CPUAccelerator, "gpu": CUDAAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
    allowed = ["auto", *(name for name, kind in kinds.items() if kind.is_available())]
    if config["accelerator"] not in allowed:
        raise UsageError(f"accelerator={config['accelerator']}: not on this machine; allowed: {', '.join(allowed)}")
    mode = config["logger"].get("mode", "offline")
    if mode not in ("offline", "online"):
        raise UsageError(f"logger.mode={mode}: unknown; allowed: offline, online")
    for key in ("side", "P"):
        if key in config and (isinstance(config[key], bool) or not isinstance(config[key], int)):
            raise UsageError(f"{key}={config[key]}: must be a whole number")


def replicas(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every replica that init_scale, seed and weight_decay ask for, as their product.

    Args:
        config: The resolved configuration.

    Returns:
        One mapping per replica: init_scale, seed, weight_decay, seed_init, seed_data, seed_order.

    Raises:
        UsageError: For an empty list, and for values that are negative, not finite or not whole seeds.

    Example:
        >>> both = replicas({"init_scale": [1, 10], "seed": "0:2", "weight_decay": 0, "seeds": {"data": 7}})
        >>> [(r["init_scale"], r["seed_init"], r["seed_data"]) for r in both]
        [(1.0, 0, 7), (1.0, 1, 7), (10.0, 0, 7), (10.0, 1, 7)]
    """
    scales = [_number("init_scale", value) for value in _listed("init_scale", config["init_scale"])]
    decays = [_number("weight_decay", value) for value in _listed("weight_decay", config["weight_decay"])]
    seeds = [_seed("seed", value) for value in _listed("seed", config["seed"])]
    given = {k: v for k, v in (config.get("seeds") or {}).items() if v is not None}
    streams = {name: _seed(f"seeds.{name}", value) for name, value in given.items()}
    found = [
        {
            "init_scale": scale,
            "seed": seed,
            "weight_decay": decay,
            **{f"seed_{name}": streams.get(name, seed) for name in ("init", "data", "order")},
        }
        for scale, decay, seed in itertools.product(scales, decays, seeds)
    ]
    if len({tuple(replica.values()) for replica in found}) < len(found):
        raise UsageError("init_scale, seed and weight_decay: the lists hold the same value twice")
    return found


def threads(asked: Any) -> int:
    """Number of threads to train on; ``auto`` is the physical cores that this process may use.

    Raises:
        UsageError: For anything but ``auto`` and a whole number from 1 on.
    """
    if asked == "auto":
        import joblib  # late: it takes a tenth of a second

        return joblib.cpu_count(only_physical_cores=True)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise UsageError(f"threads={asked}: must be auto or a whole number, 1 or more")
    return asked


def _listed(key: str, value: Any) -> list[Any]:
    items: list[Any] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        match = re.fullmatch(r"(\d+):(\d+)", item) if isinstance(item, str) else None
        items += range(int(match[1]), int(match[2])) if match else [item]
    if not items:
        raise UsageError(f"{key}={value}: an empty list; give at least one value")
    return items


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{key}={value}: must be a finite number, 0 or more")
    return float(value)


def _seed(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise UsageError(f"{key}={value}: must be a whole number from 0 to 4294967295, a list, or a range such as 0:10")
    return value


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration of this run as plain containers; that of an earlier run where it is resumed."""
    if config.resume is None:
        config.run_dir = str(_claim(config.run_dir))
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    try:
        saved = read_config(config.resume)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"resume={config.resume}: not a run's directory (it has no {CONFIG})") from None
    try:
        tempfile.TemporaryFile(dir=config.resume).close()
    except OSError as error:
        raise UsageError(f"resume={config.resume}: cannot be written ({error.strerror})") from None
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.partition("=")
        given = yaml.safe_load(value)
        if key != "resume" and key not in RESUMABLE and saved.get(key) != given:
            raise UsageError(
                f"{override}: a resumed run keeps its configuration; only {', '.join(RESUMABLE)} may be given"
            )
        saved[key] = given
    checkpoint, done = _last_checkpoint(Path(config.resume))
    with restoring(str(checkpoint)):
        _refuse_foreign(saved)
        epochs = saved["epochs"]
        if isinstance(epochs, int) and epochs < done:
            raise UsageError(f"epochs={epochs}: that run has made {done} epochs already; give as many or more")
        saved["trainer"] |= {"max_epochs": epochs, "accelerator": saved["accelerator"]}
        if "checkpoint" in saved["callbacks"]:
            saved["callbacks"]["checkpoint"]["every"] = saved["checkpoint_every"]
        saved["trainer"]["default_root_dir"] = saved["run_dir"] = str(config.resume)
        saved["resume"] = str(checkpoint)
    return saved


#: What a run is made of.
_PARTS = (nn.Module, torch.optim.Optimizer, L.Callback, L.LightningDataModule, L.Trainer, Logger, Profiler)


def _refuse_foreign(node: Any, key: str = "") -> None:
    """Admit what a run is made of and the user's own code: a configuration that is read back may be somebody else's.

    Raises:
        UsageError: Where a ``_target_`` is anything else, which could as well remove files.
    """
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        path = f"{key}.{name}" if key else str(name)
        _refuse_foreign(value, path)
        if name == "_target_" and not _is_ours(get_object(value)):
            raise UsageError(f"{path}={value}: in {CONFIG}, but not a part of a run; a resumed run calls nothing else")


def _is_ours(found: Any) -> bool:
    if isinstance(found, type) and issubclass(found, _PARTS):
        return True
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    if not isinstance(found, type | FunctionType) or module is None:
        return False
    if module.__name__.split(".")[0] in ("lit_grok", "callbacks", "datamodules"):
        return module.__name__.startswith(("lit_grok.loggers", "lit_grok.measures"))
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    file = getattr(module, "__file__", None)
    return file is not None and not any(Path(file).is_relative_to(folder) for folder in installed)


def _last_checkpoint(run_dir: Path) -> tuple[Path, int]:
    """The last checkpoint that can be read, and the epochs it has made."""
    paths = [path for path in (run_dir / CHECKPOINT, run_dir / PREVIOUS_CHECKPOINT) if path.exists()]
    for path in paths:
        try:
            with reading(path, "a checkpoint"):
                done = read_checkpoint(path)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
                if not isinstance(done, int):
                    raise ValueError(f"it has made {done} epochs")
                return path, done
        except ReadError as error:
            if path == paths[-1]:
                raise
            log.warning("%s: going on from the one before, %s", error, paths[-1])
    raise UsageError(f"resume={run_dir}: that run has no checkpoint yet (it has no {CHECKPOINT})")


def _claim(run_dir: str) -> Path:
    """Create the run's directory; where it exists the default name gets a counter and any other is refused."""
    chosen = any(o.startswith("run_dir=") for o in HydraConfig.get().overrides.task)
    names = (Path(run_dir if i == 0 else f"{run_dir}-{i}") for i in itertools.count())
    try:
        for path in names:
            missing = [parent for parent in path.parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            _made.update(missing)
            try:
                path.mkdir()
                _made.add(path)
            except FileExistsError:
                if chosen and (not path.is_dir() or any(path.iterdir())):
                    raise UsageError(
                        f"run_dir={path}: exists and is not empty; choose another, or go on with resume={path}"
                    ) from None
                if not chosen:
                    continue
            tempfile.TemporaryFile(dir=path).close()
            return path
    except OSError as error:
        raise UsageError(f"run_dir={run_dir}: cannot be written ({error.strerror})") from None
    raise AssertionError("the names never end")


def log_to_console() -> None:
    """Send the project's own messages to the terminal, above the progress bar, and silence Lightning's."""
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_Console()]
    for name in ("lightning.pytorch", "lightning.fabric", "wandb"):
        logging.getLogger(name).setLevel(logging.ERROR)


def log_to_file(run_dir: str | Path) -> None:
    """Keep the messages in the run's directory too."""
    path = Path(run_dir) / "train.log"
    try:
        handler = _File(path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers = [log.handlers[0], handler]


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by what cannot be saved, once."""


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr if prefix else sys.stdout)
        sys.stdout.flush()
