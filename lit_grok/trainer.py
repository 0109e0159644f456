"""Lightning's Trainer, with a short way through the steps that nobody watches.

Around every training step Lightning 2.6 calls some thirty hooks, most of them empty, and enters as many contexts:
0.25 ms, half as long as a step of the networks here takes. Where nothing is attached to a step, `EpochLoop` does what
is left of it: fetch, forward, backward, optimiser, and the same counters, so that checkpoints and ``global_step`` are
the same (`benchmarks/bench_training.py`). Where anything is attached, every step goes Lightning's own way.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lit_grok.loggers import NoProfiler
from lit_grok.modules import LitClassifier

_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_MODULE_HOOKS = (
    *_HOOKS,
    "training_step",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)
_DATA_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")


class Trainer(L.Trainer):
    """``lightning.Trainer`` with the epoch loop of this module; takes the same arguments.

    Example:
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> isinstance(trainer.fit_loop.epoch_loop, EpochLoop)
        True
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        lightnings = self.fit_loop.epoch_loop
        self.fit_loop.epoch_loop = EpochLoop(self, lightnings.min_steps, lightnings.max_steps)


class EpochLoop(_TrainingEpochLoop):
    """One epoch of training steps: each by the short way, or all of them by Lightning's."""

    def run(self, data_fetcher: Any) -> None:
        """Choose the way, once an epoch."""
        if self.restarting or watched(self.trainer):
            super().run(data_fetcher)
            return
        self.reset()
        self.on_run_start(data_fetcher)
        steps = int(self.trainer.num_training_batches)
        if self.max_steps >= 0:
            steps = min(steps, self.max_steps - self.global_step)
        done = self._run_steps(islice(data_fetcher, steps))
        self.batch_progress.increment_by(done, is_last_batch=data_fetcher.done)
        self.automatic_optimization.optim_progress.optimizer.zero_grad.increment_by(done)
        self.automatic_optimization.optim_progress.optimizer.step.increment_by(done)
        self._batches_that_stepped += done

    def _run_steps(self, fetched: Iterable[tuple[Any, int, int]]) -> int:
        """Train on these batches; returns how many there were."""
        module, (optimizer,) = cast(LitClassifier, self.trainer.lightning_module), self.trainer.optimizers
        to_device = self.trainer.datamodule.transfer_batch_to_device  # type: ignore[attr-defined]
        device, training_step, zero_grad = module.device, module.training_step, optimizer.zero_grad
        step = bare_step(optimizer)
        done = 0

        def closure():
            loss = training_step(batch, done)
            zero_grad()
            loss.backward()
            return loss

        for batch, _, loader in fetched:
            batch = to_device(batch, device, loader)
            step(closure)
            done += 1
        return done


def watched(trainer: L.Trainer) -> bool:
    """Whether anything but the plain training step of this project happens in a step of this trainer.

    A hook of a callback, of the module or of the DataModule that is not the inherited one, clipping or accumulation
    of gradients, a scheduler, a validation loop, a profiler, mixed precision, or more than one device or optimiser.
    """
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    plain = (
        isinstance(module, LitClassifier)
        and isinstance(data, L.LightningDataModule)
        and isinstance(trainer.profiler, NoProfiler)  # type: ignore[attr-defined]
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and trainer.accumulate_grad_batches == 1
        and not trainer.gradient_clip_val
        and not trainer.enable_validation
        and not trainer.lr_scheduler_configs
        and len(trainer.optimizers) == 1
        and isinstance(trainer.num_training_batches, int)
    )
    return not plain or not (
        all(_inherits(callback, L.Callback, _HOOKS) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        and _inherits(module, LitClassifier, _MODULE_HOOKS)
        and _inherits(data, L.LightningDataModule, _DATA_HOOKS)
    )


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """The optimiser's step without the profiling context that PyTorch puts around it, 20 µs each time.

    As it is, if hooks are attached to it, for the same wrapper calls them.
    """
    step = type(optimizer).step
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    if any(hooks) or "step" in vars(optimizer) or not getattr(step, "hooked", False):
        return optimizer.step
    return partial(step.__wrapped__, optimizer)  # type: ignore[attr-defined]


def _inherits(instance: Any, base: type, hooks: tuple[str, ...]) -> bool:
    return all(getattr(getattr(instance, hook), "__func__", None) is getattr(base, hook) for hook in hooks)
