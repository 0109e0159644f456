"""A stopping rule: the training ends when what becomes of every replica is known."""

from typing import Any

import lightning as L

from callbacks.base import is_epoch
from lit_grok.measures.grokking import chance_bound

TEST_ACCURACY, TRAIN_ACCURACY = "evaluation/test_accuracy", "evaluation/train_accuracy"


class GeneralisedCallback(L.Callback):
    """End the training when every replica has generalised and stayed so for some epochs, or never will.

    A replica is settled while its test accuracy is at the task's generalisation level, or its outcome so far is
    ``collapsed`` (`lit_grok.measures.grokking.outcome`); one that has diverged is settled for good. Looked at where the
    accuracies are evaluated.

    A test accuracy that still rises after the end moves the maximum that Definition 1 refers to: give enough epochs.

    Args:
        epochs: For so many epochs every replica has to be settled at every evaluation.

    Example:
        ``python train.py task=mod_add +callbacks/extra@callbacks.stop=generalised callbacks.stop.epochs=200``
    """

    def __init__(self, epochs: int = 500):
        if epochs < 0:
            raise ValueError(f"GeneralisedCallback.epochs={epochs}: must be at least 0")
        self.epochs = epochs
        self._since: list[int | None] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Of a run that goes on, the last epoch may have been the one to end at."""
        self._since = self._since or [None] * len(pl_module.replicas)
        self._end_if_settled(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Look at the evaluation, where there was one."""
        epoch = trainer.current_epoch + 1
        if not pl_module.recorder.has(TEST_ACCURACY, epoch):
            return
        settled = self._settled(pl_module)
        self._since = [
            (epoch if since is None else since) if now else None
            for now, since in zip(settled, self._since, strict=True)
        ]
        self._end_if_settled(trainer, pl_module, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Since when each replica has been settled."""
        return {"since": self._since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: Where it is not a list of epochs or None.
        """
        since = state_dict["since"]
        if not isinstance(since, list) or not all(epoch is None or is_epoch(epoch) for epoch in since):
            raise ValueError(f"GeneralisedCallback: since={since!r:.40}, which is not a list of epochs or None")
        self._since = list(since)

    def _end_if_settled(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        if all(
            diverged is not None or (since is not None and epoch - since >= self.epochs)
            for diverged, since in zip(module.diverged, self._since, strict=True)
        ):
            trainer.should_stop = True

    @staticmethod
    def _settled(module: Any) -> list[bool]:
        """Whether each replica has generalised or collapsed, by what was just measured."""
        test, train = (module.recorder.latest(name).astype(float) for name in (TEST_ACCURACY, TRAIN_ACCURACY))
        settled = test >= module.generalisation
        if (train[~settled] <= chance_bound(module.chance)).any():  # else none has collapsed: the curves are long
            settled |= [one.status == "collapsed" for one in module.outcomes]
        return settled.tolist()
