"""The Langevin chains behind a local learning coefficient: whether they have settled, at a glance."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.development import COLOURS


def chain_traces(trace: xr.DataArray, title: str = "") -> Figure:
    """Excess loss along every chain, and what the estimate would be if the chains ended there.

    Args:
        trace: nβ (L − L(w*)), dimensions ``chain`` and ``chain_step``, which counts from the end of the burn-in.
        title: What to write above it.

    Returns:
        The figure. Above, each chain with the burn-in in grey; below, the mean of each since then, and of all in black.
    """
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    steps = trace.chain_step.values
    kept = steps >= 0
    values = trace.transpose("chain", "chain_step").values
    means = values[:, kept].cumsum(1) / np.arange(1, kept.sum() + 1)
    for i, (chain, mean) in enumerate(zip(values, means, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        top.plot(steps, chain, color=colour, linewidth=0.5)
        bottom.plot(steps[kept], mean, color=colour, linewidth=1)
    bottom.plot(steps[kept], means.mean(0), color="black", label=rf"$\hat\lambda$ = {means[:, -1].mean():.3g}")
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.001, 0.999]) if finite.size else (0.0, 0.0)
    if low < high:  # a chain that runs away would flatten all others
        top.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    for axes in (top, bottom):
        if not kept.all():
            axes.axvspan(steps[0], 0, color="0.92", zorder=-1, label="burn-in")
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    top.set_ylabel(r"$n\beta\,(L - L(w^*))$")
    bottom.set(xlabel="step", ylabel="mean since step 0", xlim=(steps[0], steps[-1]))
    bottom.legend()
    figure.suptitle(title)
    return figure
