"""Which observables the neurons follow: the figures of the feature correlations."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.development import COLOURS, development, last, legend, line

#: Summaries of a layer: how the variable's name goes on after the observable, and what it is.
SUMMARIES = {
    "": "weighted |r|",
    "_neurons": "share of neurons",
    "_activation": "share of |pre-activation|",
}


def correlation_scatter(replica: xr.Dataset, layer: str, title: str = "") -> Figure:
    """Pre-activation of every neuron of a layer against each observable, a point per neuron and input (Fig. 3).

    Args:
        replica: One replica of a run.
        layer: The layer of which a sample of pre-activations was kept.
        title: What to write above it.

    Returns:
        The figure. Each neuron's pre-activations are centred and divided by their standard deviation; constant
        neurons are not shown.
    """
    activations = replica[f"correlation_{layer}_sample"].values
    r = replica[f"correlation_{layer}_r"]
    live = np.isfinite(r.values).any(0) & (activations.std(0) > 0)
    standard = (activations - activations.mean(0))[:, live] / activations.std(0)[live]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    panels = figure.subplots(1, r.sizes["observable"], sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, r.observable.values, strict=True):
        values = replica.correlation_observables.sel(observable=name).values
        signs = r.sel(observable=name).values[live]
        # One scatter per sign, drawn as pixels: some ten thousand points.
        for sign, colour, label in ((1, COLOURS[1], "r > 0"), (-1, COLOURS[2], "r < 0")):
            chosen = standard[:, np.sign(signs) == sign]
            x = np.repeat(values, chosen.shape[1])
            style = {"s": 2, "color": colour, "linewidths": 0, "rasterized": True}
            axes.scatter(x, chosen.ravel(), alpha=0.25, label=f"{label} ({chosen.shape[1]} neurons)", **style)
        axes.set(xlabel=_spoken(name), title=f"median |r| = {np.nanmedian(np.abs(signs)):.2f}" if live.any() else "")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), markerscale=4, fontsize="small")
    panels[0].set_ylabel(f"{layer} pre-activation, standardised")
    figure.suptitle(title)
    return figure


def correlation_bars(replica: xr.Dataset, layers: Sequence[str], title: str = "") -> Figure:
    """Each layer's three summaries for each observable at the end of the training (Figs. 12, 13).

    Args:
        replica: One replica of a run.
        layers: The layers, first to last.
        title: What to write above it.

    Returns:
        The figure.
    """
    observables = _observables(replica)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(SUMMARIES), sharey=True)
    width = 0.8 / len(observables)
    for axes, (suffix, summary) in zip(panels, SUMMARIES.items(), strict=True):
        for i, (name, colour) in enumerate(zip(observables, COLOURS, strict=False)):
            heights = [last(replica, f"correlation_{layer}_{name}{suffix}") for layer in layers]
            x = np.arange(len(layers)) + (i - (len(observables) - 1) / 2) * width
            axes.bar(x, heights, width, color=colour, label=_spoken(name))
        axes.set(xticks=range(len(layers)), xticklabels=layers, title=summary, ylim=(0, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(observables))
    figure.suptitle(title)
    return figure


def correlation_development(replica: xr.Dataset, layers: Sequence[str], title: str = "") -> Figure:
    """Each layer's three summaries against the epoch, with the accuracy (Figs. 7, 28–30).

    Args:
        replica: One replica of a run.
        layers: The layers, first to last.
        title: What to write above it.

    Returns:
        The figure, with a row for each layer.
    """
    figure, rows = development(replica, title, rows=len(layers), columns=len(SUMMARIES))
    for layer, row in zip(layers, rows, strict=True):
        for axes, suffix in zip(row, SUMMARIES, strict=True):
            for name, colour in zip(_observables(replica), COLOURS, strict=False):
                line(axes, replica, f"correlation_{layer}_{name}{suffix}", color=colour, label=_spoken(name))
            axes.set_ylim(-0.02, 1.02)
        row[0].set_ylabel(layer)
        legend(row[-1])
    for axes, summary in zip(figure.axes, SUMMARIES.values(), strict=False):
        axes.set_title(summary, fontsize="medium")
    return figure


def _observables(replica: xr.Dataset) -> list[str]:
    return [str(name) for name in replica.correlation_observables.observable.values]


def _spoken(observable: str) -> str:
    """``abs_magnetisation`` as |magnetisation|."""
    name = observable.removeprefix("abs_").replace("_", " ")
    return f"|{name}|" if observable.startswith("abs_") else name


correlation_layers = correlation_bars
