"""Which observables the neurons follow: the figures of the feature correlations."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lit_grok.figures.common import (
    curve,
    epoch_axis,
    few,
    groups,
    heading,
    key,
    legend,
    measured,
    plateaus,
    rows,
    title,
)

_BINS = 15
_MARKERS = "os^Dv"
_ACROSS = 5  # panels side by side


def correlation_scatter(run: xr.DataTree, branch: str) -> Figure:
    """Pre-activations of the last layer against each observable (Fig. 3).

    Args:
        run: What ``open_run`` gives.
        branch: That of the feature correlations.

    Returns:
        The figure. Each neuron's pre-activations are centred, divided by their standard deviation and given the sign of
        the neuron's r, so that all live neurons that follow the observable lie on one line: the median over neurons and
        replicas in bins of equally many inputs, and between 16 % and 84 % the band, for at most three groups.
    """
    results = measured(run, branch)
    names = [str(name) for name in results.observable.values]
    layer = str(results.layer.values[-1])
    across = min(len(names), _ACROSS)
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.0 * across + 0.5, 2.6 * down + 0.8), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    neurons = results.sizes["sample_neuron"]
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for name, axes in zip(names, panels.flat, strict=False):
        for group in groups(run):
            x, y = [], []
            for r in group.replicas:
                one = results.isel(replica=r)
                sign = np.sign(one.neuron_correlation.sel(layer=layer, observable=name).values[:neurons])
                activations = one.sample_preactivation.transpose("sample", "sample_neuron").values
                live = np.isfinite(sign) & (activations.std(0) > 0)
                standard = (activations - activations.mean(0))[:, live] / activations.std(0)[live]
                x.append(np.repeat(one.sample_observable.sel(observable=name).values[:, None], live.sum(), 1).ravel())
                y.append((standard * sign[live]).ravel())
            centres, quantiles = _binned(np.concatenate(x), np.concatenate(y))
            if centres.size:
                axes.plot(centres, quantiles[1], color=group.colour, linestyle=group.style, marker="o", markersize=3)
                if few(run):
                    axes.fill_between(centres, quantiles[0], quantiles[2], color=group.colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=_spoken(name))
        axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{layer} pre-activation,\nstandardised")
    legend(figure, key(run))
    title(figure, heading(run, "median, 16 % to 84 %" if few(run) else "median"))
    return figure


def correlation_layers(run: xr.DataTree, branch: str) -> Figure:
    """Each layer's summaries for each observable at the end of the training, mean and range over seeds (Figs. 12, 13).

    Args:
        run: What ``open_run`` gives.
        branch: That of the feature correlations.

    Returns:
        The figure: weighted |r|, share of neurons and share of |pre-activation|.
    """
    results = measured(run, branch)
    layers, names = ([str(label) for label in results[dim].values] for dim in ("layer", "observable"))
    quantities = ("correlation", "neuron_share", "activation_share")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(quantities), sharey=True)
    found, handles = groups(run), key(run)
    width = 0.8 / (len(names) * len(found))
    for quantity, axes in zip(quantities, panels, strict=True):
        values = results[quantity]
        values = values.isel(epoch=-1) if "epoch" in values.dims else values
        for i, name in enumerate(names):
            for j, group in enumerate(found):
                at = rows(values.sel(observable=name), group)  # (replicas, layers)
                x = np.arange(len(layers)) + (i * len(found) + j + 0.5) * width - 0.4
                known = np.isfinite(at).any(0)  # not in a layer all of whose neurons are constant
                if not known.any():
                    continue
                x, at = x[known], at[:, known]
                mean, low, high = np.nanmean(at, 0), np.nanmin(at, 0), np.nanmax(at, 0)
                marker = _marker(name, i)
                style = {"color": group.colour, "marker": marker, "markersize": 4, "linestyle": "", "linewidth": 1}
                axes.errorbar(x, mean, [mean - low, high - mean], **style)
                handles.append(Line2D([], [], color="0.3", linestyle="", marker=marker, label=_spoken(name)))
        for edge in np.arange(len(layers) - 1) + 0.5:
            axes.axvline(edge, color="0.85", linewidth=0.8, zorder=0)
        named = values.attrs.get("long_name", quantity)
        axes.set(xticks=range(len(layers)), xticklabels=layers, title=named, ylim=(-0.03, 1.03))
    legend(figure, handles)
    title(figure, heading(run))
    return figure


def correlation_development(run: xr.DataTree, branch: str, quantity: str = "correlation") -> Figure:
    """Each layer's weighted |r| with each observable against the epoch (Fig. 7), or a share (Figs. 28–30).

    Args:
        run: What ``open_run`` gives.
        branch: That of the feature correlations.
        quantity: ``correlation``, or ``neuron_share`` or ``activation_share`` of those that follow the observable most.

    Returns:
        The figure, with a row for each layer and a column for each observable, of many of them a few such blocks; the
        accuracies are in that of the run.
    """
    results = measured(run, branch)
    layers, names = (list(results[dim].values) for dim in ("layer", "observable"))
    across = min(len(names), _ACROSS)
    blocks = [names[i : i + across] for i in range(0, len(names), across)]
    size = 2.7 * across + 0.8, 1.6 * len(layers) * len(blocks) + 0.9
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(layers) * len(blocks), across, sharex=True, sharey=True, squeeze=False)
    spoken, drawn = results[quantity].attrs.get("long_name", quantity).replace("share of ", "share of\n"), []
    for i, (block, layer) in enumerate((block, layer) for block in blocks for layer in layers):
        for name, axes in zip(block, panels[i], strict=False):
            curve(axes, run, results[quantity].sel(layer=layer, observable=name))
            drawn.append(axes)
            if layer == layers[0]:
                axes.set_title(_spoken(str(name)))
            if layer == layers[-1]:
                axes.set_xlabel("epoch")
                axes.tick_params(labelbottom=True)
        panels[i, 0].set_ylabel(f"{layer}:\n{spoken}", fontsize="small")
        panels[i, 0].set_ylim(-0.03, 1.03)
        for axes in panels[i, len(block) :]:
            axes.remove()
    handles = key(run) + plateaus(drawn, run)
    epoch_axis(drawn, results.epoch.values)
    legend(figure, handles)
    figure.align_ylabels(panels[:, 0])
    title(figure, heading(run))
    return figure


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean x and the 16 %, 50 % and 84 % quantiles of y, shape (3, bins), in bins of equally many different x."""
    values = np.unique(x)
    if not values.size:
        return values, np.empty((3, 0))
    parts = [part for part in np.array_split(values, min(_BINS, len(values))) if part.size]
    inside = [(x >= part[0]) & (x <= part[-1]) for part in parts]
    quantiles = np.array([np.quantile(y[chosen], [0.16, 0.5, 0.84]) for chosen in inside])
    return np.array([x[chosen].mean() for chosen in inside]), quantiles.T


def _marker(observable: str, number: int) -> str:
    """That of a class is its number."""
    return (
        f"${observable.removeprefix('class_')}$"
        if observable.startswith("class_")
        else _MARKERS[number % len(_MARKERS)]
    )


def _spoken(observable: str) -> str:
    """``abs_magnetisation`` as |magnetisation|."""
    name = observable.removeprefix("abs_").replace("_", " ")
    return f"|{name}|" if observable.startswith("abs_") else name
