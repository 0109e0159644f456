"""The Langevin chains behind a local learning coefficient: whether they have settled, at a glance."""

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure

from lit_grok.figures.common import heading, measured, title

_SHOWN = 6


def chain_traces(run: xr.DataTree, branch: str) -> Figure:
    """Excess loss along every chain, and what the estimate would be if the chains ended there.

    Args:
        run: What ``open_run`` gives.
        branch: That of the local learning coefficient.

    Returns:
        The figure, a column for each replica, the first six. Above, each chain with the burn-in in grey; below, the
        mean of each since then, and of all in black.
    """
    trace = measured(run, branch).trace
    shown = min(trace.sizes["replica"], _SHOWN)
    figure = Figure(figsize=(2.6 * shown + 2.5, 4.6), layout="constrained")
    grid = figure.subplots(2, shown, sharex=True, squeeze=False)
    for r, (top, bottom) in enumerate(grid.T):
        one = trace.isel(replica=r)
        steps = one.chain_step.values
        kept = steps >= 0
        values = one.transpose("chain", "chain_step").values
        means = values[:, kept].cumsum(1) / np.arange(1, kept.sum() + 1)
        for i, (chain, mean) in enumerate(zip(values, means, strict=True)):
            colour = colormaps["plasma"](0.05 + 0.75 * i / max(len(values) - 1, 1))
            top.plot(steps, chain, color=colour, linewidth=0.5)
            bottom.plot(steps[kept], mean, color=colour, linewidth=1)
        bottom.plot(steps[kept], means.mean(0), color="black", label=rf"$\hat\lambda$ = {means[:, -1].mean():.3g}")
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, [0.001, 0.999]) if finite.size else (0.0, 0.0)
        if low < high:  # a chain that runs away would flatten all others
            top.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        for axes in (top, bottom):
            if not kept.all():
                axes.axvspan(steps[0], 0, color="0.92", zorder=-1)
            axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        scale, seed = (np.atleast_1d(run.coords[name].values)[r] for name in ("init_scale", "seed"))
        top.set_title(f"init_scale {scale:g}, seed {seed}")
        bottom.set(xlabel="step (grey: burn-in)", xlim=(steps[0], steps[-1]))
        bottom.legend(loc="lower right", fontsize="small")
    grid[0, 0].set_ylabel(r"$n\beta\,(L - L(w^*))$")
    grid[1, 0].set_ylabel("mean since step 0")
    more = f", {shown} of {trace.sizes['replica']} replicas" if shown < trace.sizes["replica"] else ""
    title(figure, heading(run, "") + more)
    return figure
