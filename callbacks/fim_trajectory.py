"""The geometry of the training: how far and which way the network moves, measured by its Fisher information."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import lightning as L
import numpy as np
import safetensors.torch
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from callbacks.base import AnalysisCallback, Batch, is_epoch, labelled_scalars
from lit_grok.cli import UsageError
from lit_grok.figures.common import has
from lit_grok.figures.geometry import trajectory
from lit_grok.files import ReadError, reading, write
from lit_grok.measures.fisher import Variant, fisher_diagonal, two_layer_fisher_diagonal, two_layer_parameters
from lit_grok.measures.inequality import gini
from lit_grok.measures.trajectory import grokking_period, origin_cosine, step_cosine, step_magnitude, stiff_mask
from lit_grok.modules import LitClassifier

log = logging.getLogger("lit_grok")

#: The quantities of a step, and what their dimensions ``metric`` and ``subspace`` of a step run over.
STEP = ("step_magnitude", "step_cosine", "origin_cosine")
METRICS, SUBSPACES = ("fisher", "euclidean"), ("all", "stiff", "sloppy")

Snapshot = dict[str, Tensor]  # "position" and a Fisher diagonal for each variant, all (R, D)


class FIMTrajectoryCallback(AnalysisCallback):
    """Steps of the training between snapshots θ_e, under the diagonal Fisher information F and without it.

    Every quantity is recorded at the epoch e of the snapshot where its step s_e starts, as soon as the next snapshot
    is there:

    - ``step_magnitude`` |s_e|, ``step_cosine`` cos(s_{e−1}, s_e), ``origin_cosine`` cos(s_e, −θ_e),

    with the dimensions ``variant`` (of the Fisher information), ``metric`` (``fisher``: under F(θ_e) of the variant;
    ``euclidean``: F = 1) and ``subspace``: ``all`` parameters, the ``stiff`` or the ``sloppy`` ones. Which are stiff is
    fixed by F of the trained network and carried back through the training, so these are put in at the end, as are

    - ``bump_start``, ``bump_end``: where the bump of the step magnitude begins and ends, and ``degenerate_steps``, the
      number of steps without length, dimensions ``variant`` and ``metric``;
    - ``gini`` and ``stiff_parameters``, their number, dimension ``variant``, and ``spectrum``, the final F sorted along
      ``rank``.

    A step of length zero (a collapsed network, an F that vanishes) has no direction: NaN. Since F of the trained
    network is known last, snapshots wait on disk, one file each, ``trajectory/EPOCH.safetensors`` in the
    run's directory: ``position`` and F of each variant, shape (R, D) in the order of ``network.parameters()``. The last
    two are in the checkpoint as well, so that the curves of a run that is extended after its end have no gap; the stiff
    and the sloppy ones go back to its beginning only where ``keep_trajectory`` has left the others too.

    Args:
        every: Epochs between snapshots.
        until: Last epoch to take a snapshot at; None for the whole training.
        variants: Which Fisher information: ``classif_logits``, ``regression``, or both.
        split: Where the inputs come from, ``train`` or ``test``.
        inputs: How many of them (the split is in random order); None for all.
        stiff_threshold: Smallest final F of a stiff parameter.
        stiff_quantile: If given, the threshold is this quantile of the final F instead.
        keep_trajectory: Leave the snapshots on disk when the run is complete.
    """

    long_names: ClassVar[Mapping[str, str]] = {
        "step_magnitude": "length of the step",
        "step_cosine": "cosine of consecutive steps",
        "origin_cosine": "cosine with the way to the origin",
        "bump_start": "beginning of the bump of the step length",
        "bump_end": "end of the bump of the step length",
        "degenerate_steps": "steps without length",
        "gini": "Gini coefficient of the final F",
        "stiff_parameters": "stiff parameters",
        "spectrum": "Fisher information of the trained network",
    }

    def __init__(
        self,
        every: int = 200,
        until: int | None = None,
        variants: Sequence[Variant] = ("classif_logits",),
        split: Literal["test", "train"] = "train",
        inputs: int | None = None,
        stiff_threshold: float = 0.1,
        stiff_quantile: float | None = None,
        keep_trajectory: bool = False,
    ):
        super().__init__(every=every, split=split)
        for name, least, value in (("until", 0, until), ("inputs", 1, inputs)):
            if value is not None and value < least:
                raise ValueError(f"FIMTrajectoryCallback.{name}={value}: must be at least {least}")
        if not variants or len(set(variants)) < len(variants) or not set(variants) <= set(get_args(Variant)):
            allowed = ", ".join(get_args(Variant))
            raise ValueError(f"FIMTrajectoryCallback.variants={list(variants)}: one or more of {allowed}")
        if stiff_quantile is not None and not 0 <= stiff_quantile <= 1:
            raise ValueError(f"FIMTrajectoryCallback.stiff_quantile={stiff_quantile}: must lie between 0 and 1")
        self.until, self.variants, self.inputs = until, list(variants), inputs
        self.stiff_threshold, self.stiff_quantile = stiff_threshold, stiff_quantile
        self.keep_trajectory = keep_trajectory
        self._interval = every
        self._recent: dict[int, Snapshot] = {}
        self._directory, self._shape = Path(), (0, 0)

    def describe(self) -> Mapping[str, str]:
        """What makes a parameter stiff."""
        quantile = self.stiff_quantile
        return {"stiff": f"F ≥ {self.stiff_threshold:g}" if quantile is None else f"F ≥ its {quantile:g} quantile"}

    def is_due(self, epoch: int) -> bool:
        """Whether there is a snapshot after this many epochs."""
        return epoch % self._interval == 0 and (self.until is None or epoch <= self.until)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Find the place of the snapshots, which two of these callbacks would both claim."""
        if sum(isinstance(callback, FIMTrajectoryCallback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UsageError("FIMTrajectoryCallback: one is enough, it takes several variants")
        super().setup(trainer, pl_module, stage)
        self._directory = Path(trainer.default_root_dir) / "trajectory"
        networks = pl_module.stack.networks
        self._shape = len(networks), sum(p.numel() for p in networks[0].parameters())

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put back the snapshots of a run that goes on after its end, and take the first one."""
        for epoch, snapshot in self._recent.items():
            if not self._path(epoch).exists():
                self._write(epoch, snapshot)
        super().on_train_start(trainer, pl_module)

    def measurements(self, epochs: int) -> int:
        """The number of snapshots."""
        return super().measurements(epochs if self.until is None else min(epochs, self.until))

    def disk(self, parameters: int, epochs: int) -> int:
        """Bytes of the snapshots of one replica: position and F of each variant, float32."""
        return self.measurements(epochs) * 4 * (1 + len(self.variants)) * parameters

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Measure what the trained network decides, and draw."""
        if pl_module.interrupted:
            return
        epoch = trainer.current_epoch
        due = [e for e in range(epoch + 1) if self.is_due(e)]
        if missing := sum(not self._path(e).exists() for e in due):
            log.info(
                "FIMTrajectoryCallback: %d of %d snapshots are not in %s (removed when the run was complete, unless "
                "keep_trajectory=true): the stiff and sloppy steps beside them are missing",
                missing,
                len(due),
                self._directory,
            )
        final: Snapshot = {}

        def measure_final(module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
            final.update(self._snapshot(module, batch))
            return self._final(final)

        self._record(trainer, pl_module, epoch, measure_final, once=True)
        if len(due) > 1:
            for variant in self.variants:
                for e, values in self._subspace_steps(due, variant, self._stiff(final[variant])):
                    self._put_in(pl_module, values, e)
            self._record(trainer, pl_module, epoch, lambda module, batch: self._periods(module), once=True)

    def clean_up(self) -> None:
        """Remove the snapshots."""
        if self.keep_trajectory or not self._directory.exists():
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        if len(self._recent) > 1 and min(self._recent) > 0:
            log.info(
                "FIMTrajectoryCallback: if this run is extended, its steps before epoch %d will not be told apart as "
                "stiff and sloppy; keep_trajectory=true keeps the snapshots that this takes",
                min(self._recent),
            )

    def state_dict(self) -> dict[str, Any]:
        """Epoch of the last snapshot, and the last two."""
        return super().state_dict() | {"recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back.

        Raises:
            ValueError: Where they are not the snapshots of a training with these variants.
        """
        super().load_state_dict(state_dict)
        recent = state_dict["recent"]
        for epoch, snapshot in recent.items():
            if not is_epoch(epoch) or not self._fits(snapshot):
                raise ValueError(
                    f"FIMTrajectoryCallback: recent={epoch!r:.40}, which is not a snapshot of this training"
                )
        self._recent = dict(recent)

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """One page of the trajectory for each variant; none where the training has ended before the third snapshot."""
        if not has(run, self.branch, "step_cosine", "epoch"):
            return {}
        return {variant: trajectory(run, self.branch, variant) for variant in self.variants}

    def _measure(self, trainer: L.Trainer, module: Any, epoch: int) -> None:
        """Take a snapshot, and measure the step that it completes, at the epoch where that step started."""

        def measure(module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
            snapshot = self._snapshot(module, batch)
            self._write(epoch, snapshot)
            here, before = self._read(epoch - self._interval), self._read(epoch - 2 * self._interval)
            kept = {epoch - self._interval: here, epoch: snapshot}
            self._recent = {e: s for e, s in kept.items() if s is not None}
            if here is None:
                return {}
            values = {name: self._blank(name) for name in STEP}

            def measure_steps(r: int) -> None:
                row = slice(r, r + 1)
                old = before["position"][row] if before else None
                positions = old, here["position"][row], snapshot["position"][row]
                for name, value in _step(*positions, None).items():
                    values[name].values[r, :, 1, 0] = value.item()
                for v, variant in enumerate(self.variants):
                    for name, value in _step(*positions, here[variant][row]).items():
                        values[name].values[r, v, 0, 0] = value.item()

            module.stack.each(measure_steps)
            return values

        self._record(trainer, module, max(epoch - self._interval, 0), measure, once=False, now=epoch)
        self._last_epoch = epoch

    def _snapshot(self, module: LitClassifier, batch: Batch) -> Snapshot:
        """Parameters and Fisher diagonals of all replicas; NaN for those that diverged."""
        inputs = batch[0][:, : self.inputs]
        snapshot = {name: torch.empty(self._shape) for name in ("position", *self.variants)}

        def measure(r: int) -> None:
            network = module.stack.copy(r)
            snapshot["position"][r] = parameters_to_vector(network.parameters()).detach()
            for variant in self.variants:
                snapshot[variant][r] = fisher_diagonal(network, inputs[r], variant)

        stacked = module.stack.stacked()
        layers = two_layer_parameters(module.stack.networks[0], stacked, inputs)
        if inputs.is_cuda and layers is not None:  # a GPU takes all at once
            snapshot["position"].copy_(torch.cat([values.flatten(1) for values in stacked.values()], 1))
            for variant in self.variants:
                snapshot[variant].copy_(two_layer_fisher_diagonal(*layers, inputs, variant))
        else:
            module.stack.each(measure, module.sound)
        for r in set(range(self._shape[0])) - set(module.sound):
            for rows in snapshot.values():
                rows[r] = torch.nan
        return snapshot

    def _final(self, final: Snapshot) -> dict[str, Any]:
        """What is read off the Fisher information of the trained networks."""
        values: dict[str, list[Tensor]] = {}
        for variant in self.variants:
            fisher = final[variant]
            stiff = self._stiff(fisher)
            if not stiff.any():  # as ever after a short run, so the console is spared it
                log.debug(
                    "%s: no parameter of the trained network is stiff (%s), so its stiff steps are NaN; "
                    "stiff_quantile takes the largest F there are",
                    variant,
                    self.describe()["stiff"],
                )
            values.setdefault("gini", []).append(gini(fisher))
            values.setdefault("stiff_parameters", []).append(stiff.sum(1))
            values.setdefault("spectrum", []).append(fisher.sort(1).values)
        ranks = {"rank": np.arange(1, self._shape[1] + 1)}
        return {
            name: xr.DataArray(
                torch.stack(each, 1).numpy(),
                dims=("replica", "variant", "rank")[: each[0].ndim + 1],
                coords={"variant": self.variants, **(ranks if each[0].ndim > 1 else {})},
            )
            for name, each in values.items()
        }

    def _blank(self, name: str) -> xr.DataArray:
        """An array of NaN for one quantity of a step."""
        labels: dict[str, list] = {"variant": self.variants, "metric": list(METRICS), "subspace": list(SUBSPACES)}
        shape = self._shape[0], *(len(each) for each in labels.values())
        return xr.DataArray(np.full(shape, np.nan), dims=("replica", *labels), coords=labels)

    def _subspace_steps(
        self, due: Sequence[int], variant: Variant, stiff: Tensor
    ) -> Iterator[tuple[int, dict[str, xr.DataArray]]]:
        """The epoch and the quantities of each step on the stiff and on the sloppy parameters of all replicas."""
        # Copying the few entries of a subspace out is several times cheaper than masking all of them in every product.
        indices = [[mask.nonzero().squeeze(1) for mask in masks] for masks in (stiff, ~stiff)]
        v = self.variants.index(variant)
        before, here = None, self._read(due[0])
        for epoch, next_epoch in pairwise(due):
            after = self._read(next_epoch)
            if here is not None and after is not None:
                values = {name: self._blank(name) for name in STEP}
                for s, each in enumerate(indices, start=1):
                    for r, index in enumerate(each):
                        old = before["position"][r][index] if before else None
                        positions = old, here["position"][r][index], after["position"][r][index]
                        for m, fisher in enumerate((here[variant][r][index], None)):
                            for name, value in _step(*positions, fisher).items():
                                values[name].values[r, v, m, s] = value.item()
                yield epoch, values
            before, here = here, after

    def _put_in(self, module: LitClassifier, values: Mapping[str, xr.DataArray], epoch: int) -> None:
        """Add what could not be measured while the training went on to its epoch."""
        scalars: dict[str, np.ndarray] = {}
        for name, array in values.items():
            path = f"{self.branch}/{name}"
            module.recorder.amend(path, array.values, epoch)
            scalars |= {k: v for k, v in labelled_scalars(path, array).items() if not np.isnan(v).all()}
        module.log_replicas(scalars, epoch)

    def _periods(self, module: LitClassifier) -> dict[str, xr.DataArray]:
        """The bump of each curve of the step magnitude, and how many steps have no length."""
        epochs, magnitudes = module.recorder.curve(f"{self.branch}/step_magnitude")
        curves = magnitudes[..., 0]  # (steps, replicas, variants, metrics)
        periods = np.apply_along_axis(lambda curve: grokking_period(epochs, curve), 0, curves)
        degenerate = np.isnan(curves).sum(0).astype(float)
        degenerate[[r for r in range(len(degenerate)) if r not in module.sound]] = np.nan
        for r in np.flatnonzero((degenerate > 0).any((1, 2))).tolist():
            count = int(np.nanmax(degenerate[r]))
            log.warning(
                "callbacks.%s, %s: %d of %d steps have no length", self.branch, module.label(r), count, len(epochs)
            )
        labels = {"variant": self.variants, "metric": list(METRICS)}
        values = {"bump_start": periods[0], "bump_end": periods[1], "degenerate_steps": degenerate}
        units = {"bump_start": {"units": "epochs"}, "bump_end": {"units": "epochs"}, "degenerate_steps": {}}
        return {
            name: xr.DataArray(v, dims=("replica", *labels), coords=labels, attrs=units[name])
            for name, v in values.items()
        }

    def _stiff(self, fisher: Tensor) -> Tensor:
        return stiff_mask(fisher, self.stiff_threshold, self.stiff_quantile)

    def _path(self, epoch: int) -> Path:
        return self._directory / f"{epoch:09d}.safetensors"

    def _fits(self, snapshot: Snapshot) -> bool:
        """Whether names, types and shapes are those of this training; the shape only once that is known."""
        shapes = {tuple(values.shape) for values in snapshot.values()}
        return (
            snapshot.keys() == {"position", *self.variants}
            and all(values.dtype is torch.float32 for values in snapshot.values())
            and (shapes == {self._shape} if self._shape != (0, 0) else len(shapes) == 1)
        )

    def _write(self, epoch: int, snapshot: Snapshot) -> None:
        write(self._path(epoch), safetensors.torch.save(snapshot))

    def _read(self, epoch: int) -> Snapshot | None:
        """One snapshot, or None where there is none, or a damaged one."""
        if epoch in self._recent:
            return self._recent[epoch]
        path = self._path(epoch)
        try:
            with reading(path, "a snapshot of this run"):
                snapshot = safetensors.torch.load_file(path)
                if not self._fits(snapshot):
                    raise ValueError("other names or shapes")
                return snapshot
        except FileNotFoundError:
            return None
        except ReadError as error:
            log.warning("%s: its steps are left out", error)
            return None


def _step(before: Tensor | None, here: Tensor, after: Tensor, fisher: Tensor | None) -> dict[str, Tensor]:
    """The quantities of the step that starts here, under F(here)."""
    step = after - here
    values = {
        "step_magnitude": step_magnitude(step, fisher),
        "origin_cosine": origin_cosine(step, here, fisher),
    }
    if before is not None:
        values["step_cosine"] = step_cosine(here - before, step, fisher)
    return values
