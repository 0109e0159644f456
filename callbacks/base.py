"""The base of every analysis: when it runs, on which data, for which replica, and where the numbers go."""

import io
import logging
import math
import numbers
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import xarray as xr
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn

from lit_grok.files import write
from lit_grok.modules import LitClassifier
from lit_grok.results import index_replicas

log = logging.getLogger("lit_grok")

Batch = tuple[Tensor, Tensor]


class AnalysisError(ValueError):
    """A callback cannot measure this network, or returned something that is not a measurement."""


class AnalysisCallback(L.Callback):
    """An analysis of one plain network, run on a cadence on every replica of the training.

    A subclass says *what*: `measure` takes a network and a batch and returns numbers by name. The base says
    *when*: before the first step (epoch 0), on the cadence, and at the end of the training. Numbers go to the
    run's results, as curves over (replica, epoch), and to the loggers. What `measure` is given is a copy, and
    the random-number state is put back afterwards, so that an analysis cannot change the training.

    Args:
        every: Measure when the number of completed epochs is a multiple of this; None for the end only.
        per_decade: Measure instead at this many epochs per factor of ten, evenly spaced on a logarithmic axis
            (rounded to whole epochs), so more densely early.
        split: Which examples `measure` is given, ``test`` or ``train``: all of them.

    Attributes:
        seconds: What the fastest measurement so far took.
        total: What all of them took.
        bytes: What the last one has recorded.

    Example:
        >>> class WeightNormCallback(AnalysisCallback):
        ...     def measure(self, network, batch):
        ...         return {"weight_norm": sum(p.square().sum() for p in network.parameters()).sqrt()}
        >>> WeightNormCallback(every=10).is_due(20), WeightNormCallback(every=10).is_due(21)
        (True, False)
    """

    #: Protocols of `lit_grok.networks` that the network must offer; checked before the training starts.
    requires: tuple[type, ...] = ()

    #: Whether replicas may be measured in threads: `measure` draws no random numbers and keeps nothing on the side.
    threaded: bool = False

    #: Last parts of the names whose NaN is an answer that needs no warning.
    may_be_nan: tuple[str, ...] = ()

    def __init__(
        self,
        every: int | None = None,
        per_decade: int | None = None,
        split: Literal["test", "train"] = "test",
    ):
        for name, value in (("every", every), ("per_decade", per_decade)):
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}.{name}={value}: must be at least 1")
        if split not in ("test", "train"):
            raise ValueError(f"{type(self).__name__}.split={split}: unknown; allowed: test, train")
        self.every, self.per_decade, self.split = every, per_decade, split
        self.seconds, self.total, self.bytes = math.inf, 0.0, 0
        self._last_epoch: int | None = None
        self._reported: set[str] = set()

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Measure one network.

        Args:
            network: A plain network in evaluation mode, a copy.
            batch: Inputs (N, …) and targets (N,), a copy.

        Returns:
            Name to a number, or to an ``xarray.DataArray`` whose dimensions are named.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it measures: define measure(network, batch)")

    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Measure one trained network more closely, once, at the end; by default nothing.

        Takes and returns what `measure` does; the values have no epoch in the results.
        """
        return {}

    def draw(self, replica: xr.Dataset, title: str) -> Mapping[str, Figure]:
        """Draw one replica at the end; by default nothing.

        Args:
            replica: Everything that was measured on it, as ``open_run(…).isel(replica=r)`` gives it.
            title: What tells the replica from the others.

        Returns:
            Name to figure; saved as ``figures/NAME_REPLICA.png`` in the run's directory, and in W&B.
        """
        return {}

    def clean_up(self) -> None:
        """Remove what was needed until the results of the whole run are on the disk; by default nothing."""

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Measure all replicas; by default one after the other with `measure`.

        Override this where all replicas can be measured at once. What is returned for a replica that has diverged
        becomes NaN.

        Args:
            module: The LightningModule; not to be modified.
            batch: Inputs (R, N, …) and targets (R, N).

        Returns:
            Name to values with a leading replica dimension: an array of shape (R,), or a DataArray whose first
            dimension is ``replica``.
        """
        return self._each(self.measure, module, batch)

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Measure all trained replicas more closely; by default one after the other with `measure_final`.

        Takes and returns what `measure_replicas` does.
        """
        return self._each(self.measure_final, module, batch)

    def check(self, network: nn.Module) -> None:
        """Say what the network lacks before the training starts.

        Raises:
            AnalysisError: Where the network does not offer one of `requires`.
        """
        for protocol in self.requires:
            if not isinstance(network, protocol):
                methods = ", ".join(name for name in vars(protocol) if not name.startswith("_"))
                raise AnalysisError(
                    f"{type(self).__name__} needs a network with the method {methods} (lit_grok.networks."
                    f"{protocol.__name__}), which {type(network).__name__} does not have"
                )

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check the network."""
        self.check(pl_module.stack.networks[0])

    def is_due(self, epoch: int) -> bool:
        """Whether the cadence asks for a measurement after this many epochs."""
        if self.every is not None:
            return epoch % self.every == 0
        if self.per_decade is None:
            return False
        step = round(self.per_decade * math.log10(epoch)) if epoch else 0
        return epoch == 0 or epoch == round(10 ** (step / self.per_decade))

    def measurements(self, epochs: int) -> int:
        """How often the cadence asks for a measurement in so many epochs, the one before the first included.

        Example:
            >>> AnalysisCallback(every=10).measurements(35), AnalysisCallback(per_decade=2).measurements(100)
            (4, 6)
        """
        if self.every is not None:
            return epochs // self.every + 1
        if self.per_decade is None or not epochs:
            return 1
        steps = range(round(self.per_decade * math.log10(epochs)) + 1)
        candidates = {round(10 ** (step / self.per_decade)) for step in steps}
        return 1 + sum(epoch <= epochs and self.is_due(epoch) for epoch in candidates)

    def disk(self, parameters: int, epochs: int) -> int:
        """Bytes that it keeps on disk of each replica, beside the results, while so many epochs are trained."""
        return 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step, or what an interrupted epoch still owes."""
        self._measure_if_due(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure where the cadence says so."""
        self._measure_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure the trained networks, unless the cadence has just done so or the training is to go on later."""
        if pl_module.interrupted:
            return
        epoch = trainer.current_epoch
        if self._last_epoch != epoch:
            self._measure(trainer, pl_module, epoch)
        self._record(trainer, pl_module, epoch, self.measure_final_replicas, once=True)
        save_figures(trainer, pl_module, self.draw)

    def state_dict(self) -> dict[str, Any]:
        """Epoch of the last measurement."""
        return {"last_epoch": self._last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: Where it is neither an epoch nor None.
        """
        last_epoch = state_dict["last_epoch"]
        if last_epoch is not None and not is_epoch(last_epoch):
            raise ValueError(
                f"{type(self).__name__}: last_epoch={last_epoch!r:.40}, which is neither an epoch nor None"
            )
        self._last_epoch = last_epoch

    @property
    def state_key(self) -> str:
        """Tells several instances of one class apart by their cadence and data."""
        return self._generate_state_key(every=self.every, per_decade=self.per_decade, split=self.split)

    def _measure_if_due(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        if self.is_due(epoch) and self._last_epoch != epoch:
            start = time.perf_counter()
            self._measure(trainer, module, epoch)
            elapsed = time.perf_counter() - start
            self.seconds, self.total = min(self.seconds, elapsed), self.total + elapsed

    def _measure(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        once = self.every is None and self.per_decade is None
        self._record(trainer, module, epoch, self.measure_replicas, once)
        self._last_epoch = epoch

    def _record(self, trainer: L.Trainer, module: Any, epoch: int, measure: Callable, once: bool) -> None:
        batch = trainer.datamodule.split(self.split)  # type: ignore[attr-defined]
        module.mark_diverged(epoch)
        lost = [r for r, diverged in enumerate(module.diverged) if diverged is not None]
        try:
            with isolate_rng():
                values = measure(module, batch)
            arrays = {name: _without(lost, _array(name, value)) for name, value in values.items()}
            for name, array in arrays.items():
                dims = [str(dim) for dim in array.dims[1:]]
                labels = {dim: array[dim].values for dim in dims if dim in array.coords}
                # A name that is a curve already, such as weight_norm, is measured once more at its last epoch.
                at = None if once and not module.recorder.has(name, epoch) else epoch
                module.recorder.add(name, array.values, at, dims, labels)
        except Exception as error:
            error.add_note(f"(raised in {type(self).__name__} at epoch {epoch})")
            raise
        self.bytes = sum(array.nbytes for array in arrays.values())
        scalars = {name: array.values for name, array in arrays.items() if array.ndim == 1}
        self._report_nan(module, scalars, epoch)
        if scalars:
            module.log_replicas(scalars, epoch)

    def _each(self, measure: Callable, module: LitClassifier, *batches: Batch) -> dict[str, xr.DataArray]:
        """Measure one replica after the other, each on its part of every batch, leaving out those that diverged."""

        def one(r: int) -> dict[str, xr.DataArray]:
            own = ((inputs[r].clone(), targets[r].clone()) for inputs, targets in batches)
            return {name: _array(name, value) for name, value in measure(module.stack.copy(r), *own).items()}

        measured = module.stack.each(one, module.sound) if self.threaded else [one(r) for r in module.sound]
        return _join(dict(zip(module.sound, measured, strict=True)), len(module.replicas))

    def _report_nan(self, module: Any, scalars: Mapping[str, np.ndarray], epoch: int) -> None:
        """NaN can be a right answer (no live neuron, say), but never a silent one."""
        for name, values in scalars.items():
            where = [r for r in np.flatnonzero(np.isnan(values)) if module.diverged[r] is None]
            if where and name not in self._reported and name.rpartition("/")[2] not in self.may_be_nan:
                self._reported.add(name)
                labels = "; ".join(module.label(r) for r in where)
                log.warning("%s, epoch %d: %s is NaN (%s)", type(self).__name__, epoch, name, labels)


def is_epoch(value: Any) -> bool:
    """Whether a value that was read back is a number of completed epochs."""
    return type(value) is int and value >= 0


def save_figures(trainer: L.Trainer, module: Any, draw: Callable[[xr.Dataset, str], Mapping[str, Figure]]) -> None:
    """Draw every replica, and put the figures into the run's directory and into W&B."""
    directory = Path(trainer.default_root_dir) / "figures"
    dataset = index_replicas(module.recorder.dataset())
    for r in range(len(module.replicas)):
        name = "a figure"
        try:
            for name, figure in draw(dataset.isel(replica=r), module.label(r)).items():
                path = directory / f"{name}_{module.label(r).replace(' ', '_')}.png"
                picture = io.BytesIO()
                figure.savefig(picture, dpi=150)
                write(path, picture.getvalue())
                logger = trainer.loggers[r] if trainer.loggers else None
                if isinstance(logger, WandbLogger):
                    logger.log_image(name, [str(path)])
        except Exception as error:  # what was measured must not be lost to a picture
            log.warning("%s: %s was not drawn (%s: %s)", module.label(r), name, type(error).__name__, error)


def _array(name: str, value: Any) -> xr.DataArray:
    """One returned value as a DataArray, or an error that says what is wrong with it."""
    if isinstance(value, xr.DataArray):
        array = value
    elif isinstance(value, Tensor):
        array = xr.DataArray(value.detach().cpu().numpy())
    elif isinstance(value, numbers.Number | np.ndarray | np.generic):
        array = xr.DataArray(np.asarray(value))
    else:
        raise AnalysisError(f"{name}={value!r} is not a number, a tensor or an xarray.DataArray")
    if array.dtype.kind not in "biuf":
        raise AnalysisError(f"{name} has the type {array.dtype}, which is not a real number")
    return array


def _without(lost: list[int], array: xr.DataArray) -> xr.DataArray:
    """The array (R, …) with NaN for the replicas that diverged."""
    if lost:
        array = array.astype(np.result_type(array, np.float32))
        array[lost] = np.nan
    return array


def _join(measured: Mapping[int, Mapping[str, xr.DataArray]], replicas: int) -> dict[str, xr.DataArray]:
    """Put the values of the replicas side by side, NaN for those that were left out."""
    joined = {}
    for name in dict.fromkeys(name for values in measured.values() for name in values):
        arrays = {r: values[name] for r, values in measured.items() if name in values}
        first = next(iter(arrays.values()))
        if any(str(dim).startswith("dim_") for dim in first.dims):
            raise AnalysisError(
                f"{name} has the shape {first.shape} and no names for its dimensions: "
                "return xarray.DataArray(values, dims=(...))"
            )
        if any(array.sizes != first.sizes for array in arrays.values()):
            raise AnalysisError(f"{name} has a different shape for different replicas")
        blank = np.full(first.shape, np.nan)
        values = np.stack([arrays[r].values if r in arrays else blank for r in range(replicas)])
        labels = {dim: first[dim] for dim in first.dims if dim in first.coords}
        joined[name] = xr.DataArray(values, dims=("replica", *first.dims), coords=labels)
    return joined
