"""When a network groks: t_train, t_test and the verdict, for every replica."""

import logging
from typing import Any

import lightning as L
import numpy as np

from callbacks.base import save_figures
from lit_grok.figures.curves import curves
from lit_grok.measures.grokking import Outcome
from lit_grok.results import outcomes

log = logging.getLogger("lit_grok")


class GrokTimeCallback(L.Callback):
    """Grokking time of every replica from its own accuracy curves, never from averaged ones.

    Announces on the console and in W&B when a replica first reaches its task's generalisation level. That
    announcement is provisional, since Definition 1 refers to the maximum over the whole run; the verdict is read
    off the complete curves at the end (``t_train``, ``t_test``, ``t_grok`` in the results, NaN where undefined or
    without meaning, as in `lit_grok.measures.grokking.outcome`) and drawn into ``figures/`` of the run's directory.
    """

    def __init__(self):
        self._announced: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what is missing before hours have passed."""
        if not pl_module.recorder.has("test_accuracy", trainer.current_epoch) and trainer.current_epoch == 0:
            raise ValueError("GrokTimeCallback reads the accuracy curves: put EvaluationCallback before it")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Announce the replicas that have just generalised."""
        epoch = trainer.current_epoch + 1
        if not pl_module.recorder.has("test_accuracy", epoch):
            return
        reached = pl_module.recorder.latest("test_accuracy") >= pl_module.generalisation
        for r in np.flatnonzero(reached):
            if r not in self._announced:
                self._announced.append(int(r))
                self._announce(pl_module, int(r), epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Record the verdict of every replica."""
        if pl_module.interrupted:
            return
        found = self._outcomes(pl_module)
        for name in ("t_train", "t_test", "t_grok"):
            values = [getattr(one, name) for one in found]
            pl_module.recorder.add(name, [np.nan if v is None else v for v in values], epoch=None)
        save_figures(trainer, pl_module, lambda replica, title: {"curves": curves(replica, title)})

    def state_dict(self) -> dict[str, Any]:
        """Which replicas were announced."""
        return {"announced": self._announced}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: Where it is not a list of replicas.
        """
        announced = state_dict["announced"]
        if not isinstance(announced, list) or not all(type(r) is int for r in announced):
            raise ValueError(f"GrokTimeCallback: announced={announced!r:.40}, which is not a list of replicas")
        self._announced = list(announced)

    def _announce(self, module: Any, r: int, epoch: int) -> None:
        found = self._outcomes(module)[r]
        log.info(
            "%s: test accuracy %.3f at epoch %d, train accuracy up since epoch %s: %s",
            module.label(r),
            module.recorder.latest("test_accuracy")[r],
            epoch,
            found.t_train,
            "grokking" if found.status == "grokked" else "steady learning",
        )
        if module.loggers:
            module.loggers[r].log_metrics({"generalised_at": epoch, "epoch": epoch}, step=epoch)

    @staticmethod
    def _outcomes(module: Any) -> list[Outcome]:
        return outcomes(
            module.recorder, chance=module.chance, generalisation=module.generalisation, diverged=module.diverged
        )
