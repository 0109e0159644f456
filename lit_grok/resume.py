"""A run that goes on: its files are read back, and none of them is trusted."""

import copy
import logging
import math
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, OmegaConf
from packaging.version import Version
from torch import Tensor, nn

from lit_grok.files import ReadError, WriteError, reading
from lit_grok.modules import LitClassifier
from lit_grok.recorder import EVALUATION, Recorder
from lit_grok.results import CHECKPOINT, CONFIG, PREVIOUS_CHECKPOINT, read_checkpoint, read_config
from lit_grok.schema import RESUMABLE, UsageError, check_keys
from lit_grok.stacks import FOLDER

log = logging.getLogger("lit_grok")


def resumed(config: DictConfig) -> dict[str, Any]:
    """The configuration of an earlier run, with what may differ in its continuation; ``resume`` is its checkpoint.

    Raises:
        UsageError: Where there is no such run, and where something is to be different that may not.
        ReadError: Where its files are damaged or something else.
    """
    run_dir = Path(str(config.resume))
    try:
        saved = read_config(run_dir)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"resume={run_dir}: not a run's directory (it has no {CONFIG})") from None
    try:
        tempfile.TemporaryFile(dir=run_dir).close()
    except OSError as error:
        raise UsageError(f"resume={run_dir}: cannot be written ({error.strerror})") from None
    try:
        check_keys(saved)
    except UsageError as error:
        raise UsageError(f"{run_dir / CONFIG}: {error}") from None
    given: Any = OmegaConf.to_container(config, resolve=True)
    for override in HydraConfig.get().overrides.task:
        key = override.partition("=")[0]
        if key in RESUMABLE:
            saved[key] = given[key]
        elif key not in ("resume", "dry_run") and (_at(saved, key) is None or _at(saved, key) != _at(given, key)):
            raise UsageError(
                f"{override}: a resumed run keeps its configuration; only {', '.join(RESUMABLE)} may be given"
            )
    stacks = sorted((run_dir / FOLDER).glob("*"))  # of which each has a checkpoint of its own
    checkpoint, done = (stacks[-1] / CHECKPOINT, 0) if stacks else last_checkpoint(run_dir)
    with restoring(str(checkpoint)):
        saved |= {"run_dir": str(run_dir), "resume": str(checkpoint), "dry_run": config.dry_run}
        check_keys(saved)
        _refuse_foreign(saved)
        if saved["epochs"] < done + saved["dry_run"]:
            least = "more" if saved["dry_run"] else "as many or more"
            raise UsageError(f"epochs={saved['epochs']}: that run has made {done} epochs already; give {least}")
        saved["trainer"] |= {"max_epochs": saved["epochs"], "accelerator": saved["accelerator"]}
        if "checkpoint" in saved["callbacks"]:
            saved["callbacks"]["checkpoint"]["every"] = saved["checkpoint_every"]
    return saved


def _at(tree: Any, key: str) -> list[Any] | None:
    """What stands at a dotted key, or None where nothing does."""
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return None
        tree = tree[name]
    return [tree]


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


def last_checkpoint(run_dir: Path) -> tuple[Path, int]:
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


def refuse_another(checkpoint: str, module: LitClassifier, trainer: L.Trainer) -> None:
    """Compare a checkpoint with the training that is to take it back, before anything of either is touched.

    What it holds must have the kinds and shapes that the state of the fresh training has; the numbers are its own.

    Args:
        checkpoint: The file.
        module: The fresh module.
        trainer: The fresh trainer, with its callbacks.

    Raises:
        ReadError: Where it is the state of another training; the message says what differs first.
    """
    state = read_checkpoint(checkpoint)
    try:
        _compare(state, _fresh(module, trainer), more=True)
        Version(state["pytorch-lightning_version"])  # which Lightning reads before anything else
        taken = copy.copy(module)
        taken.recorder = Recorder(module.replicas)
        taken.on_load_checkpoint(state)
        done = state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if (last := taken.recorder.last_epoch) > done:
            raise ValueError(f"recorder: epoch {last}, of {done}")
        if missing := [name for name in EVALUATION if not taken.recorder.has(f"evaluation/{name}")]:
            raise ValueError(f"recorder: no curve {', '.join(missing)}")
        for callback in _callbacks(trainer):
            if callback.state_dict():
                copy.copy(callback).load_state_dict(state["callbacks"][callback.state_key])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ReadError(f"{checkpoint} is the state of another training ({reason})") from error


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _fresh(module: LitClassifier, trainer: L.Trainer) -> dict[str, Any]:
    """A checkpoint of this training before its first step, but with the moments that the optimiser makes in it."""
    configured: Any = module.configure_optimizers()
    optimizer, schedulers = configured, []
    if isinstance(configured, dict):
        optimizer, schedulers = configured["optimizer"], [configured["lr_scheduler"]["scheduler"]]
    states = [scheduler.state_dict() for scheduler in schedulers]
    for group in optimizer.param_groups:
        group["params"] = [torch.zeros_like(parameter) for parameter in group["params"]]  # to be moved in their place
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: 0.0)
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": L.__version__,
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {callback.state_key: {} for callback in _callbacks(trainer) if callback.state_dict()},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": states,
    }


def _compare(found: Any, fresh: Any, key: str = "", more: bool = False) -> None:
    """Refuse another kind, shape or number of entries than the fresh state has.

    Args:
        found: What was read back.
        fresh: What stands there in a fresh training.
        key: Where that is.
        more: Whether there may be entries that the fresh state has not.

    Raises:
        ValueError: For the first difference.
    """
    if isinstance(fresh, Mapping):
        names = found.keys() if isinstance(found, Mapping) else set()
        if fresh.keys() - names or (names - fresh.keys() and not more):
            raise ValueError(f"{key}: {_kind(found)} in place of {_kind(fresh)}".removeprefix(": "))
        for name, value in fresh.items():
            inside = f"{key}.{name}" if key else str(name)
            # What loops, callbacks and optimisers keep on the way is theirs; a count that is none would be called.
            _compare(found[name], value, inside, (more and name != "fit_loop") or inside.endswith("state_dict"))
        return
    if isinstance(fresh, list | tuple) and type(found) is type(fresh) and len(found) == len(fresh):
        for i, pair in enumerate(zip(found, fresh, strict=True)):
            _compare(*pair, f"{key}.{i}", more)
        return
    if isinstance(fresh, list | tuple) or _kind(found) != _kind(fresh):
        raise ValueError(f"{key}: {_kind(found)} in place of {_kind(fresh)}")
    if "_progress." in key and not (type(found) is type(fresh) and found >= 0):
        raise ValueError(f"{key}: a count of {found}")


def _kind(value: Any) -> str:
    """What is compared of a value: an int where a float could be is a number as well."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "a number" if type(value) in (int, float) else type(value).__name__
