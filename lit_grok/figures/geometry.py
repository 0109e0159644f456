"""The geometry of the training: Figures 8, 20 and 31 to 34 of arXiv 2502.01739."""

import re
from collections.abc import Iterable, Mapping
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
    title,
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
    results, handles = _living(run, branch, variant)
    fisher, plain = results.sel(metric="fisher"), results.sel(metric="euclidean")
    figure = Figure(figsize=(9, 11), layout="constrained")
    grid = figure.subplots(4, 2)
    (cosine, origin), (length, euclidean), (gradient, split_length), (split_cosine, spectrum) = grid
    handles += _directions(run, fisher, cosine, origin, split_cosine)
    handles += _all_lengths(run, fisher, plain, length, euclidean, gradient, split_length)
    _spectrum(spectrum, run, results, str(run[branch].attrs.get("stiff", "stiff")))
    _finish(figure, run, [axes for axes in grid.flat if axes is not spectrum], results, handles, variant)
    figure.align_ylabels(grid)
    return figure


def directions(run: xr.DataTree, branch: str, variant: str) -> Figure:
    """Cosines of consecutive steps, of all parameters and of the stiff and the sloppy ones, and with the way home.

    Args:
        run: What ``open_run`` gives.
        branch: That of the trajectory.
        variant: ``classif_logits`` or ``regression``.

    Returns:
        The figure (Figs. 8, 34), drawn as in `trajectory`.
    """
    results, handles = _living(run, branch, variant)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    handles += _directions(run, results.sel(metric="fisher"), *panels)
    _finish(figure, run, panels, results, handles, variant)
    return figure


def lengths(run: xr.DataTree, branch: str, variant: str) -> Figure:
    """Lengths of the steps under the Fisher information and without it, their gradient, and those in the subspaces.

    Args:
        run: What ``open_run`` gives.
        branch: That of the trajectory.
        variant: ``classif_logits`` or ``regression``.

    Returns:
        The figure (Figs. 31 to 33), drawn as in `trajectory`.
    """
    results, handles = _living(run, branch, variant)
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    grid = figure.subplots(2, 2)
    handles += _all_lengths(run, results.sel(metric="fisher"), results.sel(metric="euclidean"), *grid.flat)
    _finish(figure, run, grid.flat, results, handles, variant)
    figure.align_ylabels(grid)
    return figure


def spectra(run: xr.DataTree, branch: str) -> Figure:
    """The Fisher diagonal of the trained networks under every variant, sorted (Fig. 20).

    Args:
        run: What ``open_run`` gives.
        branch: That of the trajectory.

    Returns:
        The figure, drawn as in `trajectory`.
    """
    variants = [str(name) for name in measured(run, branch)["variant"].values]
    figure = Figure(figsize=(4.5 * len(variants), 3.4), layout="constrained")
    for variant, axes in zip(variants, figure.subplots(1, len(variants), squeeze=False)[0], strict=True):
        results, handles = _living(run, branch, variant)
        _spectrum(axes, run, results, str(run[branch].attrs.get("stiff", "stiff")))
        axes.set_title(_VARIANTS.get(variant, variant))
    legend(figure, handles)
    title(figure, heading(run))
    return figure


def _living(run: xr.DataTree, branch: str, variant: str) -> tuple[xr.Dataset, list[Line2D]]:
    """The results of one variant without the replicas that collapsed, unless all have; and the legend so far."""
    results = measured(run, branch).sel(variant=variant)
    collapsed = np.atleast_1d(measured(run, "/").status.values) == "collapsed"
    if not collapsed.all():
        results = results.where(xr.DataArray(~collapsed, dims="replica"))
    handles = key(run)
    dead = [group.label for group in groups(run) if collapsed[group.replicas].all() and not collapsed.all()]
    for handle in handles:
        if handle.get_label() in dead:
            handle.set_label(f"{handle.get_label()}: collapsed, not shown")
    return results, handles


def _finish(
    figure: Figure, run: xr.DataTree, panels: Iterable[Axes], results: xr.Dataset, handles: list[Any], variant: str
) -> None:
    """The axis of epochs, the plateau, the legend and the heading."""
    against_epochs = list(panels)
    handles += plateaus(against_epochs, run)
    epoch_axis(against_epochs, results.epoch.values)
    for axes in against_epochs:
        axes.set_xlabel("epoch")
    legend(figure, handles)
    title(figure, f"{_VARIANTS.get(variant, variant)}: {heading(run)}")


def _directions(run: xr.DataTree, fisher: xr.Dataset, cosine: Axes, origin: Axes, split: Axes) -> list[Line2D]:
    """Cosines in three panels; what the legend says of the subspaces."""
    _cosines(cosine, run, fisher.step_cosine.sel(subspace="all"), r"$\cos(s_{e-1},\, s_e)$")
    _cosines(origin, run, fisher.origin_cosine.sel(subspace="all"), r"$\cos(s_e,\, -\theta_e)$")
    handles = []
    for subspace, style, handle in styles(run, ["stiff", "sloppy"]):
        values = fisher.step_cosine.sel(subspace=subspace)
        _cosines(split, run, values, r"$\cos(s_{e-1},\, s_e)$", style)
        handles += [handle] if np.isfinite(values.values).any() else []
    return handles


def _all_lengths(
    run: xr.DataTree,
    fisher: xr.Dataset,
    plain: xr.Dataset,
    length: Axes,
    euclidean: Axes,
    gradient: Axes,
    split: Axes,
) -> list[Line2D]:
    """Lengths in four panels; what the legend says of bumps and subspaces."""
    handles: list[Line2D] = []
    for axes, metric, label in ((length, fisher, r"$|s_e|$, Fisher"), (euclidean, plain, r"$|s_e|$, Euclidean")):
        _lengths(axes, run, metric.step_magnitude.sel(subspace="all"), label)
        handles += _bumps(axes, run, metric)
    _gradients(gradient, run, fisher.step_magnitude.sel(subspace="all"))
    handles += _bumps(gradient, run, fisher)
    for subspace, style, handle in styles(run, ["stiff", "sloppy"]):
        values = fisher.step_magnitude.sel(subspace=subspace)
        _lengths(split, run, values, r"$|s_e|$, Fisher", style)
        handles += [handle] if np.isfinite(values.values).any() else []
    return handles


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
    """Where the bump of the step length begins and ends, of each seed that has one: they may lie far apart."""
    found: list[Line2D] = []
    for group in groups(run) if few(run) else ():
        for name in ("bump_start", "bump_end"):
            times = rows(values[name], group).ravel()
            for time in times[np.isfinite(times)]:
                axes.axvline(time, color=group.colour, linestyle=":", linewidth=1.2, alpha=1 / len(times) ** 0.5)
                found = [Line2D([], [], color="0.3", linestyle=":", label="bump of the step length, each seed's")]
    return found


def _spectrum(axes: Axes, run: xr.DataTree, results: xr.Dataset, stiff: str) -> None:
    """The Fisher diagonal of the trained networks, sorted; above the dashed line lie the stiff parameters."""
    named = re.fullmatch(r"F ≥ ([-+.e\d]+)", stiff)
    threshold = float(named[1]) if named else None  # else it is a quantile, and the spectrum says where that lies
    edge = np.nan
    for group in groups(run):
        each = rows(results.spectrum, group)
        each = each[np.isfinite(each).all(1)]
        if not (each > 0).any():
            continue  # diverged or dead
        ranks, parameters = results["rank"].values, int(results["rank"].max())
        shown = np.unique(np.linspace(0, len(ranks) - 1, _SPECTRUM_POINTS).astype(int))
        draw_group(axes, ranks[shown] / parameters, each[:, shown], group, marker="")
        count = np.nanmean(rows(results.stiff_parameters, group))
        if 0 < count < parameters:
            smallest = each.mean(0)[np.searchsorted(ranks, parameters - max(round(count), 1) + 1)]
            edge = np.fmax(edge, threshold or smallest)
            axes.axhline(threshold or smallest, color=group.colour, linestyle="--", linewidth=0.8)
    if axes.lines:
        log_axis(axes)
        axes.set_ylim(bottom=_SPECTRUM_DEPTH * axes.get_ylim()[1])
    axes.set(xlabel="parameters, sorted", ylabel=r"$F_i$, trained network", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if np.isfinite(edge):
        axes.annotate(f"stiff: {stiff}", (0.02, edge), xytext=(0, 3), textcoords="offset points", fontsize="small")
