"""The geometry of the training: Figures 8, 20 and 31 to 34 of arXiv 2502.01739."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from lit_grok.figures.common import (
    draw_group,
    epoch_axis,
    few,
    groups,
    heading,
    key,
    legend,
    log_axis,
    measured,
    plateaus,
    rows,
    styles,
)

_SPECTRUM_POINTS = 2000  # more cannot be told apart on a page
_SPECTRUM_DEPTH = 1e-12  # of the largest F: below lie dead neurons, down to the smallest number there is
_SMOOTHED = 0.05  # half the width of the running median, as a share of the epoch: constant on a logarithmic axis

_VARIANTS = {
    "classif_logits": "Fisher information of the classifier",
    "regression": "Fisher information of the regression",
}


def trajectory(run: xr.DataTree, branch: str, variant: str) -> Figure:
    """Cosines and lengths of the steps of the training under one Fisher information, and its final spectrum.

    Args:
        run: What ``open_run`` gives.
        branch: That of the trajectory.
        variant: ``classif_logits`` or ``regression``.

    Returns:
        The figure, eight panels. The bold line is a running median over the epochs e ± 5 %, in front of the mean over
        seeds; bands are the range over seeds. Dotted lines bound the bump of the step length, for at most three groups;
        dashed ones in the spectrum are the smallest F of a stiff parameter. Replicas that collapsed are left out,
        unless all have: their weights are the rounding of zero, and so are their steps.
    """
    results = measured(run, branch).sel(variant=variant)
    collapsed = np.atleast_1d(measured(run, "/").status.values) == "collapsed"
    if not collapsed.all():
        results = results.where(xr.DataArray(~collapsed, dims="replica"))
    fisher, plain = results.sel(metric="fisher"), results.sel(metric="euclidean")
    figure = Figure(figsize=(9, 11), layout="constrained")
    grid = figure.subplots(4, 2)
    (cosine, origin), (length, euclidean), (gradient, split_length), (split_cosine, spectrum) = grid
    against_epochs = [axes for axes in grid.flat if axes is not spectrum]
    handles = key(run)
    dead = [group.label for group in groups(run) if collapsed[group.replicas].all() and not collapsed.all()]
    for handle in handles:
        if handle.get_label() in dead:
            handle.set_label(f"{handle.get_label()}: collapsed, not shown")

    _cosines(cosine, run, fisher.step_cosine.sel(subspace="all"), r"$\cos(s_{e-1},\, s_e)$")
    _cosines(origin, run, fisher.origin_cosine.sel(subspace="all"), r"$\cos(s_e,\, -\theta_e)$")
    for axes, metric, label in ((length, fisher, r"$|s_e|$, Fisher"), (euclidean, plain, r"$|s_e|$, Euclidean")):
        _lengths(axes, run, metric.step_magnitude.sel(subspace="all"), label)
        handles += _bumps(axes, run, metric)
    _gradients(gradient, run, fisher.step_magnitude.sel(subspace="all"))
    handles += _bumps(gradient, run, fisher)
    for subspace, style, handle in styles(run, ["stiff", "sloppy"]):
        _lengths(split_length, run, fisher.step_magnitude.sel(subspace=subspace), r"$|s_e|$, Fisher", style)
        _cosines(split_cosine, run, fisher.step_cosine.sel(subspace=subspace), r"$\cos(s_{e-1},\, s_e)$", style)
        if np.isfinite(fisher.step_magnitude.sel(subspace=subspace).values).any():
            handles.append(handle)
    _spectrum(spectrum, run, results, str(run[branch].attrs.get("stiff", "stiff")))

    handles += plateaus(against_epochs, run)
    epoch_axis(against_epochs, results.epoch.values)
    for axes in against_epochs:
        axes.set_xlabel("epoch")
    figure.align_ylabels(grid)
    legend(figure, handles)
    figure.suptitle(f"{_VARIANTS.get(variant, variant)}: {heading(run)}", fontsize="medium")
    return figure


def _cosines(
    axes: Axes, run: xr.DataTree, values: xr.DataArray, label: str, style: Mapping[str, Any] | None = None
) -> None:
    _smoothed(axes, run, values, style)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(ylabel=label, ylim=(-1.05, 1.05))


def _lengths(
    axes: Axes, run: xr.DataTree, values: xr.DataArray, label: str, style: Mapping[str, Any] | None = None
) -> None:
    _smoothed(axes, run, values.where(values > 0), style)
    axes.set_ylabel(label)
    if axes.lines:
        log_axis(axes)


def _gradients(axes: Axes, run: xr.DataTree, values: xr.DataArray) -> None:
    """The gradient of the length: linear about zero, logarithmic beyond, as the first steps shrink fastest."""
    if values.sizes["epoch"] < 2:
        return
    found = values.copy(data=np.gradient(values.values, values.epoch.values, axis=values.get_axis_num("epoch")))
    _smoothed(axes, run, found, None)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    sizes = np.abs(found.values[np.isfinite(found.values) & (found.values != 0)])
    axes.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(np.median(sizes))) if sizes.size else 1.0)
    axes.set_ylabel(r"$\mathrm{d}|s_e|\,/\,\mathrm{d}e$")


def _smoothed(axes: Axes, run: xr.DataTree, values: xr.DataArray, style: Mapping[str, Any] | None) -> None:
    """Faint as measured, bold its running median."""
    epochs = values.epoch.values
    for group in groups(run):
        each = rows(values, group).astype(float)
        if not np.isfinite(each).any():
            continue
        own = dict(style or {})
        draw_group(axes, epochs, each, group, **own | {"marker": "", "alpha": 0.35, "linewidth": 0.6})
        measured = np.isfinite(each).any(0)
        mean = np.nanmean(each[:, measured], 0)
        axes.plot(
            epochs[measured],
            running_median(epochs[measured], mean),
            **{"color": group.colour, "linestyle": group.style, "linewidth": 1.4} | own,
        )


def running_median(epochs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Median over the epochs e ± 5 %, which smooths a late tail and leaves the beginning as it is.

    Example:
        >>> running_median(np.array([1, 10, 100, 101, 102]), np.array([5.0, 4.0, 1.0, 9.0, 2.0])).tolist()
        [5.0, 4.0, 2.0, 2.0, 2.0]
    """
    first = np.searchsorted(epochs, epochs * (1 - _SMOOTHED), "left")
    last = np.searchsorted(epochs, epochs * (1 + _SMOOTHED), "right")
    return np.array([np.median(values[a:b]) for a, b in zip(first, last, strict=True)])


def _bumps(axes: Axes, run: xr.DataTree, values: xr.Dataset) -> list[Line2D]:
    """Where the bump of the step length begins and ends, means over those seeds of a group that have one."""
    found: list[Line2D] = []
    for group in groups(run) if few(run) else ():
        for name in ("bump_start", "bump_end"):
            times = rows(values[name], group)
            if np.isfinite(times).any():
                axes.axvline(np.nanmean(times), color=group.colour, linestyle=":", linewidth=1.2)
                found = [Line2D([], [], color="0.3", linestyle=":", label="bump of the step length")]
    return found


def _spectrum(axes: Axes, run: xr.DataTree, results: xr.Dataset, stiff: str) -> None:
    """The Fisher diagonal of the trained networks, sorted; above the dashed line lie the stiff parameters."""
    edge = np.nan
    for group in groups(run):
        each = rows(results.spectrum, group)
        each = each[np.isfinite(each).all(1)]
        if not (each > 0).any():
            continue  # diverged or dead
        parameters = each.shape[1]
        shown = np.unique(np.linspace(0, parameters - 1, _SPECTRUM_POINTS).astype(int))
        draw_group(axes, (shown + 1) / parameters, each[:, shown], group, marker="")
        count = np.nanmean(rows(results.stiff_parameters, group))
        if 0 < count < parameters:
            smallest = each.mean(0)[parameters - max(round(count), 1)]
            axes.axhline(smallest, color=group.colour, linestyle="--", linewidth=0.8)
            edge = np.fmax(edge, smallest)
    if axes.lines:
        axes.set_yscale("log")
        axes.set_ylim(bottom=_SPECTRUM_DEPTH * axes.get_ylim()[1])
    axes.set(xlabel="parameters, sorted", ylabel=r"$F_i$, trained network", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if np.isfinite(edge):
        axes.annotate(f"stiff: {stiff}", (0.02, edge), xytext=(0, 3), textcoords="offset points", fontsize="small")
