"""When a network groks: t_train, t_test and the verdict, for every replica."""

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.grokking import curves
from lit_grok.figures.phases import has_phases, phase_diagram

log = logging.getLogger("lit_grok")


class GrokTimeCallback(L.Callback):
    """Grokking time of every replica from its own accuracy curves, never from averaged ones.

    Announces on the console when a replica first reaches its task's generalisation level. That
    announcement is provisional, since Definition 1 refers to the maximum over the whole run; the verdict is read
    off the complete curves (``status``, ``t_train``, ``t_test``, ``t_grok`` at the root of the results, NaN where
    undefined or without meaning, as in `lit_grok.measures.grokking.outcome`) and drawn at the end.
    """

    branch = "grok_time"

    def __init__(self):
        self._announced: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what is missing before hours have passed."""
        if not pl_module.recorder.has("evaluation/test_accuracy", trainer.current_epoch) and trainer.current_epoch == 0:
            raise ValueError("GrokTimeCallback reads the accuracy curves: put EvaluationCallback before it")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Announce the replicas that have just generalised."""
        epoch = trainer.current_epoch + 1
        if not pl_module.recorder.has("evaluation/test_accuracy", epoch):
            return
        accuracy = pl_module.recorder.latest("evaluation/test_accuracy").astype(float)  # as the verdict compares it
        reached = accuracy >= pl_module.generalisation
        for r in np.flatnonzero(reached):
            if r not in self._announced:
                self._announced.append(int(r))
                self._announce(pl_module, int(r), epoch)

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Accuracy and loss, with the grokking plateau, and of a grid of init_scales and weight decays the phases."""
        figures = {"": curves(run)}
        if has_phases(run):
            figures["phases"] = phase_diagram(run)
        return figures

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
        found = module.outcomes[r]
        log.info(
            "%s: test accuracy %.3f at epoch %d, train accuracy up since epoch %s: %s",
            module.label(r),
            module.recorder.latest("evaluation/test_accuracy")[r],
            epoch,
            found.t_train,
            "grokking" if found.status == "grokked" else "steady learning",
        )
