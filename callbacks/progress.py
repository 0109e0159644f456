"""How far the training is."""

import logging
import multiprocessing
import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

log = logging.getLogger("lit_grok")


class ProgressCallback(L.Callback):
    """A bar with epoch, speed, train and test accuracy (range over replicas) and time left.

    Where there is no terminal, or several jobs share it, a plain line now and then instead, with the speed since the
    one before.

    Args:
        refresh: Seconds between updates of the bar.
        line_every: Seconds between plain lines.
    """

    def __init__(self, refresh: float = 0.2, line_every: float = 30.0):
        self._terminal = sys.stderr.isatty() and not multiprocessing.parent_process()
        self._interval = refresh if self._terminal else line_every
        self._bar: tqdm | None = None
        self._shown = 0.0
        #: Epochs and seconds from which on the speed is counted; not from the start: the first epoch compiles.
        self._since: tuple[int, float] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Open the bar."""
        self._since, self._shown = None, time.monotonic()
        if self._terminal:
            self._bar = tqdm(total=trainer.max_epochs, initial=trainer.current_epoch, unit="epoch", dynamic_ncols=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Show where we are, if that is due."""
        now, epoch = time.monotonic(), trainer.current_epoch + 1
        since, due = self._since, now - self._shown >= self._interval
        if due or since is None:
            self._since = epoch, now
        if not due:
            return
        self._shown = now
        text = f"train {_range(pl_module, 'train_accuracy')}  test {_range(pl_module, 'test_accuracy')}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(epoch - self._bar.n)
            return
        if since is None:
            log.info("epoch %d/%s  %s", epoch, trainer.max_epochs, text)
            return
        rate = (epoch - since[0]) / (now - since[1])
        left = tqdm.format_interval(((trainer.max_epochs or epoch) - epoch) / rate)
        log.info("epoch %d/%s  %.1f epochs/s  %s  %s left", epoch, trainer.max_epochs, rate, text, left)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar where the training ended."""
        if self._bar is not None:
            self._bar.update(trainer.current_epoch - self._bar.n)
            self._bar.close()
            self._bar = None


def _range(module: Any, name: str) -> str:
    values = module.recorder.latest(f"evaluation/{name}")
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low}–{high}"
