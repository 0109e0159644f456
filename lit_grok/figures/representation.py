"""The steps of a representation against the epoch."""

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import curve, development, legend, measured


def uniformity_development(run: xr.DataTree, branch: str) -> Figure:
    """Step of the representation from one symbol to the next, and the same over its norm, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the uniformity.
    """
    figure, (step, relative), handles = development(run, branch, panels=2)
    results = measured(run, branch)
    curve(step, run, results.step)
    curve(relative, run, results.relative_step)
    step.set(ylabel="step", ylim=(0, None))
    relative.set(ylabel="step / norm", ylim=(0, None))
    legend(figure, handles)
    return figure
