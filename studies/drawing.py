"""What studies draw beside the figures of a run: quantities against the scale of the initial weights, or each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from lit_grok.figures.common import STYLES, Apart, groups, heading, legend, log_axis, title
from studies.readings import end

_WIDTH = 2.9  # inches of a panel
_DECADE = 8  # a range so wide is drawn on a logarithmic axis


def against_scale(
    trees: Mapping[str, xr.DataTree],
    quantities: Mapping[str, str],
    log: Sequence[str] = (),
    columns: int = 3,
    **labels: str,
) -> Figure:
    """Quantities at the end of the training against init_scale: a mark for each seed, a line through their means.

    Args:
        trees: The results of each sweep; their names are the legend, unless there is only one.
        quantities: ``BRANCH/VARIABLE`` and what the axis is called.
        log: Those with a logarithmic axis, where they vary so much.
        columns: Panels side by side.
        labels: Of further dimensions.
    """
    rows = -(-len(quantities) // columns)
    across = min(columns, len(quantities))
    figure = Figure(figsize=(max(_WIDTH * across, 4.5), 2.4 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    handles = []
    for axes, (path, name) in zip(panels, quantities.items(), strict=False):
        for i, (label, tree) in enumerate(trees.items()):
            array = _end(tree, path, labels)
            scales, values = array.init_scale.values, array.transpose("init_scale", "seed").values
            colour = f"C{i}" if len(trees) > 1 else "0.2"
            for seed in range(values.shape[1]):
                axes.plot(scales, values[:, seed], "o", color=colour, markersize=3.5, alpha=0.55, markeredgewidth=0)
            known = np.isfinite(values).any(1)
            means = np.nanmean(values[known], 1)
            axes.plot(scales[known], means, color=colour, linewidth=1.2, linestyle=STYLES[i % len(STYLES)])
            handles.append(Line2D([], [], color=colour, linestyle=STYLES[i % len(STYLES)], label=label))
        low, high = axes.dataLim.intervaly
        if path in log and high > _DECADE * low > 0:
            log_axis(axes)
        axes.set(xlabel="init_scale", ylabel=name)
        scale_axis(axes, np.unique(np.concatenate([tree.coords["init_scale"].values for tree in trees.values()])))
    for axes in panels[len(quantities) :]:
        axes.remove()
    if len(trees) > 1:
        legend(figure, handles)
    title(figure, _title(trees))
    return figure


def scatter(tree: xr.DataTree, pairs: Sequence[tuple[str, str, str, str]], columns: int = 3, **labels: str) -> Figure:
    """Quantities at the end of the training against each other, a mark for each replica, coloured by init_scale.

    Args:
        tree: The results of one sweep.
        pairs: ``BRANCH/VARIABLE`` of x and of y, and what their axes are called.
        columns: Panels side by side.
        labels: Of further dimensions.
    """
    rows, across = -(-len(pairs) // columns), min(columns, len(pairs))
    figure = Figure(figsize=(max(_WIDTH * across, 4.5), 2.5 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    for axes, (x, y, x_name, y_name) in zip(panels, pairs, strict=False):
        scatter_panel(axes, tree, x, y, **labels)
        axes.set(xlabel=x_name, ylabel=y_name)
    for axes in panels[len(pairs) :]:
        axes.remove()
    legend(figure, scale_marks(tree))
    title(figure, heading(tree, "each a mark"))
    return figure


def scatter_panel(axes: Axes, tree: xr.DataTree, x: str, y: str, **labels: str) -> None:
    """One quantity against another, on axes of one's own."""
    both = [_end(tree, path, labels) for path in (x, y)]
    for group in groups(tree):
        scale = np.atleast_1d(tree.coords["init_scale"].values)[group.replicas[0]]
        xs, ys = (array.sel(init_scale=scale).values for array in both)
        axes.plot(xs, ys, "o", color=group.colour, markersize=4, markeredgewidth=0, alpha=0.8)


def scale_marks(tree: xr.DataTree) -> list[Line2D]:
    """What the legend says of the colours of marks."""
    return [Line2D([], [], color=g.colour, marker="o", linestyle="", label=g.label) for g in groups(tree) if g.label]


def scale_axis(axes: Axes, scales: np.ndarray) -> None:
    """A logarithmic axis of init_scale, or the like, with what was trained as its ticks, as far as there is room."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(Apart(scales))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _end(tree: xr.DataTree, path: str, labels: Mapping[str, str]) -> xr.DataArray:
    """A variable at the end, at those labels whose dimensions it has."""
    branch, _, name = path.rpartition("/")
    dims = tree[branch].to_dataset()[name].dims
    return end(tree, path, **{dim: label for dim, label in labels.items() if dim in dims})


def _title(trees: Mapping[str, xr.DataTree]) -> str:
    """What all of them are; of several sweeps, which differ in more than the legend can say, the task alone."""
    if len(trees) == 1:
        return heading(next(iter(trees.values())), "each a mark")
    titles = {str(tree.attrs.get("title", tree.attrs.get("task", ""))) for tree in trees.values()}
    return ", ".join([*(titles if len(titles) == 1 else ()), "each seed a mark"])
