"""Size and inequality of the weights against the epoch."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import count_axis, curve, development, groups, legend, log_axis, measured, styles


def weights_development(run: xr.DataTree, branch: str) -> Figure:
    """Norm, Gini coefficient, share of negligible weights and number of dead neurons, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the weight statistics.

    Returns:
        The figure: of all weights, and for a single init_scale of each layer as well.
    """
    figure, (norm, gini, negligible, dead), handles = development(run, branch, panels=4, height=1.4)
    results = measured(run, branch)
    curve(norm, run, measured(run, "evaluation").weight_norm, marker="")
    curve(gini, run, results.gini)
    curve(negligible, run, results.negligible_share)
    curve(dead, run, results.dead_neurons)
    if len(groups(run)) == 1:
        handles.append(Line2D([], [], color=groups(run)[0].colour, label="all layers"))
        for layer, style, handle in styles(run, [str(name) for name in results.layer.values], after=2):
            for axes, name in ((norm, "layer_norm"), (gini, "layer_gini"), (negligible, "layer_negligible_share")):
                curve(axes, run, results[name].sel(layer=layer), **{"linewidth": 0.8, "marker": ""} | style)
            handles.append(handle)
    norms = measured(run, "evaluation").weight_norm.values
    norm.set_ylabel("norm")
    if (norms[np.isfinite(norms)] > 0).any():
        log_axis(norm)
    gini.set(ylabel="Gini of |w|", ylim=(0, 1.03))
    negligible.set(ylabel="negligible\nshare", ylim=(-0.03, 1.03))
    dead.set_ylabel("dead neurons")
    count_axis(dead)
    legend(figure, handles)
    return figure
