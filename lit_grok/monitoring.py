"""What Lightning's own callbacks watch and log: the evaluation as one number for all replicas, and ``self.log``.

- ``trainer.callback_metrics`` holds ``test_accuracy`` and so on, the mean over the replicas that have not diverged, and
  ``test_accuracy_min`` and ``…_max``. A callback with a ``monitor`` is asked only where that has been measured anew.
- What is logged with ``self.log`` in an epoch becomes the curve ``logged/NAME``, one value for all replicas, at the
  number of epochs completed at its end, as every other curve.
- What a callback hands to a logger without an epoch, as LearningRateMonitor does, is put at that epoch too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from torch import Tensor

from lit_grok.recorder import EVALUATION, RESERVED
from lit_grok.schema import UsageError, spelled

#: Over replicas, what is watched: the ending of the name, and how the number is found.
_OVER_REPLICAS: dict[str, Callable[[np.ndarray], np.floating]] = {"": np.mean, "_min": np.min, "_max": np.max}

#: Name to be monitored, and the curve of the results that it sums up.
MONITORED = {f"{name}{ending}": f"evaluation/{name}" for name in EVALUATION for ending in _OVER_REPLICAS}


def take_in(name: str, callback: Any, config: Mapping[str, Any]) -> None:
    """Make a callback that is not of this project a part of the run; a ModelCheckpoint saves into ``checkpoints/NAME``.

    Args:
        name: Its key in the configuration.
        callback: What stands there.
        config: The resolved configuration.

    Raises:
        ValueError: Where it is no callback, and where it needs a logger and there is none.
    """
    if not isinstance(callback, L.Callback):
        given = f"callbacks.{name}={spelled(callback)}"
        raise ValueError(f"{given}: not a Lightning callback; give callbacks.{name}._target_, or ~callbacks.{name}")
    if isinstance(callback, LearningRateMonitor) and config["logger"]["_target_"].endswith(".no_loggers"):
        raise ValueError(f"callbacks.{name}: it logs, and logger=none keeps nothing; choose logger=csv or logger=wandb")
    if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
        callback.dirpath = str(Path(config["run_dir"]) / "checkpoints" / name)


def logged(name: str) -> str:
    """The curve of the results that ``self.log(NAME, …)`` goes to, its name made one of a variable.

    Example:
        >>> logged("lr"), logged("my-metric/α")
        ('logged/lr', 'logged/my_metric_α')
    """
    return f"logged/{re.sub(r'[^0-9A-Za-z_]', lambda m: m[0] if m[0].isidentifier() else '_', name)}"


def refuse_name(name: str, known: dict[str, str]) -> None:
    """Refuse what ``self.log`` cannot record under a name of its own.

    Args:
        name: What is to be logged.
        known: Curve to name, of what was logged before; it is added.

    Raises:
        UsageError: Where the name is that of an evaluation or of an axis, cannot be found by its attribute, or becomes
            the same as another.
    """
    curve = logged(name)
    variable = curve.partition("/")[2]
    if name in MONITORED:
        raise UsageError(f"self.log({name!r}): the evaluation has that name already; choose another")
    if variable in RESERVED or not variable.isidentifier():
        raise UsageError(f"self.log({name!r}): no name for a curve; begin with a letter, and not {', '.join(RESERVED)}")
    if known.setdefault(curve, name) != name:
        raise UsageError(f"self.log({name!r}): becomes {variable}, as {known[curve]!r} did; choose another")


def over_replicas(curves: Mapping[str, np.ndarray], sound: Sequence[int]) -> dict[str, Tensor]:
    """The evaluation as Lightning's callbacks watch it: mean, least and largest over the replicas that are sound.

    Args:
        curves: For each name of the evaluation one value per replica, shape (R,).
        sound: The replicas that have not diverged; where there are none, everything is NaN.

    Example:
        >>> found = over_replicas({"test_loss": np.array([1.0, 3.0, np.nan])}, [0, 1])
        >>> {name: value.item() for name, value in found.items()}
        {'test_loss': 2.0, 'test_loss_min': 1.0, 'test_loss_max': 3.0}
    """
    return {
        f"{name}{ending}": torch.tensor(float(reduce(values[list(sound)])) if len(sound) else float("nan"))
        for name, values in curves.items()
        for ending, reduce in _OVER_REPLICAS.items()
    }


def ask_when_measured(callback: L.Callback) -> None:
    """Have a callback with a ``monitor`` pass over the epochs at whose end that was not measured.

    Lightning keeps the last value there was, and evaluations can be a hundred epochs apart: EarlyStopping would count
    each of those as one without improvement.
    """
    inherited = callback.on_train_epoch_end

    @wraps(inherited)
    def on_train_epoch_end(trainer: Any, pl_module: Any) -> None:
        name = getattr(callback, "monitor", None)
        if name is None or _is_new(trainer, pl_module, name, getattr(callback, "strict", True), callback):
            inherited(trainer, pl_module)

    callback.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]


def _is_new(trainer: Any, module: Any, name: str, strict: bool, callback: L.Callback) -> bool:
    if name in MONITORED:
        return module.recorder.has(MONITORED[name], trainer.current_epoch + 1)
    if name in trainer._logger_connector.metrics["callback"]:
        return True
    if module.recorder.has(logged(name)):
        return False
    if strict and name not in trainer.callback_metrics:
        known = ", ".join([*MONITORED, *(other for other in trainer.callback_metrics if other not in MONITORED)])
        raise UsageError(f"{type(callback).__name__}: monitor={name}: not measured; allowed: {known}")
    return True


def put_at_epochs(logger: Logger, trainer: L.Trainer) -> Logger:
    """Have a logger put numbers that come without an epoch at the end of the epoch in which they come."""
    inherited = logger.log_metrics

    @wraps(inherited)
    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        if "epoch" not in metrics:
            step = trainer.current_epoch + 1
            metrics = {"epoch": step, **metrics}
        inherited(dict(metrics), step)

    logger.log_metrics = log_metrics  # type: ignore[method-assign]
    return logger


class LoggerConnector(_LoggerConnector):
    """Takes what is logged with ``self.log`` to the results, and to the loggers at the right epoch."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Called by Lightning at the end of every epoch."""
        if metrics:
            self._logged_metrics.update(metrics)
            epoch, values = self._record(metrics)
            self.trainer.lightning_module.log_replicas(values, epoch)  # type: ignore[operator]

    def record(self) -> None:
        """Take down what was logged in the epoch that is about to end; a checkpoint is saved before Lightning asks."""
        if self.trainer._results and self._first_loop_iter is None:
            self._record(self.metrics["log"])

    def _record(self, metrics: Mapping[str, Any]) -> tuple[int, dict[str, np.ndarray]]:
        module: Any = self.trainer.lightning_module
        epoch = self.trainer.current_epoch + 1
        scalars = convert_tensors_to_scalars(dict(metrics))
        values = {logged(name): np.full(len(module.replicas), float(value)) for name, value in scalars.items()}
        for name, value in values.items():
            module.recorder.add(name, value, epoch)
        return epoch, values
