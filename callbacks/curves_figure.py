"""The picture of a run: its accuracies and losses, with the grokking plateau."""

from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
from lightning.pytorch.loggers import WandbLogger

from lit_grok import figures
from lit_grok.results import index_replicas


class CurvesFigureCallback(L.Callback):
    """Draw every replica's curves at the end, into ``figures/`` of the run's directory and into W&B."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draw, unless the run is to go on later."""
        if pl_module.interrupted:
            return
        directory = Path(trainer.default_root_dir) / "figures"
        directory.mkdir(parents=True, exist_ok=True)
        dataset = index_replicas(pl_module.recorder.dataset())
        for r in range(len(pl_module.replicas)):
            figure = figures.curves(dataset.isel(replica=r), title=pl_module.label(r))
            path = directory / f"curves_{pl_module.label(r).replace(' ', '_')}.png"
            figure.savefig(path, dpi=150)
            plt.close(figure)
            logger = trainer.loggers[r] if trainer.loggers else None
            if isinstance(logger, WandbLogger):
                logger.log_image("curves", [str(path)])
