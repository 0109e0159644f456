"""Which pairs of residues a network answers."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_grok.figures.common import (
    beside,
    curve,
    development,
    groups,
    heading,
    key,
    legend,
    log_axis,
    measured,
    rows,
    styles,
    title,
)


def coverage_development(run: xr.DataTree, branch: str) -> Figure:
    """Accuracy inside and outside the hole, if there is one, and by the transpose, against the epoch.

    Args:
        run: What ``open_run`` gives.
        branch: That of the coverage.
    """
    accuracy = measured(run, branch).accuracy
    holed = bool(np.isfinite(accuracy.sel(group="hole").values).any())
    pairs = [("transpose trained", "transpose not trained"), *([("outside", "hole")] if holed else [])]
    figure, panels, handles = development(run, branch, panels=len(pairs))
    for axes, names in zip(panels, pairs, strict=True):
        told_apart = []
        for name, style, handle in styles(run, names):
            curve(axes, run, accuracy.sel(group=name), **style)
            told_apart.append(handle)
        beside(axes, told_apart)
        axes.set(ylabel="test accuracy", ylim=(-0.03, 1.03))
    legend(figure, handles)
    return figure


def coverage_by_distance(run: xr.DataTree, branch: str) -> Figure:
    """Accuracy by the distance to the nearest training pair of the class, and how many test pairs are so far away.

    Args:
        run: What ``open_run`` gives.
        branch: That of the coverage.
    """
    results = measured(run, branch)
    figure = Figure(figsize=(5.0, 3.8), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for group in groups(run):
        pairs = rows(results.distance_pairs, group)
        there = np.flatnonzero(pairs.sum(0) > 0)
        right = np.nansum(rows(results.distance_accuracy, group) * pairs, 0)[there]
        top.plot(
            there, right / pairs.sum(0)[there], marker="o", markersize=3, color=group.colour, linestyle=group.style
        )
        below.plot(there, pairs.mean(0)[there], marker="o", markersize=3, color=group.colour, linestyle=group.style)
    top.set(ylabel="test accuracy", ylim=(-0.03, 1.03))
    below.set(ylabel="test pairs", xlabel="cyclic L1 distance to the nearest training pair of the class")
    log_axis(below)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    title(figure, heading(run, "mean"))
    legend(figure, key(run))
    return figure
