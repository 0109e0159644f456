"""How much can be pruned away: pruning curves and the compressibility."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from lit_grok.figures import TEST
from lit_grok.figures.development import COLOURS, development, legend, line


def pruning_curves(replica: xr.Dataset, paths: Mapping[str, str], title: str = "") -> Figure:
    """Accuracy and loss against the pruned fraction at the end of the training (Fig. 5 a, b).

    Args:
        replica: One replica of a run.
        paths: What was pruned, such as a layer, to how the variables' names begin.
        title: What to write above it.

    Returns:
        The figure. Of a single curve the area is shaded, and the fraction up to which 95 % of the accuracy is kept
        marked, if there is one.
    """
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (name, path), colour in zip(paths.items(), (TEST, *COLOURS), strict=False):
        accuracy, loss = replica[f"{path}_accuracy"], replica[f"{path}_loss"]
        label = f"{name}\n$C$ = {float(replica[f'{path}_final_compressibility']):.2f}"
        top.plot(accuracy.fraction, accuracy, color=colour, label=label)
        bottom.plot(loss.fraction, loss, color=colour, label=name)
        if len(paths) == 1:
            kept = float(replica[f"{path}_final_kept_share"])
            top.fill_between(accuracy.fraction, accuracy, color=colour, alpha=0.15, linewidth=0)
            if np.isfinite(kept):
                top.axvline(1 - kept, color="0.4", linestyle=":", label=f"{100 * kept:.0f} % kept:\n95 % of accuracy")
    top.set(ylabel="test accuracy", ylim=(0, 1.02), xlim=(0, 1))
    bottom.set(ylabel="test loss", xlabel="fraction pruned", yscale="log")
    low, high = bottom.get_ylim()
    # Powers of ten alone would leave a narrow range without a number, and every digit would overlap.
    bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    bottom.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bottom.yaxis.set_minor_formatter(NullFormatter())
    legend(top)
    figure.suptitle(title)
    return figure


def compressibility_development(replica: xr.Dataset, paths: Mapping[str, str], title: str = "") -> Figure:
    """Compressibility and share of weights kept against the epoch, with the accuracy (Figs. 6, 7).

    Args:
        replica: One replica of a run.
        paths: What was pruned, such as a layer, to how the variables' names begin.
        title: What to write above it.

    Returns:
        The figure.
    """
    figure, ((compressibility,), (kept,)) = development(replica, title, rows=2)
    for (name, path), colour in zip(paths.items(), COLOURS, strict=False):
        line(compressibility, replica, f"{path}_compressibility", color=colour, label=name)
        line(kept, replica, f"{path}_kept_share", color=colour, label=name)
    compressibility.set_ylabel("compressibility $C$")
    kept.set(ylabel="weights kept for\n95 % of accuracy", ylim=(-0.02, 1.02))
    legend(compressibility)
    return figure
