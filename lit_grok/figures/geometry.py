"""The geometry of the training: Figures 8, 20 and 31 to 34 of arXiv 2502.01739.

Each function takes the datasets to show side by side, by title: one replica
(``open_run(…).sel(init_scale=10, seed=0)``) or many (``open_runs(…)``), of which those with the same init_scale make
one line, the mean over seeds, in a band from the lowest to the highest. The prefix says under which Fisher
information: ``fim`` (softmax classifier) or ``fim_regression``.

Example:
    ``step_cosines({"Ising": open_runs("runs/ising/*"), "modular addition": open_runs("runs/mod_add/*")})``
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Panel = Callable[[Axes, xr.Dataset, str], None]

_STYLES: dict[str, Any] = {"stiff": "-", "sloppy": (0, (4, 1.5))}
_SPECTRUM_POINTS = 2000  # more cannot be told apart on a page
_SPECTRUM_DEPTH = 1e-12  # of the largest F: below lie dead neurons, down to the smallest number there is


def step_cosines(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 8: the cosine between consecutive steps, and below it that with the way to the origin."""
    return _figure(datasets, prefix, [_consecutive, _origin])


def spectrum(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 20: the Fisher diagonal of the trained networks, sorted; above the dashed line lie the stiff parameters."""
    return _figure(datasets, prefix, [_spectrum])


def fisher_and_euclidean_magnitudes(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 31: the length of the steps under the Fisher information, and below it without."""
    return _figure(datasets, prefix, [_magnitude, _euclidean_magnitude])


def step_magnitudes(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 32: the length of the steps, and below it on the stiff and on the sloppy parameters."""
    return _figure(datasets, prefix, [_magnitude, _split_magnitude])


def magnitude_gradients(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 33: the gradient of the step magnitude, with the period of grokking between its main roots."""
    return _figure(datasets, prefix, [_gradient])


def subspace_cosines(datasets: Mapping[str, xr.Dataset], prefix: str = "fim") -> Figure:
    """Fig. 34: the cosine between consecutive steps on the stiff and on the sloppy parameters."""
    return _figure(datasets, prefix, [_split_consecutive])


def trajectory(dataset: xr.Dataset, title: str = "", prefix: str = "fim") -> Figure:
    """All of them on one page, for one replica or many."""
    figure = Figure(figsize=(10, 12))  # margins by hand: a layout engine would draw everything twice
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.05, top=0.95, wspace=0.22, hspace=0.3)
    figure.suptitle(title)
    panels = [
        *(_consecutive, _origin),
        *(_magnitude, _euclidean_magnitude),
        *(_gradient, _split_magnitude),
        *(_split_consecutive, _spectrum),
    ]
    for axes, panel in zip(figure.subplots(4, 2).flat, panels, strict=True):
        panel(axes, dataset, prefix)
    return figure


def _figure(datasets: Mapping[str, xr.Dataset], prefix: str, panels: Sequence[Panel]) -> Figure:
    """A column for each dataset, a row for each panel."""
    size = 4.8 * len(datasets), 0.4 + 2.9 * len(panels)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), len(datasets), squeeze=False)
    for column, (title, dataset) in zip(grid.T, datasets.items(), strict=True):
        column[0].set_title(title)
        for axes, panel in zip(column, panels, strict=True):
            panel(axes, dataset, prefix)
    return figure


def _consecutive(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    _cosines(axes, dataset, {"": f"{prefix}_step_cosine"}, r"$\cos(s_{e-1},\, s_e)$")


def _origin(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    _cosines(axes, dataset, {"": f"{prefix}_origin_cosine"}, r"$\cos(s_e,\, -\theta_e)$")


def _split_consecutive(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    names = {subspace: f"{prefix}_{subspace}_step_cosine" for subspace in _STYLES}
    _cosines(axes, dataset, names, r"$\cos(s_{e-1},\, s_e)$")


def _magnitude(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    _magnitudes(axes, dataset, {"": f"{prefix}_step_magnitude"}, r"$|s_e|$, Fisher")


def _euclidean_magnitude(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    _magnitudes(axes, dataset, {"": "euclidean_step_magnitude"}, r"$|s_e|$, Euclidean")


def _split_magnitude(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    names = {subspace: f"{prefix}_{subspace}_step_magnitude" for subspace in _STYLES}
    _magnitudes(axes, dataset, names, r"$|s_e|$, Fisher")


def _gradient(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    name = f"{prefix}_step_magnitude_gradient"
    handles = _curves(axes, dataset, {"": name})
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    # The first steps shrink a thousand times faster than the bump rises: linear about zero, logarithmic beyond.
    sizes = np.abs(dataset[name].where(dataset.epoch > 0).values)
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    axes.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(np.median(sizes))) if sizes.size else 1.0)
    _finish(axes, r"$\mathrm{d}|s_e|\,/\,\mathrm{d}e$", handles + _periods(axes, dataset, prefix))


def _spectrum(axes: Axes, dataset: xr.Dataset, prefix: str) -> None:
    handles = []
    for colour, label, rows in _groups(dataset, f"{prefix}_spectrum", "rank"):
        rows = rows[np.isfinite(rows).all(1)]
        if not (rows > 0).any():
            continue  # diverged or dead
        parameters = rows.shape[1]
        shown = np.unique(np.linspace(0, parameters - 1, _SPECTRUM_POINTS).astype(int))
        _band(axes, (shown + 1) / parameters, rows[:, shown], colour, "-")
        handles.append(Line2D([], [], color=colour, label=label))
        stiff = _group_mean(dataset, f"{prefix}_stiff_parameters", label)
        if 0 < stiff < parameters:
            smallest = np.nanmean(rows, 0)[parameters - round(stiff)]
            axes.axhline(smallest, color=colour, linestyle="--", linewidth=0.8)
    if axes.lines:
        axes.set_yscale("log")
        axes.set_ylim(bottom=_SPECTRUM_DEPTH * axes.get_ylim()[1])
    axes.set(xlabel="parameters, sorted", ylabel=r"$F_i$, trained network", xlim=(0, 1))
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    _legend(axes, handles)


def _cosines(axes: Axes, dataset: xr.Dataset, names: Mapping[str, str], ylabel: str) -> None:
    handles = _curves(axes, dataset, names)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_ylim(-1.05, 1.05)
    _finish(axes, ylabel, handles)


def _magnitudes(axes: Axes, dataset: xr.Dataset, names: Mapping[str, str], ylabel: str) -> None:
    handles = _curves(axes, dataset, names)
    if axes.lines:
        axes.set_yscale("log")
    _finish(axes, ylabel, handles + _periods(axes, dataset, names.get("", "").removesuffix("_step_magnitude")))


def _curves(axes: Axes, dataset: xr.Dataset, names: Mapping[str, str]) -> list:
    """A line for each init_scale and each name, the names told apart by the style of their line."""
    dataset = dataset.isel(epoch=dataset.epoch.values > 0)  # the axis is logarithmic
    handles: dict[str, Line2D] = {}
    for subspace, name in names.items():
        style = _STYLES.get(subspace, "-")
        for colour, label, rows in _groups(dataset, name, "epoch"):
            measured = np.isfinite(rows).any(0)
            if not measured.any():
                continue
            _band(axes, dataset.epoch.values[measured], rows[:, measured], colour, style)
            handles.setdefault(label, Line2D([], [], color=colour, label=label))
    styles = [Line2D([], [], color="0.3", linestyle=_STYLES[s], label=s) for s in names if s]
    return [*handles.values(), *styles]


def _periods(axes: Axes, dataset: xr.Dataset, prefix: str) -> list:
    """Where the accuracies tell of grokking: their plateau, shaded, and between dotted lines what the geometry says.

    Steady learning can have a bump in its geometry too.
    """
    handles: list = []
    for colour, label, _ in _groups(dataset, "t_train", None):
        t_train, t_test = (_group_mean(dataset, name, label) for name in ("t_train", "t_test"))
        if not t_test - t_train > t_train:
            continue
        axes.axvspan(max(t_train, 1), t_test, color=colour, alpha=0.12, linewidth=0)
        handles.append(Patch(color="0.5", alpha=0.25, linewidth=0, label="grokking plateau"))
        times = [_group_mean(dataset, f"{prefix}_grokking_{end}", label) for end in ("start", "end")]
        if np.isfinite(times).all():
            for time in times:
                axes.axvline(max(time, 1), color=colour, linestyle=":", linewidth=1.2)
            handles.append(Line2D([], [], color="0.3", linestyle=":", label="main roots of the gradient"))
    return handles


def _groups(dataset: xr.Dataset, name: str, along: str | None) -> Iterator[tuple[str, str, np.ndarray]]:
    """Colour, label and values (replicas, …) of the replicas of each init_scale; nothing where it was not measured."""
    if name not in dataset:
        return
    array = dataset[name].transpose(..., along) if along else dataset[name]
    rows = array.values.reshape(-1, *([dataset.sizes[along]] if along else []))
    scales = np.broadcast_to(np.ravel(dataset["init_scale"].values), len(rows))
    for i, scale in enumerate(np.unique(scales)):
        yield f"C{i}", f"init_scale = {scale:g}", rows[scales == scale]


def _group_mean(dataset: xr.Dataset, name: str, label: str) -> float:
    """Mean over the replicas of one group in which it is defined; NaN where it is in none."""
    values = next((rows for _, other, rows in _groups(dataset, name, None) if other == label), np.array([np.nan]))
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _band(axes: Axes, x: np.ndarray, rows: np.ndarray, colour: str, style: Any) -> None:
    axes.plot(x, np.nanmean(rows, 0), color=colour, linestyle=style, linewidth=1.3)
    if len(rows) > 1:
        axes.fill_between(x, np.nanmin(rows, 0), np.nanmax(rows, 0), color=colour, alpha=0.2, linewidth=0)


def _finish(axes: Axes, ylabel: str, handles: list) -> None:
    axes.set(xscale="log", xlabel="epoch", ylabel=ylabel)
    _legend(axes, handles)


def _legend(axes: Axes, handles: list) -> None:
    """What there is to tell apart: each name once, and that of a single init_scale not at all."""
    named = {handle.get_label(): handle for handle in handles}
    scales = [label for label in named if label.startswith("init_scale")]
    if len(scales) == 1:
        del named[scales[0]]
    if named:
        axes.legend(handles=named.values(), fontsize="small", frameon=True, edgecolor="none", framealpha=0.7)
