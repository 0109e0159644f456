"""Embeddings of residues: how uniform they become, and the circle on which they end."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import curve, development, groups, heading, legend, measured, rows, shown, styles, title


def uniformity_development(run: xr.DataTree, branch: str) -> Figure:
    """Mean embedding difference, alone and over the mean norm, and that norm, against the epoch, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the uniformity.
    """
    figure, panels, handles = development(run, branch, panels=3)
    results = measured(run, branch)
    operands = [str(name) for name in results.operand.values]
    for operand, style, handle in styles(run, operands, after=2 if len(operands) > 1 else 0):
        found = results.sel(operand=operand)
        for axes, name in zip(panels, ("med", "relative_med", "mean_norm"), strict=True):
            curve(axes, run, found[name], **style)
        curve(panels[1], run, found.smallest_relative_med, **style | {"alpha": 0.5, "linewidth": 2.5, "marker": ""})
        handles += [handle] if len(operands) > 1 else []
    panels[0].set(ylabel="mean embedding\ndifference (MED)", ylim=(0, None))
    panels[1].axhline(2**0.5, color="0.6", linewidth=0.8, linestyle=":")
    panels[1].set(ylabel="MED / mean norm\n(wide: best step)", ylim=(0, None))
    panels[2].set(ylabel="mean norm of\nan embedding", ylim=(0, None))
    legend(figure, handles)
    return figure


def embedding_picture(run: xr.DataTree, branch: str) -> Figure:
    """Embeddings of single replicas in the plane of their largest Fourier component, and all differences.

    Args:
        run: What ``open_run`` gives.
        branch: That of the uniformity.

    Returns:
        The figure: a panel for each of at most four replicas, the first of every group and then its others, of the
        first operand, coloured by k i mod P for the frequency k; then the mean difference along every step over the
        mean norm, a line for each group.
    """
    results = measured(run, branch).isel(operand=0)
    chosen = shown(run, np.isfinite(results.plane.values).all((1, 2)))
    figure = Figure(figsize=(2.6 * len(chosen) + 3.6, 3.2), layout="constrained")
    *panels, last = figure.subplots(1, len(chosen) + 1, width_ratios=[1] * len(chosen) + [1.4])
    for r, axes in zip(chosen, panels, strict=True):
        points, frequency = results.plane[r].values, int(results.plane_frequency[r])
        P = len(points)
        axes.scatter(*points.T, c=np.arange(P) * frequency % P, cmap="twilight", s=12, linewidths=0)
        scale, seed = (run.coords[name].values[r] for name in ("init_scale", "seed"))
        axes.set_title(f"init_scale {scale:g}, seed {seed}\nfrequency {frequency}", fontsize="small")
        axes.set(aspect="equal", xlabel="cosine direction", ylabel="sine direction")
        reach = 1.1 * np.abs(points).max()
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    norms = results.mean_norm.isel(epoch=-1)
    for group in groups(run):
        values = rows(results.difference / norms, group)
        last.plot(results.step, np.nanmean(values, 0), color=group.colour, linestyle=group.style, linewidth=1)
    last.axhline(2**0.5, color="0.6", linewidth=0.8, linestyle=":")
    last.set(xlabel="step s", ylabel="mean |φ(i + s) − φ(i)| / mean |φ(i)|", ylim=(0, None))
    last.yaxis.label.set_fontsize("small")
    title(figure, heading(run, ""))
    return figure
