"""Checkpoints: nothing that a kill can spoil, and a clean stop on Ctrl-C."""

import io
import logging
import math
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lit_grok.files import WriteError, write
from lit_grok.results import CHECKPOINT, PREVIOUS_CHECKPOINT, write_results

log = logging.getLogger("lit_grok")


class CheckpointCallback(Checkpoint):
    """Save the complete state of the training, and the results so far, on a cadence and when asked to stop.

    SIGINT and SIGTERM end the training after the epoch in hand, with a checkpoint; a second SIGINT ends it at once.
    A second SIGTERM is nobody's impatience: SLURM sends two, one to the job and one through srun.
    Every file is replaced as a whole, so a kill at any moment loses at most the epochs since the last checkpoint. The
    checkpoint before the last one is kept, for the case that the disk does not give the last one back.

    Args:
        every: Epochs between checkpoints.
    """

    def __init__(self, every: int = 1000):
        if every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1")
        self.every = every
        self._seconds_before, self._begin = 0.0, time.monotonic()
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """Wall time of the training, that of the sessions before a resume included."""
        return self._seconds_before + time.monotonic() - self._begin

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints written like every other file, and count the time from here."""
        trainer.strategy.checkpoint_io = _CheckpointFile()
        self._begin = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the two signals, after Lightning has, which would end the process on a SIGTERM in its own way."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give them back, before Lightning does."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save where it is due, at the last epoch, and on a signal."""
        epoch = trainer.current_epoch + 1
        if self._signal is not None:
            pl_module.interrupted = trainer.should_stop = True
        if epoch % self.every == 0 or epoch == trainer.max_epochs or trainer.should_stop:
            self._save(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save what there is when an analysis fails: its epoch is complete as far as the training goes."""
        self.on_train_end(trainer, pl_module)
        steps = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if 0 < steps == trainer.num_training_batches:
            with suppress(WriteError):  # what has failed is told, and on a full disk this fails too
                self._save(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The time it has taken so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: Where it is not a time.
        """
        seconds = state_dict["seconds"]
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError(f"CheckpointCallback: seconds={seconds!r:.40}, which is not a time")
        self._seconds_before = seconds

    def _save(self, trainer: L.Trainer, module: Any) -> None:
        run_dir = Path(trainer.default_root_dir)
        trainer.save_checkpoint(run_dir / CHECKPOINT)
        write_results(run_dir, module.results(), module.final_weights())
        for logger in trainer.loggers:
            logger.save()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None:
            self._signal = number
            name = signal.Signals(number).name
            log.info("%s: saving after this epoch, then stopping (Ctrl-C once more: stop at once)", name)


class _CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint as a whole, and keeps the one that was there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write(path, content.getbuffer(), keep=Path(path).with_name(Path(PREVIOUS_CHECKPOINT).name))


def seconds_of(callbacks: Iterable[Any], otherwise: float) -> float:
    """How long a training has taken in all its sessions, as its checkpoints know; else what is given."""
    return max((each.seconds for each in callbacks if isinstance(each, CheckpointCallback)), default=otherwise)
