"""The base of every analysis: when it runs, on which data, for which replica, and where the numbers go."""

import logging
import math
import numbers
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import xarray as xr
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from torch import Tensor, nn

from lit_grok.figures.common import save
from lit_grok.modules import LitClassifier

log = logging.getLogger("lit_grok")

Batch = tuple[Tensor, Tensor]


class AnalysisError(ValueError):
    """A callback cannot measure this network, or returned something that is not a measurement."""


class AnalysisCallback(L.Callback):
    """An analysis of one plain network, run on a cadence on every replica of the training.

    A subclass says *what*: `measure` takes a network and a batch and returns numbers by name. The base says
    *when*: before the first step (epoch 0), on the cadence, and at the end of the training. Numbers go to the
    run's results, as curves over (replica, epoch) in the branch `branch`, and to the loggers. What `measure` is given
    is a copy on the CPU, where double precision exists whatever the training runs on, and the random-number state is
    put back afterwards, so that an analysis cannot change the training.

    Args:
        every: Measure when the number of completed epochs is a multiple of this; None for the end only.
        per_decade: Measure instead at this many epochs per factor of ten, evenly spaced on a logarithmic axis
            (rounded to whole epochs), so more densely early.
        split: Which examples `measure` is given, ``test`` or ``train``: all of them.

    Attributes:
        branch: That of the results: the key of the callback in the configuration.
        measured: How many measurements there have been in this process.
        seconds: What the fastest of them took.
        total: What all of them took.
        bytes: What the last one has recorded.

    Example:
        >>> class WeightNormCallback(AnalysisCallback):
        ...     def measure(self, network, batch):
        ...         return {"norm": sum(p.square().sum() for p in network.parameters()).sqrt()}
        >>> callback = WeightNormCallback(every=10)
        >>> callback.branch, callback.is_due(20), callback.is_due(21)
        ('weight_norm', True, False)
    """

    #: Protocols of `lit_grok.networks` that the network must offer; checked before the training starts.
    requires: tuple[type, ...] = ()

    #: Protocols of `datamodules` that the DataModule must offer, checked before any data are made.
    requires_data: tuple[type, ...] = ()

    #: Whether replicas may be measured in threads: `measure` draws no random numbers and keeps nothing on the side.
    threaded: bool = False

    #: What the measured numbers are, by name: the ``long_name`` of the results, unless a DataArray brings its own.
    long_names: ClassVar[Mapping[str, str]] = {}

    #: Names whose NaN is an answer that needs no warning.
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
        self.branch = snake_case(type(self).__name__.removesuffix("Callback"))
        self.measured, self.seconds, self.total, self.bytes = 0, math.inf, 0.0, 0
        self._last_epoch: int | None = None
        self._reported: set[str] = set()

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Measure one network.

        Args:
            network: A plain network in evaluation mode, a copy.
            batch: Inputs (N, …) and targets (N,), a copy.

        Returns:
            Name to a number, or to an ``xarray.DataArray`` whose dimensions are named and whose attributes may be
            ``long_name`` and ``units``.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it measures: define measure(network, batch)")

    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Measure one trained network more closely, once, at the end; by default nothing.

        Takes and returns what `measure` does; the values have no epoch in the results.
        """
        return {}

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure] | Figure:
        """Draw what was measured, of all replicas at once; by default nothing.

        Args:
            run: Everything that was measured, as ``lit_grok.open_run`` gives it; the callback's own branch is
                ``run[self.branch]``, and is missing where nothing could be measured.

        Returns:
            A figure, or name to figure; saved as ``figures/NAME.png`` and ``.pdf`` in the run's directory, where NAME
            is that of the branch and, unless it is empty, what is given here: ``pruning_development``. In W&B too.
        """
        return {}

    def describe(self) -> Mapping[str, str]:
        """What a reader of the results has to know of this callback's settings: the attributes of its branch."""
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

    def check_data(self, datamodule: type) -> None:
        """Say what the DataModule's class lacks before any data are made.

        Raises:
            AnalysisError: Where it does not offer one of `requires_data`.
        """
        for protocol in self.requires_data:
            if not issubclass(datamodule, protocol):
                raise AnalysisError(
                    f"{type(self).__name__} needs data that are datamodules.{protocol.__name__}, which those of "
                    f"{datamodule.__name__} are not"
                )

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check the network and the data."""
        self.check(pl_module.stack.networks[0])
        self.check_data(type(trainer.datamodule))  # type: ignore[attr-defined]

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

    def measure_at(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        """Measure after this many epochs, unless that has been done, and note how long it takes."""
        if self._last_epoch != epoch:
            start = clock(module)
            self._measure(trainer, module, epoch)
            elapsed = clock(module) - start
            self.measured += 1
            self.seconds, self.total = min(self.seconds, elapsed), self.total + elapsed

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
        """Tells several instances of one class apart."""
        return f"{type(self).__qualname__} {self.branch}"

    def _measure_if_due(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        if self.is_due(epoch):
            self.measure_at(trainer, module, epoch)

    def _measure(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        once = self.every is None and self.per_decade is None
        self._record(trainer, module, epoch, self.measure_replicas, once)
        self._last_epoch = epoch

    def _record(
        self, trainer: L.Trainer, module: Any, epoch: int, measure: Callable, once: bool, now: int | None = None
    ) -> None:
        """Measure, and record that at an epoch; ``now`` is the number of completed ones, where that is another."""
        batch = trainer.datamodule.split(self.split)  # type: ignore[attr-defined]
        module.mark_diverged(epoch if now is None else now)
        lost = [r for r, diverged in enumerate(module.diverged) if diverged is not None]
        try:
            with isolate_rng():
                values = measure(module, batch)
            arrays = {name: _without(lost, _array(name, value)) for name, value in values.items()}
            if arrays and (described := dict(self.describe())):
                module.recorder.attributes[self.branch] = described
            for name, array in arrays.items():
                if array.dims[0] not in ("replica", "dim_0"):
                    raise AnalysisError(f"{name}: its first dimension is {array.dims[0]}, and must be replica")
                dims = [str(dim) for dim in array.dims[1:]]
                labels = {dim: array[dim].values for dim in dims if dim in array.coords}
                attributes = {"long_name": self.long_names.get(name, "")} | {k: str(v) for k, v in array.attrs.items()}
                path = f"{self.branch}/{name}"
                # What is a curve already is measured once more at its last epoch.
                at = None if once and not module.recorder.has(path, epoch) else epoch
                module.recorder.add(path, array.values, at, dims, labels, attributes)
        except Exception as error:
            error.add_note(f"(raised in {type(self).__name__} at epoch {epoch})")
            raise
        self.bytes = sum(array.nbytes for array in arrays.values())
        self._report_nan(module, {name: array.values for name, array in arrays.items() if array.ndim == 1}, epoch)
        self._log(module, arrays, epoch, once)

    def _log(self, module: LitClassifier, arrays: Mapping[str, xr.DataArray], epoch: int, once: bool) -> None:
        """Numbers, and arrays whose every dimension is labelled with a few words, to the loggers."""
        scalars: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            measured = labelled_scalars(f"{self.branch}/{name}", array)
            # A number that is NaN is said; of many, those that are not measured yet would be so many empty panels.
            scalars |= {k: v for k, v in measured.items() if array.ndim == 1 or not np.isnan(v).all()}
        if scalars:
            module.log_replicas(scalars, epoch, once)

    def _each(self, measure: Callable, module: LitClassifier, *batches: Batch) -> dict[str, xr.DataArray]:
        """Measure one replica after the other, each on its part of every batch, leaving out those that diverged."""

        def one(r: int) -> dict[str, xr.DataArray]:
            own = (tuple(part[r].to("cpu", copy=True) for part in batch) for batch in batches)
            return {name: _array(name, value) for name, value in measure(module.stack.copy(r).cpu(), *own).items()}

        measured = module.stack.each(one, module.sound) if self.threaded else [one(r) for r in module.sound]
        return _join(dict(zip(module.sound, measured, strict=True)), len(module.replicas))

    def _report_nan(self, module: Any, scalars: Mapping[str, np.ndarray], epoch: int) -> None:
        """NaN can be a right answer (no live neuron, say), but never a silent one."""
        for name, values in scalars.items():
            where = [r for r in np.flatnonzero(np.isnan(values)) if module.diverged[r] is None]
            if where and name not in self._reported and name not in self.may_be_nan:
                self._reported.add(name)
                labels = "; ".join(module.label(r) for r in where)
                log.warning("callbacks.%s, epoch %d: %s is NaN (%s)", self.branch, epoch, name, labels)


def clock(module: LitClassifier) -> float:
    """Seconds on the clock by which it is estimated what a training takes.

    Where one thread of the processor does it all, that is the time the processor has worked: beside other trainings the
    thread waits for its turn, and what it waits is none of its cost. Several threads, or a GPU, work while others do:
    there only the clock on the wall says how long it takes.
    """
    alone = module.stack.flat.is_cpu and module.stack.threads == 1
    return time.process_time() if alone else time.perf_counter()


def where_double_exists(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy on the CPU of one on Apple's GPUs, which have no double precision."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def is_epoch(value: Any) -> bool:
    """Whether a value that was read back is a number of completed epochs."""
    return type(value) is int and value >= 0


def snake_case(name: str) -> str:
    """The name of a class as one of a variable.

    Example:
        >>> snake_case("FIMTrajectory"), snake_case("LargestWeight"), snake_case("IPR")
        ('fim_trajectory', 'largest_weight', 'ipr')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def labelled_scalars(path: str, array: xr.DataArray) -> dict[str, np.ndarray]:
    """An array (R, …) whose dimensions are labelled with words as one array (R,) for every combination of labels.

    Example:
        >>> array = xr.DataArray([[0.4, 0.5]], dims=("replica", "set"), coords={"set": ["a", "b"]})
        >>> labelled_scalars("ipr/set_ipr", array)
        {'ipr/set_ipr/a': array([0.4]), 'ipr/set_ipr/b': array([0.5])}
    """
    if array.ndim == 1:
        return {path: array.values}
    dim = array.dims[1]
    if dim not in array.coords or array[dim].dtype.kind != "U":
        return {}
    parts = [labelled_scalars(f"{path}/{label}", array.isel({dim: i})) for i, label in enumerate(array[dim].values)]
    return {name: values for part in parts for name, values in part.items()}


def clean_up(callbacks: Iterable[Any]) -> None:
    """Let those callbacks that have kept something on disk until the end remove it."""
    for callback in callbacks:
        if hasattr(callback, "clean_up"):
            callback.clean_up()


def save_figures(
    run: xr.DataTree, callbacks: Iterable[Any], run_dir: str | Path, loggers: Sequence[Logger] = ()
) -> None:
    """Draw a run, each figure once for all replicas, as PNG and PDF, and in W&B with the first replica.

    Args:
        run: What was measured, as ``lit_grok.open_run`` gives it.
        callbacks: Those with a ``draw(run)`` are asked for their figures.
        run_dir: The run's directory; the figures go to ``figures/`` in it.
        loggers: Those of the replicas.
    """
    directory = Path(run_dir) / "figures"
    for callback in callbacks:
        if not hasattr(callback, "draw"):
            continue
        name = callback.branch
        try:
            drawn = callback.draw(run)
            for suffix, figure in ({"": drawn} if isinstance(drawn, Figure) else drawn).items():
                name = f"{callback.branch}_{suffix}" if suffix else callback.branch
                png = save(figure, directory, name)
                if loggers and isinstance(loggers[0], WandbLogger):
                    loggers[0].log_image(f"{callback.branch}/{suffix or 'figure'}", [str(png)])
        except Exception as error:  # what was measured must not be lost to a picture
            log.warning("figures/%s was not drawn (%s: %s)", name, type(error).__name__, error)
            log.debug("where that was:", exc_info=error)  # for train.log


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
        if any(not array.coords.to_dataset().equals(first.coords.to_dataset()) for array in arrays.values()):
            raise AnalysisError(f"{name} has other labels for different replicas")
        blank = np.full(first.shape, np.nan)
        values = np.stack([arrays[r].values if r in arrays else blank for r in range(replicas)])
        labels = {dim: first[dim] for dim in first.dims if dim in first.coords}
        joined[name] = xr.DataArray(values, dims=("replica", *first.dims), coords=labels, attrs=first.attrs)
    return joined
