"""The phase diagram over initial scales and, say, weight decays: where a network groks, learns, or does neither."""

from collections import Counter
from copy import copy

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from lit_grok.figures.common import has, heading, legend, log_ticks, measured, title
from lit_grok.measures.grokking import most_frequent

#: From what learns to what does not; colours that are told apart without red and green.
COLOURS = {
    "grokked": "#4a3a94",
    "steady": "#e8a33d",
    "memorised": "#9fb8d9",
    "undertrained": "#c9c9c9",
    "collapsed": "#5f5f5f",
    "diverged": "#b04a5a",
}
_LIGHT = ("steady", "memorised", "undertrained")
#: What is mapped beside the status where it was measured; how, None: by decades where it spans any; and whether it says
#: something of networks that have learned nothing.
_QUANTITIES = {
    "evaluation/test_accuracy": ("test accuracy", Normalize(0, 1), True),
    "pruning/final_compressibility": ("compressibility $C$", None, False),
    "ipr/mean_ipr": ("mean IPR", Normalize(0), False),
}
_DECADE = 5  # a range so wide is mapped by its logarithm
_WIDTH, _HEIGHT = 0.42, 0.32  # inches of a cell
_COLUMNS = 3  # more panels are in two rows, so that they fit a page


def has_phases(run: xr.DataTree, key: str = "weight_decay") -> bool:
    """Whether the run has at least three init_scales and two weight decays, or values of another key, each with each.

    Args:
        run: What ``open_run`` or ``open_runs`` gives.
        key: Of the vertical axis: positive numbers by which its replicas are told apart.
    """
    scales, values = _axes(run, key)
    full = all(cell.size for row in _cells(run, key) for cell in row)
    return len(scales) >= 3 and len(values) >= 2 and full


def phase_diagram(run: xr.DataTree, key: str = "weight_decay") -> Figure:
    """Status, t_test / t_train and what was measured at the end, for each init_scale and weight decay.

    Args:
        run: What ``open_run`` or ``open_runs`` gives. Where the cells are not a whole grid (`has_phases`), those that
            are missing look like the nearest one, and those that are there have a dot.
        key: Of the vertical axis, as in `has_phases`.

    Returns:
        The figure. A cell has the status of most of its seeds, hatched where as many have another, with their number
        where they are not unanimous; the median test accuracy of all; and the medians of those that learned, white
        where none did. Lines in every map are the boundaries between statuses.
    """
    scales, rows = _axes(run, key)
    measured_cells = _cells(run, key)
    cells = _filled(measured_cells, scales, rows)
    root = measured(run, "/")
    delay = (root.t_test / root.t_train.clip(min=1)).values
    quantities: dict[str, tuple[np.ndarray, Normalize | None]] = {"$t_{\\rm test}$ / $t_{\\rm train}$": (delay, None)}
    learned = np.isin(root.status.values, ("grokked", "steady"))
    for path, (name, norm, of_all) in _QUANTITIES.items():
        branch, _, variable = path.partition("/")
        if has(run, branch, variable):
            values = _last(measured(run, branch)[variable])
            quantities[name] = np.where(learned | of_all, values, np.nan), norm
    down = 1 if len(quantities) < _COLUMNS else 2
    across = -(-(1 + len(quantities)) // down)
    figure = Figure(
        figsize=((_WIDTH * len(scales) + 1.1) * across + 0.6, (_HEIGHT * len(rows) + 0.9) * down + 0.8),
        layout="constrained",
    )
    places = figure.subplots(down, across, squeeze=False)
    panels = places.ravel()[: 1 + len(quantities)]
    for axes in places.ravel()[len(panels) :]:
        axes.remove()
    held = [[root.status.values[cell].tolist() for cell in row] for row in cells]
    names = [[most_frequent(statuses)[0] for statuses in row] for row in held]
    _statuses(panels[0], held, names)
    for axes, (name, (values, norm)) in zip(panels[1:], quantities.items(), strict=True):
        table = np.array([[_median(values[cell]) for cell in row] for row in cells])
        known = table[np.isfinite(table)]
        decades = known.size and known.min() > 0 and known.max() > _DECADE * known.min()
        norm = copy(norm) or (LogNorm() if decades else Normalize())
        image = axes.imshow(table, origin="lower", aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
        axes.set_title(name)
        if known.size:
            bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
            if isinstance(norm, LogNorm):
                log_ticks(bar.ax.yaxis)
    for axes in panels:
        _boundaries(axes, names)
        axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales], rotation=90, fontsize="small")
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows], fontsize="small")
        axes.set_xlabel("init_scale")
        if cells is not measured_cells:
            dots = [(x, y) for y, row in enumerate(measured_cells) for x, cell in enumerate(row) if cell.size]
            axes.plot(*np.transpose(dots), ".", color="w", markersize=3, markeredgecolor="k", markeredgewidth=0.4)
    for axes in places[:, 0]:
        axes.set_ylabel(key.replace("_", " "))
    there = {name for row in names for name in row}
    legend(figure, [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in there])
    title(figure, heading(run, "most frequent status, medians of what learned, test accuracy of all"))
    return figure


def _axes(run: xr.DataTree, key: str) -> tuple[np.ndarray, np.ndarray]:
    scales, rows = (np.unique(np.atleast_1d(run.coords[name].values)) for name in ("init_scale", key))
    return scales, rows


def _cells(run: xr.DataTree, key: str) -> list[list[np.ndarray]]:
    """The replicas of each cell, by the key and init_scale."""
    scales, values = (np.atleast_1d(run.coords[name].values) for name in ("init_scale", key))
    return [[np.flatnonzero((scales == s) & (values == v)) for s in np.unique(scales)] for v in np.unique(values)]


def _filled(cells: list[list[np.ndarray]], scales: np.ndarray, rows: np.ndarray) -> list[list[np.ndarray]]:
    """The cells with those that are empty as the nearest one that is not, by the logarithms of both axes."""
    if all(cell.size for row in cells for cell in row):
        return cells
    x, y = (np.log(np.where(v > 0, v, v[v > 0].min(initial=np.inf) / 10)) for v in (scales, rows))
    there = [(j, i) for j, row in enumerate(cells) for i, cell in enumerate(row) if cell.size]

    def nearest(j: int, i: int) -> np.ndarray:
        best = min(there, key=lambda at: (x[at[1]] - x[i]) ** 2 + (y[at[0]] - y[j]) ** 2)
        return cells[best[0]][best[1]]

    return [[nearest(j, i) for i in range(len(scales))] for j in range(len(rows))]


def _last(array: xr.DataArray) -> np.ndarray:
    """The last number of every replica's curve, or the number that it has."""
    values = array.transpose("replica", ...).values
    if "epoch" not in array.dims:
        return values
    return np.array([curve[np.isfinite(curve)][-1] if np.isfinite(curve).any() else np.nan for curve in values])


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


def _statuses(axes: Axes, held: list[list[list[str]]], names: list[list[str]]) -> None:
    image = np.array([[matplotlib.colors.to_rgba(COLOURS[name]) for name in row] for row in names])
    axes.imshow(image, origin="lower", aspect="auto", interpolation="nearest")
    for (y, x), name in np.ndenumerate(names):
        counts = Counter(held[y][x])
        ink = "k" if name in _LIGHT else "w"
        if len(counts) > 1:
            text = axes.text(x, y, f"{counts[name]}/{counts.total()}", ha="center", va="center", fontsize="x-small")
            text.set(color=ink, bbox={"facecolor": COLOURS[name], "edgecolor": "none", "pad": 1})
        if list(counts.values()).count(counts[name]) > 1:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", linewidth=0, edgecolor=ink))
    axes.set_title("status")


def _boundaries(axes: Axes, names: list[list[str]]) -> None:
    """Draw the edges between neighbouring cells of different status: white with a dark rim, seen on every colour."""
    table = np.array(names)
    edges = [[(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)] for y, x in np.argwhere(table[:, 1:] != table[:, :-1])]
    edges += [[(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)] for y, x in np.argwhere(table[1:] != table[:-1])]
    for colour, width in (("0.15", 2), ("w", 1)):
        axes.add_collection(LineCollection(edges, colors=colour, linewidths=width, capstyle="projecting"))
