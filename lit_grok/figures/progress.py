"""Progress measures side by side."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import beside, curve, development, legend, log_axis, measured, styles


def progress_development(run: xr.DataTree, branch: str) -> Figure:
    """Every progress measure against the epoch, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the progress measures.
    """
    results = measured(run, branch)
    names = [
        ("restricted_loss", "restricted loss\n(test)"),
        ("excluded_loss", "excluded loss\n(train)"),
        ("fourier_gini", "Gini of Fourier\ncomponents"),
        ("key_frequencies", "key\nfrequencies"),
        ("local_complexity", "local\ncomplexity"),
        ("sum_of_squares", "sum of\nsquared weights"),
    ]
    shown = [(name, label) for name, label in names if name in results and np.isfinite(results[name]).any()]
    figure, panels, handles = development(run, branch, panels=len(shown), height=1.2)
    for axes, (name, label) in zip(panels, shown, strict=True):
        if name == "fourier_gini":
            sets = []
            for kind, style, handle in styles(run, [str(each) for each in results["set"].values]):
                curve(axes, run, results[name].sel(set=kind), **style)
                sets.append(handle)
            beside(axes, sets)
            axes.set_ylim(0, 1)
        else:
            curve(axes, run, results[name])
        axes.set_ylabel(label, fontsize="small")
        if name.endswith("_loss"):
            log_axis(axes)
        elif name != "fourier_gini":
            axes.set_ylim(0, None)
    legend(figure, handles)
    return figure
