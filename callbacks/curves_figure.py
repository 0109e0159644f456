"""The picture of a run: its accuracies and losses, with the grokking plateau."""

from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
from lightning.pytorch.loggers import WandbLogger

from lit_grok import figures
from lit_grok.results import index_replicas


class CurvesFigureCallback(L.Callback):
    """Draw every replica's curves at the end, into ``figures/`` of the run's directory and into W&B.

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: str):
        self.directory = Path(run_dir) / "figures"

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draw, unless the run is to go on later."""
        if pl_module.interrupted:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        dataset = index_replicas(pl_module.recorder.dataset())
        for r in range(len(pl_module.replicas)):
            figure = figures.curves(dataset.isel(replica=r), title=pl_module.label(r))
            path = self.directory / f"curves_{pl_module.label(r).replace(' ', '_')}.png"
            figure.savefig(path, dpi=150)
            plt.close(figure)
            logger = trainer.loggers[r] if trainer.loggers else None
            if isinstance(logger, WandbLogger):
                logger.log_image("curves", [str(path)])
