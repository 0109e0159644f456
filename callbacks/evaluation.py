"""Loss and accuracy of every replica: the one place where the curves that decide a grokking time are measured."""

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
import torch

from callbacks.base import AnalysisCallback, Batch
from lit_grok.modules import LitClassifier
from lit_grok.monitoring import over_replicas
from lit_grok.recorder import EVALUATION


class EvaluationCallback(AnalysisCallback):
    """Train and test loss, train and test accuracy, and the Euclidean norm of all weights and biases.

    Also notices a replica whose loss is not finite any more, and puts mean, minimum and maximum over the others where
    Lightning's own callbacks look for them (``EarlyStopping(monitor="test_loss")``, ``monitor="test_accuracy_min"``).

    Args:
        every: Epochs between evaluations.
    """

    long_names: ClassVar[Mapping[str, str]] = {
        "train_loss": "train loss",
        "train_accuracy": "train accuracy",
        "test_loss": "test loss",
        "test_accuracy": "test accuracy",
        "weight_norm": "Euclidean norm of all weights and biases",
    }

    def __init__(self, every: int = 1):
        super().__init__(every=every)

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Curves of all replicas at once, on the whole of both splits."""
        train = module.evaluate(*module.trainer.datamodule.split("train"))  # type: ignore[attr-defined]
        test = module.evaluate(*batch)
        return {
            "train_loss": train["loss"],
            "train_accuracy": train["accuracy"],
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
            "weight_norm": module.stack.flat.detach().norm(dim=1),
        }

    def _measure(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        super()._measure(trainer, module, epoch)
        module.mark_diverged(epoch, torch.from_numpy(module.recorder.latest(f"{self.branch}/train_loss")))
        curves = {name: module.recorder.latest(f"{self.branch}/{name}") for name in EVALUATION}
        trainer.callback_metrics.update(over_replicas(curves, module.sound))
