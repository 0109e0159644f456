"""The LightningModules: what a training step of R replicas is, and how they are evaluated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_grok.metrics import ReplicaAccuracy
from lit_grok.optimizers import ELEMENTWISE
from lit_grok.replicas import ReplicaStack
from lit_grok.results import Recorder, summarise


class LitClassifier(L.LightningModule):
    """R replicas of a classifier, trained together with automatic optimisation.

    The loss is Σ_r of replica r's mean loss, so that no gradient crosses from one replica to another.

    Args:
        stack: The replicas.
        replicas: What each one is: a mapping with ``init_scale``, ``seed``, ``weight_decay`` and its seed streams.
        optimizer: Called with the parameters and ``weight_decay=…`` (a number, or a list with one per replica).
        loss: ``cross_entropy``, or ``mse`` on one-hot targets (averaged over classes).
        classes: Number of classes; a guess has the accuracy 1 / classes.
        generalisation: Test accuracy from which a run counts as having generalised.

    Attributes:
        recorder: Every curve and array measured so far.
        diverged: For each replica, the epoch at which its loss was found not to be finite, or None.
        interrupted: Whether a signal has asked the training to stop and be resumed later.
        ended: Whether the callbacks have been told that the training has ended.
    """

    def __init__(
        self,
        stack: ReplicaStack,
        *,
        replicas: Sequence[dict[str, Any]],
        optimizer: Callable[..., torch.optim.Optimizer],
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        classes: int,
        generalisation: float,
    ):
        super().__init__()
        if len(replicas) != len(stack):
            raise ValueError(f"{len(replicas)} replicas are described, the stack has {len(stack)}")
        if loss not in ("cross_entropy", "mse"):
            raise ValueError(f"loss={loss}: unknown; allowed: cross_entropy, mse")
        self.stack = stack
        self.replicas = list(replicas)
        self.loss, self.classes, self.generalisation = loss, classes, generalisation
        self.recorder = Recorder(replicas)
        self.diverged: list[int | None] = [None] * len(stack)
        self.interrupted = self.ended = False
        self._optimizer = optimizer
        self._finite = {name: values.clone() for name, values in stack.stacked().items()}

    _chunk = 2048  # inputs of all replicas evaluated at a time: the activations of much more leave the cache

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / self.classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (R, B, classes) of inputs (R, B, …)."""
        return self.stack(inputs)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of every replica, shape (R,), for logits (R, B, classes) and targets (R, B)."""
        return self._loss(logits, targets, "none").view(targets.shape).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, summed over replicas."""
        inputs, targets = batch
        return self._loss(self.stack(inputs), targets, "sum") / targets.shape[1]

    def _loss(self, logits: Tensor, targets: Tensor, reduction: Literal["none", "sum"]) -> Tensor:
        """Loss of each of the R·B inputs, or their sum."""
        flat, labels = logits.flatten(0, 1), targets.flatten()
        if self.loss == "cross_entropy":
            return F.cross_entropy(flat, labels, reduction=reduction)
        each = (flat - F.one_hot(labels, self.classes)).square().mean(1)
        return each if reduction == "none" else each.sum()

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of every replica, each of shape (R,), on inputs (R, N, …) and targets (R, N)."""
        accuracy = ReplicaAccuracy(len(self.stack)).to(inputs.device)
        dtype = next(self.stack.parameters()).dtype
        losses = torch.zeros(len(self.stack), device=inputs.device, dtype=dtype)
        size = max(self._chunk // len(self.stack), 1)
        for part, labels in zip(inputs.split(size, 1), targets.split(size, 1), strict=True):
            logits = self.stack(part)
            accuracy.update(logits, labels)
            losses += self.losses(logits, labels) * (labels.shape[1] / targets.shape[1])
        return {
            "loss": losses,
            "accuracy": accuracy.compute().view(-1),
        }  # torchmetrics drops a single dimension

    def refuse_mixing(self, gradient_clip_val: float | None, gradient_clip_algorithm: str | None) -> None:
        """Refuse what would let replicas that train together touch each other.

        Raises:
            ValueError: For R > 1 and an optimiser that is not known to treat every parameter by itself, or
                clipping of the gradients by their norm, which is that of all replicas.
        """
        if len(self.stack) == 1:
            return
        optimizer = self.configure_optimizers()
        if not isinstance(optimizer, ELEMENTWISE):
            raise ValueError(
                f"optimizer={type(optimizer).__name__}: not known to treat every parameter by itself, so it could mix "
                f"the {len(self.stack)} replicas that train together; train one at a time (-m and commas queue them)"
            )
        if gradient_clip_val and gradient_clip_algorithm != "value":
            raise ValueError(
                f"trainer.gradient_clip_val={gradient_clip_val}: clipping by norm would scale each of the "
                f"{len(self.stack)} replicas by the gradients of all; train one at a time (-m and commas queue them), "
                "or clip with trainer.gradient_clip_algorithm=value"
            )

    def summary(self, task: str, epochs: int, seconds: float) -> list[dict[str, Any]]:
        """The end-of-run facts, a record per replica."""
        return summarise(
            self.recorder,
            task=task,
            chance=self.chance,
            generalisation=self.generalisation,
            diverged=self.diverged,
            epochs=epochs,
            seconds=seconds,
        )

    def on_train_end(self) -> None:
        """The callbacks have just had theirs."""
        self.ended = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the stack's parameters, refused where it would mix replicas."""
        decays = [float(replica["weight_decay"]) for replica in self.replicas]
        same = len(set(decays)) == 1
        return self._optimizer(self.stack.parameters(), weight_decay=decays[0] if same else decays)

    def label(self, replica: int) -> str:
        """What tells this replica from the others, as one would type it."""
        keys = [k for k in self.replicas[0] if len({r[k] for r in self.replicas}) > 1 and not k.startswith("seed_")]
        return " ".join(
            f"{k}={_short(self.replicas[replica][k])}" for k in dict.fromkeys(["init_scale", "seed", *keys])
        )

    def log_replicas(self, scalars: Mapping[str, np.ndarray], epoch: int) -> None:
        """Send one value per replica, shape (R,), to the logger of each replica, at this epoch."""
        for r, logger in enumerate(self.loggers):
            logger.log_metrics({"epoch": epoch, **{name: float(v[r]) for name, v in scalars.items()}}, step=epoch)

    def mark_diverged(self, losses: Tensor, epoch: int) -> list[int]:
        """Note the replicas whose loss is not finite any more, and keep the last finite weights of each.

        Called at every evaluation. A replica that diverges goes on in the stack, where it cannot touch its
        neighbours, but is measured no more; `final_weights` holds what it was when it was last sound.

        Returns:
            The replicas that diverged since the last call.
        """
        finite = torch.isfinite(losses)
        new = [r for r, ok in enumerate(finite.tolist()) if not ok and self.diverged[r] is None]
        for r in new:
            self.diverged[r] = epoch
        sound = [r for r, d in enumerate(self.diverged) if d is None]
        for name, values in self.stack.stacked().items():
            kept = self._finite[name] = self._finite[name].to(values)  # no copy where it is there already
            if len(sound) == len(self.diverged):
                kept.copy_(values)
            else:
                kept[sound] = values[sound]
        return new

    def final_weights(self) -> dict[str, Tensor]:
        """Stacked parameters, shape (R, …), with the last finite ones of every replica that diverged."""
        lost = [r for r, d in enumerate(self.diverged) if d is not None]
        weights = self.stack.stacked()
        if not lost:
            return weights
        weights = {name: values.clone() for name, values in weights.items()}
        for name, values in weights.items():
            values[lost] = self._finite[name][lost].to(values.device)
        return weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curves and arrays with the weights they belong to."""
        checkpoint["recorder"] = self.recorder.state_dict()
        checkpoint["diverged"] = self.diverged
        checkpoint["finite"] = self._finite

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curves and arrays back."""
        self.recorder.load_state_dict(checkpoint["recorder"])
        self.diverged = checkpoint["diverged"]
        self._finite |= checkpoint["finite"]

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this name some forty times a step, and nn.Module's own __setattr__ takes 3 µs each time.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def _short(number: float) -> str:
    """A number as one would type it, but never so short that two of them look the same."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


class LitIsingCNN(LitClassifier):
    """Phases of the Ising model: two classes, generalised from 90 % on (memorising runs stay below 86 %)."""

    def __init__(self, stack: ReplicaStack, *, classes: int = 2, generalisation: float = 0.9, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)


class LitModularMLP(LitClassifier):
    """Arithmetic modulo P: P classes, generalised from 90 % on."""

    def __init__(self, stack: ReplicaStack, *, classes: int = 113, generalisation: float = 0.9, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)
