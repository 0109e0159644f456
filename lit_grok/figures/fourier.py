"""Fourier content of the neurons' weights: the figures of the inverse participation ratio."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import (
    beside,
    blocks,
    count_axis,
    curve,
    development,
    few,
    groups,
    heading,
    key,
    legend,
    measured,
    rows,
    styles,
    title,
)

_MAP = "Greys"
_LABELS = 10  # so many rows of a map can be named


def ipr_distribution(run: xr.DataTree, branch: str) -> Figure:
    """IPR of all live neurons of each set of weights, and how the neurons are spread over frequencies (Fig. 4).

    Args:
        run: What ``open_run`` gives.
        branch: That of the IPR.

    Returns:
        The figure: shares of the live neurons. The IPR of all seeds is taken together, as a line for each of at most
        three groups and as a row of a map for each of more. The last panel is that of the first set, from frequency 1
        on, with a row for each replica, since every one has frequencies of its own; bars for a single replica.
    """
    results = measured(run, branch)
    sets = [str(name) for name in results["set"].values]
    figure = Figure(figsize=(2.3 * len(sets) + 3.8, 3.4), layout="constrained")
    *panels, last = figure.subplots(1, len(sets) + 1, width_ratios=[2] * len(sets) + [3.4])
    ratios = results.neuron_ipr
    highest = max(0.6, float(np.nanmax(ratios.values)) if np.isfinite(ratios.values).any() else 0.0)
    bins = np.linspace(0, highest, 31)
    for name, axes in zip(sets, panels, strict=True):
        values = [rows(ratios.sel(set=name), group) for group in groups(run)]
        live = [each[np.isfinite(each)] for each in values]
        shares = np.array([np.histogram(each, bins)[0] / max(each.size, 1) for each in live])
        if few(run):
            for group, share, each in zip(groups(run), shares, live, strict=True):
                axes.stairs(share, bins, color=group.colour, linestyle=group.style, linewidth=1.3)
                if each.size:
                    axes.axvline(each.mean(), color=group.colour, linestyle=":", linewidth=1)
            axes.set_ylim(0, None)
        else:
            labels = [" / ".join(part.split()[-1] for part in group.label.split(", ")) for group in groups(run)]
            labels = labels if axes is panels[0] else [""] * len(labels)
            every = -(-len(labels) // _LABELS)
            axes.pcolormesh(bins, np.arange(len(live) + 1), shares, cmap=_MAP, vmin=0)
            axes.set(yticks=np.arange(len(live))[::every] + 0.5, yticklabels=labels[::every])
            axes.tick_params(axis="y", length=0)
        axes.set(title=f"weights {name}", xlabel="IPR", xlim=(0, highest))
    if few(run):
        panels[0].set_ylabel("share of live neurons")
        dotted = Line2D([], [], color="0.3", linestyle=":", label="mean")
        legend(figure, [*key(run), dotted] if np.isfinite(ratios.values).any() else key(run))
    else:
        panels[0].set_ylabel(" / ".join(part.rpartition(" ")[0] for part in groups(run)[0].label.split(", ")))
    _frequencies(last, run, results.neuron_frequency.isel(set=0))
    last.set(title=f"weights {sets[0]}", xlabel="dominant frequency")
    title(figure, heading(run, "together"))
    return figure


def _frequencies(axes: Axes, run: xr.DataTree, frequency: xr.DataArray) -> None:
    """Share of the live neurons at every frequency but 0, for each replica."""
    found = frequency.transpose("replica", ...).values
    top = int(np.nanmax(found)) if (found > 0).any() else 1
    counts = np.stack([np.bincount(one[one > 0].astype(int), minlength=top + 1)[1:] for one in found])
    shares = counts / np.maximum((found >= 0).sum(1, keepdims=True), 1)
    if len(shares) == 1:
        axes.bar(np.arange(1, top + 1), shares[0], color=groups(run)[0].colour)
        axes.set_ylabel("share of live neurons")
        return
    order, edges, centres, names = blocks(run, _LABELS)
    image = axes.pcolormesh(np.arange(top + 1) + 0.5, np.arange(len(order) + 1), shares[order], cmap=_MAP, vmin=0)
    for edge in edges:
        axes.axhline(edge + 0.5, color="0.5", linewidth=0.5)
    axes.set(yticks=centres + 0.5, yticklabels=names, ylabel="init_scale")
    axes.tick_params(axis="y", length=0)
    axes.figure.colorbar(image, ax=axes, label="share of live neurons")


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
        (*_, mean), *each = styles(run, ["mean", *(f"weights {name}" for name in results["set"].values)])
        for i, (_, style, _) in enumerate(each):
            curve(ratio, run, results.set_ipr.isel(set=i), **{"linewidth": 0.8, "marker": ""} | style)
        beside(ratio, [mean, *(handle for *_, handle in each)])
    curve(dead, run, results.dead_neurons.sum("set", skipna=False))
    ratio.set(ylabel="mean IPR", ylim=(0, None))
    dead.set_ylabel("dead neurons")
    count_axis(dead)
    legend(figure, handles)
    return figure
