"""Lightning's Trainer, which trains an epoch at a time where nobody watches single steps.

Around every training step Lightning calls some thirty hooks, most of them empty: a quarter of a millisecond, as long as
the step itself takes here. Where nothing is attached to a step, `EpochLoop` hands the whole epoch to the module
(`LitClassifier.train_epoch`), or where that cannot do it takes the steps one by one without the hooks. Where anything
is attached, every step goes Lightning's own way. The weights, the optimiser and all counters end up the same.
"""

from typing import Any, Literal, Protocol, cast, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lit_grok.modules import LitClassifier
from lit_grok.monitoring import LoggerConnector, ask_when_measured, put_at_epochs
from lit_grok.optimizers import Warmup
from lit_grok.replicas import definer

#: What Lightning calls in a step, of callbacks, of the module and of the DataModule (a test reads it off its source).
STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
MODULE_HOOKS = (
    *STEP_HOOKS,
    *TRANSFER_HOOKS,
    "training_step",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)


@runtime_checkable
class EpochLoader(Protocol):
    """A loader whose batches are pieces of tensors that it can give as a whole."""

    batch_size: int

    def examples(self) -> tuple[Tensor, Tensor]:
        """All inputs (R, N, …) and targets (R, N) in the order of this epoch."""
        ...


class Trainer(L.Trainer):
    """``lightning.Trainer`` with the epoch loop of this module.

    Args:
        matmul_precision: How a GPU rounds the factors of products and convolutions: ``highest`` is full single
            precision, ``high`` and ``medium`` are what `torch.set_float32_matmul_precision` says.
        options: Those of ``lightning.Trainer``.

    Example:
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> isinstance(trainer.fit_loop.epoch_loop, EpochLoop)
        True
    """

    def __init__(self, matmul_precision: Literal["highest", "high", "medium"] = "highest", **options: Any):
        super().__init__(**options)
        torch.set_float32_matmul_precision(matmul_precision)
        torch.backends.cudnn.allow_tf32 = matmul_precision != "highest"  # which PyTorch allows unless told otherwise
        torch.backends.cudnn.deterministic = True  # or a resumed run would differ in its last bits
        self._logger_connector = LoggerConnector(self)
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]
        # Complete states are saved last, so that they hold what any other callback has done at that epoch.
        callbacks.sort(
            key=lambda callback: isinstance(callback, Checkpoint) and not isinstance(callback, ModelCheckpoint)
        )
        for callback in callbacks:
            if hasattr(callback, "monitor"):
                ask_when_measured(callback)
        lightnings = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = EpochLoop(self, lightnings.min_steps, lightnings.max_steps)

    @property
    def loggers(self) -> list[Logger]:
        """One per replica, or none."""
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Logger] | None) -> None:
        self._loggers = [put_at_epochs(logger, self) for logger in loggers or []]


class EpochLoop(_TrainingEpochLoop):
    """One epoch of training steps: all at once, one by one, or by Lightning's way."""

    def run(self, data_fetcher: Any) -> None:
        """Choose the way, once an epoch."""
        if self.restarting or watched(self.trainer):
            super().run(data_fetcher)
            return
        self.reset()
        self.on_run_start(data_fetcher)
        steps = available = int(self.trainer.num_training_batches)
        if self.max_steps >= 0:
            steps = min(steps, self.max_steps - self.global_step)
        self._train(steps)
        self.batch_progress.increment_by(steps, is_last_batch=steps == available)
        self.automatic_optimization.optim_progress.optimizer.zero_grad.increment_by(steps)
        self.automatic_optimization.optim_progress.optimizer.step.increment_by(steps)
        self._batches_that_stepped += steps

    def _train(self, steps: int) -> None:
        module = cast(LitClassifier, self.trainer.lightning_module)
        loader = cast(EpochLoader, self.trainer.train_dataloader)
        (optimizer,) = self.trainer.optimizers
        inputs, targets = loader.examples()  # the same tensors as in the last epoch, where the order is the same
        if steps * loader.batch_size < targets.shape[1]:
            inputs, targets = (t[:, : steps * loader.batch_size] for t in (inputs, targets))
        if module.train_epoch(inputs, targets, loader.batch_size, optimizer):
            return
        batches = zip(*(t.split(loader.batch_size, 1) for t in (inputs, targets)), strict=True)
        for number, batch in enumerate(batches):

            def closure(batch=batch, number=number):
                loss = module.training_step(batch, number)
                optimizer.zero_grad()
                loss.backward()
                return loss

            optimizer.step(closure)


def watched(trainer: L.Trainer) -> bool:
    """Whether anything but the plain training step of this project happens in a step of this trainer.

    A hook of a callback, of the module or of the DataModule that is not the inherited one, a hook of PyTorch's on the
    parameters or the optimiser, clipping or accumulation of gradients, a scheduler other than a warm-up that is over, a
    validation loop, a profiler, anomaly detection, other precision, compilation, manual optimisation, or another
    loader, strategy or optimiser.
    """
    module, data, loader = trainer.lightning_module, trainer.datamodule, trainer.train_dataloader  # type: ignore[attr-defined]
    plain = (
        isinstance(module, LitClassifier)
        and isinstance(data, L.LightningDataModule)
        and isinstance(loader, EpochLoader)
        and definer(loader, "__iter__") is definer(loader, "examples")
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined]
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and trainer.accumulate_grad_batches == 1
        and not trainer.gradient_clip_val
        and not trainer.enable_validation
        and all(isinstance(each.scheduler, Warmup) and each.scheduler.done for each in trainer.lr_scheduler_configs)
        and not torch.is_anomaly_enabled()
        and len(trainer.optimizers) == 1
        and isinstance(trainer.num_training_batches, int)
    )
    if not plain:
        return True
    (optimizer,) = trainer.optimizers
    attached = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
        *(hooks for p in module.parameters() for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks)),
    )
    return (
        any(attached)
        or not module.automatic_optimization
        or getattr(module, "_compiler_ctx", None) is not None
        or "step" in vars(optimizer)
        or not all(_idle(callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        or not _inherits(module, LitClassifier, MODULE_HOOKS)
        or not _inherits(data, L.LightningDataModule, TRANSFER_HOOKS)
    )


def _idle(callback: Callback) -> bool:
    """Whether a callback does nothing in a step; two of Lightning's have a hook that at times returns at once."""
    hooks = set(STEP_HOOKS)
    for owner, hook, setting, returns in (
        (ModelCheckpoint, "on_train_batch_end", ("_every_n_train_steps", "_train_time_interval"), (0, None)),
        (LearningRateMonitor, "on_train_batch_start", ("logging_interval",), ("epoch",)),
    ):
        if isinstance(callback, owner) and tuple(getattr(callback, name) for name in setting) == returns:
            hooks -= {hook} if _inherits(callback, owner, (hook,)) else set()
    return _inherits(callback, Callback, tuple(hooks))


def _inherits(instance: Any, base: type, hooks: tuple[str, ...]) -> bool:
    kind, own = type(instance), vars(instance)
    return all(getattr(kind, hook) is getattr(base, hook) and hook not in own for hook in hooks)
