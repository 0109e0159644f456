"""How much can be pruned away: pruning curves and the compressibility."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import (
    curve,
    development,
    draw_group,
    groups,
    has,
    heading,
    legend,
    log_axis,
    measured,
    rows,
    styles,
    title,
)


def pruning_curves(run: xr.DataTree, branch: str) -> Figure:
    """Accuracy and loss against the pruned fraction at the end of the training (Fig. 5 a, b).

    Args:
        run: What ``open_run`` gives.
        branch: That of the pruning.

    Returns:
        The figure: a column for the whole network and one for each layer that was pruned by itself. C is the mean over
        seeds; the dotted line is at the mean share that can go while 95 % of the accuracy stay.
    """
    results = measured(run, branch)
    columns: list[tuple[str, str, xr.Dataset]] = []
    if has(run, branch, "accuracy", "fraction"):
        columns.append((results.attrs.get("scheme", ""), "", results))
    if has(run, branch, "layer_accuracy", "fraction"):
        columns += [(str(layer), "layer_", results.sel(layer=layer)) for layer in results.layer.values]
    figure = Figure(figsize=(max(3.0 * len(columns), 5.5) + 0.6, 4.8), layout="constrained")
    title(figure, heading(run))
    if not columns:  # all replicas have diverged
        return figure
    grid = figure.subplots(2, len(columns), sharex=True, sharey="row", height_ratios=(3, 2), squeeze=False)
    handles: list[Line2D] = []
    dotted: list[Line2D] = []
    for (pruned, of, values), (top, bottom) in zip(columns, grid.T, strict=True):
        for group in groups(run):
            fractions = values.fraction.values
            draw_group(top, fractions, rows(values[f"{of}accuracy"], group), group, marker="")
            draw_group(bottom, fractions, rows(values[f"{of}loss"], group), group, marker="")
            kept = rows(values[f"{of}final_kept_share"], group)
            if np.isfinite(kept).any():
                top.axvline(1 - np.nanmean(kept), color=group.colour, linestyle=":", linewidth=1)
                dotted = [Line2D([], [], color="0.3", linestyle=":", label="95 % of the accuracy kept")]
            if len(columns) == 1:
                found = rows(values[f"{of}final_compressibility"], group)
                mean = np.nanmean(found) if np.isfinite(found).any() else np.nan
                label = f"{group.label}: $C$ = {mean:.3g}".removeprefix(": ")
                handles.append(Line2D([], [], color=group.colour, linestyle=group.style, label=label))
            elif group.label:
                handles.append(Line2D([], [], color=group.colour, linestyle=group.style, label=group.label))
        top.set(title=pruned, ylim=(-0.03, 1.03), xlim=(0, 1))
        bottom.set(xlabel="fraction pruned")
    log_axis(grid[1, 0])
    grid[0, 0].set_ylabel("test accuracy")
    grid[1, 0].set_ylabel("cross-entropy")
    figure.align_ylabels(grid[:, 0])
    legend(figure, handles + dotted)
    return figure


def compressibility_development(run: xr.DataTree, branch: str) -> Figure:
    """Compressibility and share of weights kept against the epoch, with the accuracy (Figs. 6, 7).

    Args:
        run: What ``open_run`` gives.
        branch: That of the pruning.

    Returns:
        The figure; the layers that were pruned by themselves are told apart by the style of the line.
    """
    figure, (top, bottom), handles = development(run, branch, panels=2)
    results = measured(run, branch)
    for axes, name in ((top, "compressibility"), (bottom, "kept_share")):
        if has(run, branch, name, "epoch"):
            curve(axes, run, results[name])
        if has(run, branch, f"layer_{name}", "epoch"):
            for layer, style, handle in styles(run, [str(layer) for layer in results.layer.values], after=2):
                curve(axes, run, results[f"layer_{name}"].sel(layer=layer), marker="", **style)
                handles.append(handle)
    top.set_ylabel("compressibility $C$")
    bottom.set(ylabel="weights kept for\n95 % of accuracy", ylim=(-0.03, 1.03))
    legend(figure, handles)
    return figure
