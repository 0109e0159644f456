"""The LightningModules: what a training step of R replicas is, and how they are evaluated."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_grok import pieces
from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.kernels.graphs import EpochGraph
from lit_grok.measures.grokking import Outcome
from lit_grok.metrics import ReplicaAccuracy
from lit_grok.monitoring import LoggerConnector, refuse_name
from lit_grok.optimizers import ELEMENTWISE, Rowwise, Warmup
from lit_grok.recorder import EVALUATION, Recorder, outcomes, summarise
from lit_grok.replicas import ReplicaStack
from lit_grok.schema import UsageError

log = logging.getLogger("lit_grok")

#: Inputs and targets of each replica, as the compiled steps take them.
Examples = list[tuple[np.ndarray, np.ndarray]]


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
        warmup_steps: Steps over which the learning rate rises to its value (`lit_grok.optimizers.Warmup`); 0 for none.

    Attributes:
        recorder: Every curve and array measured so far.
        diverged: For each replica, the epoch at which it was found not to be finite, or None.
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
        warmup_steps: int = 0,
    ):
        super().__init__()
        if len(replicas) != len(stack):
            raise ValueError(f"{len(replicas)} replicas are described, the stack has {len(stack)}")
        if loss not in ("cross_entropy", "mse"):
            raise ValueError(f"loss={loss}: unknown; allowed: cross_entropy, mse")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps}: a whole number, 0 or more")
        self.stack = stack
        self.replicas = list(replicas)
        self.loss, self.classes, self.generalisation, self.warmup_steps = loss, classes, generalisation, warmup_steps
        self.recorder = Recorder(replicas)
        self.diverged: list[int | None] = [None] * len(stack)
        self.interrupted = self.ended = False
        self._optimizer = optimizer
        self._finite = stack.flat.detach().clone()
        self._finite_buffers = {name: values.clone() for name, values in stack.stacked_buffers().items()}
        self._graph = EpochGraph()
        self._accuracy = ReplicaAccuracy(len(stack))  # one for all evaluations: making it on a GPU waits for it
        self._logged: dict[str, str] = {}  # curve to the name that self.log was given
        #: The tensors of the last epoch, with what says whether they have been written to, and the examples in them.
        self._last: tuple[Tensor, Tensor, tuple[int, int], Examples | None] | None = None

    # Inputs of all replicas evaluated at a time: on a CPU the activations of much more leave the cache.
    _chunk, _cuda_chunk = 2048, 1 << 17

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / self.classes

    @property
    def apart(self) -> bool:
        """Whether each replica trains by itself, on one thread of PyTorch's: in compiled code or piece by piece."""
        return self._steps() is not None or self._in_pieces

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (R, B, classes) of inputs (R, B, …)."""
        return self.stack(inputs)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of every replica, shape (R,), for logits (R, B, classes) and targets (R, B)."""
        return self._loss(logits, targets, "none").view(targets.shape).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, summed over replicas."""
        inputs, targets = batch
        prepared = self._prepared(inputs, targets)
        if prepared is not None:
            return _FoundLoss.apply(self.stack.flat, *self._compiled_gradient(*prepared))
        if self._in_pieces:
            return _FoundLoss.apply(self.stack.flat, *pieces.gradient(self.stack, self._loss, inputs, targets))
        return self._loss(self.stack(inputs), targets, "sum") / targets.shape[1]

    def train_epoch(self, inputs: Tensor, targets: Tensor, batch_size: int, optimizer: torch.optim.Optimizer) -> bool:
        """Make a step for every batch of inputs (R, N, …) and targets (R, N) without leaving compiled code.

        On a CPU each replica is trained by itself, all of them spread over the threads of the stack, and on a CUDA
        device an epoch is the replay of a graph; the weights, gradients and moments end up as they do with a call of
        `training_step` and of the optimiser for every batch, to the bit.

        Returns:
            Whether that could be done; if not, nothing has happened.
        """
        flat = self.stack.flat
        if flat.is_cuda and isinstance(optimizer, Rowwise) and (key := optimizer.constants()) is not None:

            def step(x: Tensor, y: Tensor) -> None:
                loss = self.training_step((x, y), 0)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            self._graph.run(step, inputs, targets, batch_size, (flat.data_ptr(), key))
            return True
        if not (isinstance(optimizer, Rowwise) and optimizer.compiles(flat)):
            return False
        steps = self._steps()
        if steps is None:
            return False
        versions = inputs._version, targets._version
        if self._last is None or not (
            self._last[0] is inputs and self._last[1] is targets and self._last[2] == versions
        ):
            self._last = inputs, targets, versions, self._examples(steps, inputs, targets)
        examples = self._last[3]
        if examples is None:
            return False
        if flat.grad is None:
            flat.grad = torch.zeros_like(flat)
        theta, grad, updates = flat.detach().numpy(), flat.grad.numpy(), optimizer.row_updates(flat)
        self.stack.each(lambda r: steps.train(theta[r], grad[r], *updates[r], *examples[r], batch_size))
        optimizer.count_steps(flat, -(-targets.shape[1] // batch_size))
        return True

    def _compiled_gradient(self, steps: CompiledSteps, examples: Examples) -> tuple[float, Tensor]:
        """Sum over replicas of each one's mean loss, and its gradient (R, D), by the compiled steps."""
        grad = torch.zeros_like(self.stack.flat)
        theta, grads = self.stack.flat.detach().numpy(), grad.numpy()
        losses = self.stack.each(lambda r: steps.gradient(theta[r], grads[r], *examples[r]))
        return sum(losses), grad

    def _prepared(self, inputs: Tensor, targets: Tensor) -> tuple[CompiledSteps, Examples] | None:
        """The compiled steps and each replica's examples for them, or None where only PyTorch can run the network."""
        steps = self._steps()
        examples = None if steps is None else self._examples(steps, inputs, targets)
        return None if steps is None or examples is None else (steps, examples)

    def _examples(self, steps: CompiledSteps, inputs: Tensor, targets: Tensor) -> Examples | None:
        """Each replica's examples for the compiled steps, or None where those cannot take them."""
        if not 0 <= int(targets.min()) <= int(targets.max()) < self.classes:
            raise IndexError(f"targets: allowed are 0 to {self.classes - 1}")
        arrays = [steps.prepare(x) for x in inputs]
        if any(array is None for array in arrays):
            return None
        return [(x, y.contiguous().numpy()) for x, y in zip(arrays, targets, strict=True)]  # type: ignore[misc]

    def _steps(self) -> CompiledSteps | None:
        return None if self._own_loss else self.stack.compiled_steps(self.loss == "mse")

    @property
    def _own_loss(self) -> bool:
        return any(getattr(type(self), name) is not getattr(LitClassifier, name) for name in ("losses", "_loss"))

    @property
    def _in_pieces(self) -> bool:
        return self.stack.runs_in_pieces and not self._own_loss

    def _loss(self, logits: Tensor, targets: Tensor, reduction: Literal["none", "sum"]) -> Tensor:
        """Loss of each of the R·B inputs, or their sum."""
        flat, labels = logits.flatten(0, 1), targets.flatten()
        if self.loss == "cross_entropy":
            return F.cross_entropy(flat, labels, reduction=reduction)
        each = (flat - F.one_hot(labels, self.classes)).square().mean(1)
        return each if reduction == "none" else each.sum()

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of every replica, each of shape (R,), on inputs (R, N, …) and targets (R, N).

        The networks are in evaluation mode for that long: running statistics are read and not updated.
        """
        prepared = self._prepared(inputs, targets)
        if prepared is not None:
            steps, examples = prepared
            theta = self.stack.flat.detach().numpy()
            found = self.stack.each(lambda r: steps.evaluate(theta[r], *examples[r]))
            losses, accuracies = torch.tensor(found, dtype=torch.float32).unbind(1)
            return {"loss": losses, "accuracy": accuracies}
        if self._in_pieces:
            losses, accuracies = pieces.evaluate(self.stack, self._loss, inputs, targets)
            return {"loss": losses, "accuracy": accuracies}
        accuracy = self._accuracy.to(inputs.device)
        accuracy.reset()
        dtype = next(self.stack.parameters()).dtype
        losses = torch.zeros(len(self.stack), device=inputs.device, dtype=dtype)
        size = max((self._cuda_chunk if inputs.is_cuda else self._chunk) // len(self.stack), 1)
        training = self.stack.training
        self.stack.eval()
        try:
            for part, labels in zip(inputs.split(size, 1), targets.split(size, 1), strict=True):
                logits = self.stack(part)
                accuracy.update(logits, labels)
                losses += self.losses(logits, labels) * (labels.shape[1] / targets.shape[1])
        finally:
            self.stack.train(training)
        return {
            "loss": losses,
            "accuracy": accuracy.compute().view(-1),
        }  # torchmetrics drops a single dimension

    @torch.no_grad()
    def predictions(self, inputs: Tensor) -> Tensor:
        """The most probable class of every input, shape (R, N), for inputs (R, N, …)."""
        if self.stack.runs_in_pieces:
            return pieces.predictions(self.stack, inputs)
        size = max((self._cuda_chunk if inputs.is_cuda else self._chunk) // len(self.stack), 1)
        return torch.cat([self.stack(part).argmax(-1) for part in inputs.split(size, 1)], 1)

    def refuse_mixing(self, gradient_clip_val: float | None, gradient_clip_algorithm: str | None) -> None:
        """Refuse what would let replicas that train together touch each other.

        Raises:
            ValueError: For R > 1 and an optimiser that is not known to treat every parameter by itself, or
                clipping of the gradients by their norm, which is that of all replicas.
        """
        try:
            optimizer = self.make_optimizer()
        except ValueError as error:
            raise ValueError(f"optimizer: {error}") from None
        if len(self.stack) == 1:
            return
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

    @torch.no_grad()
    def meet(self, datamodule: Any) -> None:
        """Set up the data, and refuse those that the network cannot take.

        Raises:
            ValueError: Where it fails on the first example.
        """
        datamodule.setup()
        inputs = datamodule.split("test")[0][0, :1].cpu()
        network = self.stack.copy(0)
        try:
            network(inputs)
        except Exception as error:
            shape, kind = tuple(inputs.shape[1:]), str(inputs.dtype).removeprefix("torch.")
            raise ValueError(
                f"network: {type(network).__name__} cannot take the inputs of this task, which are {kind} of shape "
                f"{shape} ({str(error).splitlines()[0]})"
            ) from None

    def summary(self, task: str, epochs: int, seconds: float) -> list[dict[str, Any]]:
        """The end-of-run facts, a record per replica; ``stopped`` tells whether a callback has ended the training."""
        records = summarise(
            self.recorder,
            task=task,
            chance=self.chance,
            generalisation=self.generalisation,
            diverged=self.diverged,
            epochs=epochs,
            seconds=seconds,
        )
        stopped = self.trainer.should_stop and bool(self.sound)
        return [{**record, "stopped": stopped} for record in records]

    def log(  # type: ignore[override]
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        **options: Any,
    ) -> None:
        """Log one number for all replicas, as ``self.log`` of a module or a callback: the curve ``logged/NAME``.

        It is the mean over the epoch of what was logged, at the number of epochs completed at its end.

        Raises:
            UsageError: For what has no place on a curve over epochs; the message says what to do instead.
        """
        hook = self._current_fx_name
        refuse_name(name, self._logged)
        if on_step:
            raise UsageError(
                f"self.log({name!r}, on_step=True): a curve has one value an epoch, the mean; leave it out"
            )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise UsageError(
                f"self.log({name!r}): {value.numel()} values, where one stands for all replicas; return one per "
                "replica from measure_replicas of a callbacks.AnalysisCallback"
            )
        if hook == "on_train_start":
            raise UsageError(
                f"self.log({name!r}) in {hook}: no epoch has begun; return it from measure of a callbacks."
                "AnalysisCallback, which is called before the first step too"
            )
        try:
            super().log(name, value, prog_bar, logger, on_step=False, on_epoch=True, **options)
        except MisconfigurationException as error:
            raise UsageError(
                f"self.log({name!r}) in {hook}: {error}; return it from measure or, at the end, measure_final of a "
                "callbacks.AnalysisCallback"
            ) from error

    def on_train_epoch_end(self) -> None:
        """Stop when every replica has diverged."""
        if not self.sound:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """The callbacks have just had theirs."""
        self.ended = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser of the stack's parameters, with the warm-up if there is one."""
        self._graph = EpochGraph()  # the one that there may be holds the moments of another optimiser
        optimizer = self.make_optimizer()
        if not self.warmup_steps:
            return optimizer
        warmup = Warmup(optimizer, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the stack's parameters, each replica with its own weight decay."""
        decays = [float(replica["weight_decay"]) for replica in self.replicas]
        same = len(set(decays)) == 1
        return self._optimizer(self.stack.parameters(), weight_decay=decays[0] if same else decays)

    def label(self, replica: int) -> str:
        """What tells this replica from the others, as one would type it."""
        keys = [k for k in self.replicas[0] if len({r[k] for r in self.replicas}) > 1 and not k.startswith("seed_")]
        return " ".join(
            f"{k}={_short(self.replicas[replica][k])}" for k in dict.fromkeys(["init_scale", "seed", *keys])
        )

    def log_replicas(self, scalars: Mapping[str, np.ndarray], epoch: int, once: bool = False) -> None:
        """Send one value per replica, shape (R,), to the logger of each replica.

        Args:
            scalars: The values by name.
            epoch: When they were measured.
            once: Whether they are measured a single time: a number of the run then, and no curve.
        """
        for r, logger in enumerate(self.loggers):
            values = {name: float(v[r]) for name, v in scalars.items()}
            if once and isinstance(logger, WandbLogger):
                logger.experiment.summary.update(values)
            else:
                logger.log_metrics({"epoch": epoch, **values}, step=epoch)

    @property
    def outcomes(self) -> list[Outcome]:
        """What has become of every replica so far."""
        return outcomes(self.recorder, chance=self.chance, generalisation=self.generalisation, diverged=self.diverged)

    def results(self) -> xr.DataTree:
        """Everything measured so far, and what has become of every replica."""
        judged = all(self.recorder.has(f"evaluation/{name}") for name in EVALUATION)
        return self.recorder.tree(self.outcomes if judged else None)

    def mark_diverged(self, epoch: int, losses: Tensor | None = None) -> None:
        """Note, and say, which replicas have a weight that is not finite, or a loss where those are given.

        Called before anything is measured, so that no analysis ever sees a network that has diverged. Such a replica
        goes on in the stack, where it cannot touch its neighbours, but is measured no more; `final_weights` holds what
        it was at the last evaluation before.

        Args:
            epoch: Epochs completed.
            losses: Shape (R,); with them, the weights of the sound replicas are kept as the last finite ones.
        """
        rows = self.stack.flat.detach()
        finite = torch.isfinite(rows.sum(1))  # many times cheaper than to look at each, and false for too many only
        if not finite.all():
            finite = torch.isfinite(rows).all(1)
        if losses is not None:
            finite &= torch.isfinite(losses).to(finite.device)
        for r, ok in enumerate(finite.tolist()):
            if not ok and self.diverged[r] is None:
                self.diverged[r] = epoch
                what = "weights are" if losses is None or torch.isfinite(losses[r]) else "loss is"
                log.error(
                    "%s: the %s not finite at epoch %d: this run has diverged; what was measured before is kept",
                    self.label(r),
                    what,
                    epoch,
                )
        if losses is not None:
            self._finite = self._finite.to(finite.device)
            if len(self.sound) == len(rows):
                self._finite.copy_(rows)
                self._finite_buffers = {name: values.clone() for name, values in self.stack.stacked_buffers().items()}
            else:
                self._finite[self.sound] = rows[self.sound]

    @property
    def sound(self) -> list[int]:
        """The replicas that have not diverged."""
        return [r for r, epoch in enumerate(self.diverged) if epoch is None]

    def final_weights(self) -> dict[str, Tensor]:
        """Stacked parameters and buffers, shape (R, …), with the last finite ones of every replica that diverged."""
        rows, buffers = self.stack.flat.detach(), self.stack.stacked_buffers()
        if len(self.sound) < len(rows):
            rows, sound = self._finite.to(rows, copy=True), rows[self.sound]
            rows[self.sound] = sound
            buffers = self._finite_buffers
        return dict(zip(self.stack.stacked(), self.stack.split(rows), strict=True)) | buffers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curves and arrays with the weights they belong to."""
        if self._trainer is not None and isinstance(self.trainer._logger_connector, LoggerConnector):
            self.trainer._logger_connector.record()
        checkpoint["recorder"] = self.recorder.state_dict()
        checkpoint["diverged"] = self.diverged
        checkpoint["finite"] = self._finite
        if self._finite_buffers:
            checkpoint["finite_buffers"] = self._finite_buffers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the curves and arrays back.

        Raises:
            ValueError: Where they are not those of these replicas.
        """
        recorder, diverged, finite = (checkpoint[name] for name in ("recorder", "diverged", "finite"))
        if not isinstance(finite, Tensor) or (finite.shape, finite.dtype) != (self._finite.shape, self._finite.dtype):
            raise ValueError(f"finite: not the weights of {len(self.stack)} such networks")
        buffers = checkpoint.get("finite_buffers", {})
        if not isinstance(buffers, dict) or _shapes(buffers) != _shapes(self._finite_buffers):
            raise ValueError("finite_buffers: not those of such a network")
        if (
            not isinstance(diverged, list)
            or len(diverged) != len(self.stack)
            or not all(epoch is None or (type(epoch) is int and epoch >= 0) for epoch in diverged)
        ):
            raise ValueError(f"diverged: not an epoch or None for each of {len(self.stack)} replicas")
        self.recorder.load_state_dict(recorder)
        self.diverged, self._finite, self._finite_buffers = list(diverged), finite, buffers


class _FoundLoss(torch.autograd.Function):
    """A loss whose gradient in the rows of the stack has been found with it."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, loss: float, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return torch.tensor(loss, dtype=flat.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad_output, None, None


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What each tensor is, but for its numbers."""
    return {name: (t.shape, t.dtype) if isinstance(t, Tensor) else None for name, t in tensors.items()}


def _short(number: float) -> str:
    """A number as one would type it, but never so short that two of them look the same."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


class LitIsingCNN(LitClassifier):
    """Phases of the Ising model: two classes, generalised from 90 % on (memorising runs stay below 86 %)."""

    def __init__(self, stack: ReplicaStack, *, classes: int = 2, generalisation: float = 0.9, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)


class LitModularArithmetic(LitClassifier):
    """Arithmetic on residues modulo P: P classes, generalised from 90 % on."""

    def __init__(self, stack: ReplicaStack, *, classes: int = 113, generalisation: float = 0.9, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)


class LitPolygons(LitClassifier):
    """Sums of the sides of polygons: 4·symbols + 5 classes or more, generalised from 90 % on."""

    _chunk, _cuda_chunk = 256, 1024  # images are large, and a residual network has many activations of each

    def __init__(self, stack: ReplicaStack, *, classes: int = 49, generalisation: float = 0.9, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)


class LitDigits(LitClassifier):
    """Handwritten digits: ten classes, generalised from 80 % on (networks that have memorised stay below 70 %)."""

    def __init__(self, stack: ReplicaStack, *, classes: int = 10, generalisation: float = 0.8, **options: Any):
        super().__init__(stack, classes=classes, generalisation=generalisation, **options)
