"""Fourier content of the neurons' weights: the figures of the inverse participation ratio."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import (
    count_axis,
    curve,
    development,
    draw_group,
    groups,
    heading,
    key,
    legend,
    measured,
    rows,
    styles,
)


def ipr_distribution(run: xr.DataTree, branch: str) -> Figure:
    """IPR of all live neurons of each set of weights, and how the neurons are spread over frequencies (Fig. 4).

    Args:
        run: What ``open_run`` gives.
        branch: That of the IPR.

    Returns:
        The figure: shares of the live neurons; the panel by frequency is that of the first set, from frequency 1 on.
    """
    results = measured(run, branch)
    sets = [str(name) for name in results["set"].values]
    figure = Figure(figsize=(2.3 * len(sets) + 3.4, 3.4), layout="constrained")
    *panels, last = figure.subplots(1, len(sets) + 1, width_ratios=[2] * len(sets) + [3])
    ratios = results.neuron_ipr
    highest = max(0.6, float(np.nanmax(ratios.values)) if np.isfinite(ratios.values).any() else 0.0)
    bins = np.linspace(0, highest, 31)
    for name, axes in zip(sets, panels, strict=True):
        for group in groups(run):
            values = rows(ratios.sel(set=name), group)
            live = values[np.isfinite(values)]
            if live.size:
                shares, _ = np.histogram(live, bins)
                axes.stairs(shares / live.size, bins, color=group.colour, linestyle=group.style, linewidth=1.3)
                axes.axvline(live.mean(), color=group.colour, linestyle=":", linewidth=1)
        axes.set(title=f"weights {name}", xlabel="IPR", xlim=(0, highest), ylim=(0, None))
    panels[0].set_ylabel("share of live neurons")
    frequency = results.neuron_frequency.isel(set=0)
    top = int(np.nanmax(frequency.values)) if (frequency.values > 0).any() else 1
    k = np.arange(1, top + 1)
    for group in groups(run):
        found = rows(frequency, group)
        counts = np.stack([np.bincount(one[one > 0].astype(int), minlength=top + 1)[1:] for one in found])
        live = np.maximum((found >= 0).sum(1, keepdims=True), 1)
        draw_group(last, k, counts / live, group, marker="")
    last.set(title=f"weights {sets[0]}", xlabel="dominant frequency", ylabel="share of live neurons", ylim=(0, None))
    legend(figure, key(run))
    figure.suptitle(heading(run), fontsize="medium")
    return figure


def ipr_development(run: xr.DataTree, branch: str) -> Figure:
    """Mean IPR over the live neurons, and the number of dead ones, against the epoch, with the accuracy (Fig. 6).

    Args:
        run: What ``open_run`` gives.
        branch: That of the IPR.

    Returns:
        The figure: the mean over the sets of weights, and for a single init_scale each set as well.
    """
    figure, (ratio, dead), handles = development(run, branch, panels=2)
    results = measured(run, branch)
    curve(ratio, run, results.mean_ipr)
    if len(groups(run)) == 1:
        for name, style, handle in list(styles(["mean", *results["set"].values]))[1:]:
            curve(ratio, run, results.set_ipr.sel(set=name), linestyle=style, linewidth=0.8, marker="")
            handles.append(handle)
    curve(dead, run, results.dead_neurons.sum("set"))
    ratio.set(ylabel="mean IPR", ylim=(0, None))
    dead.set_ylabel("dead neurons")
    count_axis(dead)
    legend(figure, handles)
    return figure
