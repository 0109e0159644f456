"""Fourier features that share neurons: how many, how far they overlap, and how that comes about."""

import numpy as np
import xarray as xr
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import (
    curve,
    development,
    draw_group,
    groups,
    heading,
    key,
    legend,
    measured,
    rows,
    shown,
    title,
)


def feature_maps(run: xr.DataTree, branch: str) -> Figure:
    """Overlap of the planes of every two frequencies in single replicas, and how many neurons carry each.

    Args:
        run: What ``open_run`` gives.
        branch: That of the superposition.

    Returns:
        The figure: of the first set of weights, a map for each of at most four replicas, the first of every group and
        then its others; then the neurons of each frequency, a line for each group. Frequencies are in the order of
        their neurons, of every replica its own.
    """
    results = measured(run, branch).isel(set=0)
    overlaps, counts = results.overlap.values, results.frequency_neurons.values
    order = np.argsort(-counts, axis=1, kind="stable")
    chosen = shown(run, np.isfinite(overlaps).any((1, 2)))
    figure = Figure(figsize=(2.5 * len(chosen) + 3.8, 3.3), layout="constrained")
    *panels, last = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [1.3])
    ranks = np.arange(1, counts.shape[1] + 1)
    for r, axes in zip(chosen, panels, strict=True):
        edges = np.arange(len(ranks) + 1) + 0.5
        image = axes.pcolormesh(
            edges, edges, overlaps[r][np.ix_(order[r], order[r])], cmap="magma_r", norm=PowerNorm(0.5, 0, 1)
        )
        axes.set(aspect="equal", xlabel="frequency, by its neurons")
        axes.invert_yaxis()
        scale, decay, seed = (run.coords[name].values[r] for name in ("init_scale", "weight_decay", "seed"))
        axes.set_title(f"init_scale {scale:g}, decay {decay:g}\nseed {seed}", fontsize="small")
    if chosen:
        panels[0].set_ylabel("frequency, by its neurons")
        figure.colorbar(image, ax=panels[-1], label="overlap", shrink=0.8)
    ranked = xr.DataArray(np.take_along_axis(counts, order, 1), dims=("replica", "rank"))
    for group in groups(run):
        draw_group(last, ranks, rows(ranked, group), group)
    last.set(xlabel="frequency, by its neurons", ylabel="neurons that carry it", ylim=(0, None))
    legend(figure, key(run))
    title(figure, heading(run))
    return figure


def superposition_development(run: xr.DataTree, branch: str) -> Figure:
    """Frequencies per neuron, interference and effective dimension against the epoch, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the superposition.

    Returns:
        The figure: of the first set of weights; thin and without marks what random weights of the same norms have.
    """
    figure, panels, handles = development(run, branch, panels=3)
    results = measured(run, branch).isel(set=0)
    names = (
        ("features_per_neuron", None),
        ("interference", "null_interference"),
        ("effective_dimension", "null_dimension"),
    )
    for axes, (name, null) in zip(panels, names, strict=True):
        curve(axes, run, results[name])
        if null:
            curve(axes, run, results[null], linewidth=0.8, alpha=0.5, marker="")
        axes.set_ylim(0, None)
    handles.append(Line2D([], [], color="0.3", linewidth=0.8, alpha=0.5, label="random weights"))
    panels[0].set_ylabel("frequencies\nper neuron")
    panels[1].set_ylabel("interference")
    panels[2].set_ylabel("effective\ndimension")
    legend(figure, handles)
    return figure
