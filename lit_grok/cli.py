"""The command line: what the keys may be, which replicas they ask for, and errors in one sentence."""

import difflib
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lit_grok.results import CONFIG, read_config, write_text

log = logging.getLogger("lit_grok")

EXIT_USAGE = 2
#: What may differ between a run and its continuation.
RESUMABLE = ("epochs", "threads", "accelerator", "checkpoint_every")


class UsageError(Exception):
    """Bad input; its message names the key, the value and what is allowed."""


def exit_with(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    sys.stderr.write(f"error: {' '.join(str(message).split())}\n")
    sys.exit(EXIT_USAGE)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what bad input raises into one line; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UsageError as error:
        exit_with(str(error))
    except InstantiationException as error:
        cause = error.__cause__
        key = re.search(r"full_key: (\S+)", str(error))
        where = f"{key.group(1)}: " if key else ""
        if isinstance(cause, ValueError | MisconfigurationException):
            exit_with(str(cause))
        if "Error locating target" in str(error) or isinstance(cause, TypeError):
            reason = str(error).splitlines()[0].split(", set env var")[0]
            missing = f" ({cause})" if isinstance(cause, ImportError | TypeError) else ""
            exit_with(f"{where}{reason}{missing}")
        raise (cause or error) from None
    except MissingConfigException as error:
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        options = [o for o in error.options or [] if o]
        exit_with(f"{group}={value}: unknown; allowed: {', '.join(options)}" if options else str(error))
    except (HydraException, OmegaConfBaseException) as error:
        exit_with(_unknown_key(str(error)) or str(error).splitlines()[0])


def check_overrides(config: DictConfig, arguments: Sequence[str]) -> None:
    """Refuse keys that do not exist before Hydra does, with the ones that do."""
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and not key.startswith(("+", "~", "-", "hydra.", "hydra/")):
            _check_key(config, key)


def _check_key(config: DictConfig, key: str) -> None:
    node: Any = config
    path: list[str] = []
    for part in re.split(r"[./]", key.split("@")[0]):
        if isinstance(node, DictConfig) and part not in node:
            there = [str(name) for name in node]
            close = difflib.get_close_matches(part, there, n=1)
            hint = f" (did you mean {'.'.join([*path, close[0]])}?)" if close else ""
            under = f" under {'.'.join(path)}" if path else ""
            raise UsageError(f"{key}: no such key{hint}; allowed{under}: {', '.join(there)}")
        node = OmegaConf.select(config, ".".join([*path, part]))
        path.append(part)


def _unknown_key(message: str) -> str | None:
    match = re.search(r"Could not override '([^']+)'", message)
    return f"{match.group(1)}: no such key; python train.py --help lists them" if match else None


def check_values(config: Mapping[str, Any]) -> None:
    """Refuse numbers that make no sense."""
    for key in ("epochs", "batch_size", "log_every", "checkpoint_every", "threads"):
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{key}={value}: must be a whole number, 1 or more")
    _number("learning_rate", config["learning_rate"])
    for key in ("data_size", "side", "P"):
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
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    try:
        saved = read_config(config.resume)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"resume={config.resume}: not a run's directory (it has no {CONFIG})") from None
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.partition("=")
        if key == "resume":
            continue
        given = yaml.safe_load(value)
        if key not in RESUMABLE and saved.get(key) != given:
            raise UsageError(
                f"{override}: a resumed run keeps its configuration; only {', '.join(RESUMABLE)} may be given"
            )
        saved[key] = given
    for key in RESUMABLE:
        _propagate(saved, key)
    return {**saved, "run_dir": str(config.resume), "resume": str(config.resume)}


def _propagate(saved: dict[str, Any], key: str) -> None:
    """Put a top-level value where the configuration had referred to it."""
    places = {
        "epochs": ("trainer", "max_epochs"),
        "accelerator": ("trainer", "accelerator"),
        "checkpoint_every": ("callbacks", "checkpoint", "every"),
    }
    *path, last = places.get(key, (key,))
    node = saved
    for part in path:
        node = node.get(part, {})
    if last in node:
        node[last] = saved[key]


def make_run_dir(config: dict[str, Any]) -> Path:
    """Create the run's directory, never an existing one, and note in it what will be run."""
    run_dir = Path(config["run_dir"])
    if config["resume"] is None:
        explicit = any(o.startswith("run_dir=") for o in HydraConfig.get().overrides.task)
        candidates = [run_dir] if explicit else [run_dir, *(Path(f"{run_dir}-{i}") for i in range(1, 10_000))]
        try:
            for run_dir in candidates:
                run_dir.parent.mkdir(parents=True, exist_ok=True)
                try:
                    run_dir.mkdir()
                    break
                except FileExistsError:
                    if explicit and (not run_dir.is_dir() or (run_dir / CONFIG).exists()):
                        raise UsageError(
                            f"run_dir={run_dir}: exists already; choose another, or go on with resume={run_dir}"
                        ) from None
                    if explicit:
                        break
        except OSError as error:
            raise UsageError(f"run_dir={run_dir}: cannot be written ({error.strerror})") from None
    if not os.access(run_dir, os.W_OK):
        raise UsageError(f"run_dir={run_dir}: cannot be written (Permission denied)")
    return run_dir


def save_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration into the run's directory."""
    try:
        write_text(run_dir / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise UsageError(f"run_dir={run_dir}: cannot be written ({error.strerror})") from None


def log_to_console() -> None:
    """Send the project's own messages to the terminal, above the progress bar, and silence Lightning's."""
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_Console()]
    for name in ("lightning.pytorch", "lightning.fabric", "wandb"):
        logging.getLogger(name).setLevel(logging.ERROR)


def log_to_file(run_dir: Path) -> None:
    """Keep the messages in the run's directory too."""
    handler = logging.FileHandler(run_dir / "train.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers = [log.handlers[0], handler]


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + record.getMessage(), file=sys.stderr if prefix else sys.stdout)
        sys.stdout.flush()
