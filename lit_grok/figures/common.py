"""What every figure of a run has in common: who shares a colour, how several seeds are drawn, the axis of epochs."""

import io
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    Locator,
    MaxNLocator,
    NullFormatter,
    TickHelper,
)

from lit_grok.files import write
from lit_grok.recorder import REPLICA_KEYS

#: Line styles of what shares a colour: weight decays, layers, sets of weights, subspaces.
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1)))

_PICTURES = 4  # so many replicas have a picture of their own
_FEW = 3  # so many groups may be shaded and marked one over the other; more would be a brown patch
_NAMED = 10  # so many groups stand in a legend; of more, which have colours in order, it names some
_LINEAR = 0.3  # width of the part of the epoch axis that holds epoch 0, in decades
_MARGIN = 0.1  # inches on either side of a title
_LINE = 0.17  # inches of a line of a title or of a legend
_ACROSS, _UPWARDS = 0.35, 0.168  # inches that the label of a tick takes


class Group(NamedTuple):
    """The replicas that differ in their seeds alone, which are drawn as one."""

    label: str
    colour: Any
    style: Any
    replicas: np.ndarray  # their positions along ``replica``


def groups(run: xr.DataTree) -> list[Group]:
    """The replicas of a run by init_scale, which is the colour, and weight decay, which is the style of the line.

    Args:
        run: What ``open_run`` gives.

    Returns:
        The groups, by growing init_scale; a single one has no label.
    """
    scales = np.atleast_1d(run.coords["init_scale"].values)
    others = _others(run)
    kinds = list(dict.fromkeys(others))
    found = []
    palette = _colours(len(np.unique(scales)))
    for scale, colour in zip(np.unique(scales), palette, strict=True):
        for i, kind in enumerate(kinds):
            members = np.flatnonzero([s == scale and other == kind for s, other in zip(scales, others, strict=True)])
            parts = [f"init_scale {scale:.15g}"] * (len(palette) > 1) + [kind] * (len(kinds) > 1)
            if len(members):
                found.append(Group(", ".join(parts), colour, STYLES[i % len(STYLES)], members))
    return found


def _others(run: xr.DataTree) -> list[str]:
    """What tells each replica from others of its init_scale, but for seeds: weight decay, and what runs vary."""
    index = run.to_dataset().indexes.get("replica")
    levels = [str(name) for name in getattr(index, "names", ()) if name != "replica"]
    skipped = ("init_scale", "seed", "seed_init", "seed_data", "seed_order", "run_dir")
    columns = {
        name.replace("_", " "): [
            f"{v:.15g}" if isinstance(v, float) else str(v) for v in np.atleast_1d(run.coords[name])
        ]
        for name in dict.fromkeys(["weight_decay", *levels])
        if name not in skipped
    }
    varying = {name: values for name, values in columns.items() if len(set(values)) > 1}
    count = np.atleast_1d(run.coords["init_scale"].values).size
    return [", ".join(f"{name} {values[r]}" for name, values in varying.items()) for r in range(count)]


def _colours(count: int) -> list:
    """Colours in a perceptual order, told apart without red and green as well, none too light for a line."""
    return [matplotlib.colormaps["plasma"](x) for x in np.linspace(0.05, 0.8, count)]


def heading(run: xr.DataTree, shown: str = "mean and range") -> str:
    """What a figure is of: the task, what all replicas have in common, and how many seeds they have.

    Args:
        run: What ``open_run`` gives.
        shown: What is drawn of several seeds.
    """
    scales, decays = (np.unique(np.atleast_1d(run.coords[name].values)) for name in ("init_scale", "weight_decay"))
    seeds = np.atleast_1d(run.coords["seed"].values)
    keys = np.array([np.atleast_1d(run.coords[key].values) for key in REPLICA_KEYS if key in run.coords])
    counts = sorted({np.unique(keys[:, group.replicas], axis=1).shape[1] for group in groups(run)})
    parts = [str(run.attrs.get("title", run.attrs.get("task", "")))]
    parts += [f"init_scale {scales[0]:.15g}"] * (len(scales) == 1)
    parts += [f"weight decay {decays[0]:.15g}"] * (len(decays) == 1)
    if counts == [1] and len(set(seeds)) == 1:
        parts.append(f"seed {seeds[0]}")
    else:
        parts.append(f"{'–'.join(map(str, (counts[0], counts[-1])[: len(counts)]))} seeds: {shown}".removesuffix(": "))
    return ", ".join(filter(None, parts))


def title(figure: Figure, text: str) -> None:
    """What a figure is of, above its panels: in as many lines as it is too narrow for, which cost the panels nothing.

    Args:
        figure: Of its final width.
        text: Parts with commas between them. Lines are broken there, within a part only if it is longer than a line.
    """
    written = figure.suptitle(text, fontsize="medium")
    room = figure.bbox.width - 2 * _MARGIN * figure.dpi

    def fits(line: str) -> bool:
        written.set_text(line)
        return bool(written.get_window_extent().width <= room)

    lines: list[str] = []
    for part in re.split("(?<=,) ", text):
        for piece in [part] if fits(part) else part.split(" "):
            if lines and fits(f"{lines[-1]} {piece}"):
                lines[-1] += f" {piece}"
            else:
                lines.append(piece)
    written.set_text("\n".join(lines))
    figure.set_figheight(figure.get_figheight() + _LINE * (len(lines) - 1))


def measured(run: xr.DataTree, branch: str) -> xr.Dataset:
    """What was measured in one branch, or under ``"/"`` at the root, with the replicas as coordinates."""
    return run[branch].to_dataset()


def rows(array: xr.DataArray, group: Group) -> np.ndarray:
    """The values of a group, one row per replica."""
    return array.transpose("replica", ...).values[group.replicas]


def draw_group(axes: Axes, x: np.ndarray, values: np.ndarray, group: Group, **style: Any) -> None:
    """The mean over the replicas of a group as a line, their range as a band; both where anything was measured.

    Args:
        axes: Where to.
        x: Positions, shape (n,).
        values: Shape (replicas, n).
        group: Whose colour and style it is.
        style: What is to be otherwise.
    """
    measured = np.isfinite(values).any(0)
    if not measured.any():
        return
    x, values = np.asarray(x)[measured], values[:, measured]
    # Few measurements are shown as such: a line alone would hide how coarse they are.
    options = {"color": group.colour, "linestyle": group.style, "linewidth": 1.3}
    options |= {"marker": "o", "markersize": 2} if len(x) < 100 else {}
    options |= style
    axes.plot(x, np.nanmean(values, 0), **options)
    if len(values) > 1:
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
        axes.fill_between(x, low, high, color=options["color"], alpha=0.18, linewidth=0, zorder=1)


def curve(axes: Axes, run: xr.DataTree, array: xr.DataArray, **style: Any) -> None:
    """A quantity (replica, epoch) against the epoch, for every group of the run."""
    for group in groups(run):
        draw_group(axes, array.epoch.values, rows(array, group), group, **style)


def epoch_axis(panels: Sequence[Axes], epochs: np.ndarray) -> None:
    """A logarithmic axis of epochs that has a 0, with the epochs up to the first measured one in its linear part."""
    later = epochs[epochs > 0]
    first, last = (float(later.min()), float(later.max())) if later.size else (1.0, 1.0)
    powers = np.arange(np.ceil(np.log10(first)), np.floor(np.log10(last)) + 1)
    decades = 10.0**powers if powers.size else np.unique([first, last])
    minor = [x for x in np.multiply.outer(10.0 ** np.arange(-1, 20), np.arange(2, 10)).ravel() if first < x < last]
    for axes in panels:
        axes.set_xscale("symlog", linthresh=first, linscale=_LINEAR)
        axes.set_xlim(0, last * 1.05)
        axes.xaxis.set_major_locator(Apart([0, *decades]))
        axes.xaxis.set_major_formatter(FuncFormatter(_epoch))
        axes.xaxis.set_minor_locator(FixedLocator(minor))
        axes.xaxis.set_minor_formatter(NullFormatter())


class Apart(Locator):
    """Ticks at given places of a horizontal axis, of which it leaves out those that there is no room for.

    That depends on the width of the panel, which is known only when the figure is laid out.

    Args:
        places: In their order.
    """

    def __init__(self, places: Sequence[float] | np.ndarray):
        self.places = np.asarray(places)

    def __call__(self) -> list[float]:
        """Those that have room beside the one before."""
        kept: list[float] = []
        last = -np.inf
        for place, inch in zip(self.places, _inches(_of(self), self.places), strict=True):
            if abs(inch - last) >= _ACROSS:
                kept.append(float(place))
                last = inch
        return kept

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The same, whatever the limits."""
        return self()


class _LogTicks(Locator):
    """Ticks at 1, 2 and 5 of every decade, or at 1 alone, or of every so many decades: what the panel has room for.

    Where less than two of these are in sight, as within a decade, round numbers take their place.
    """

    def __call__(self) -> list[float]:
        """The densest set whose labels do not run into each other."""
        low, high = sorted(_of(self).get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """The same between other limits."""
        axis = _of(self)
        powers = np.arange(np.floor(np.log10(vmin)), np.ceil(np.log10(vmax)) + 1)
        sets: list[Any] = [np.outer(10.0**powers, (1, 2, 5)).ravel()] if vmax < 100 * vmin else []
        sets += [10.0 ** powers[powers % every == 0] for every in range(1, len(powers))]
        sets += [MaxNLocator(count, steps=(1, 2, 5, 10)).tick_values(vmin, vmax) for count in range(5, 0, -1)]
        seen: list[list[float]] = [ticks[(ticks >= vmin) & (ticks <= vmax)].tolist() for ticks in sets]
        need = _UPWARDS if isinstance(axis, YAxis) else _ACROSS
        fitting = [ticks for ticks in seen if (np.abs(np.diff(_inches(axis, ticks))) >= need).all()]
        return max(fitting, key=lambda ticks: min(len(ticks), 2), default=seen[-1])


class _LogNumbers(Formatter):
    """Numbers of a logarithmic axis as they are said, where that is short for all that are in sight."""

    def __call__(self, value: float, _: int | None = None) -> str:
        """The label of a tick."""
        low, high = sorted(_of(self).get_view_interval())
        if value <= 0 or (low >= 1e-3 and high <= 1e4):
            return f"{value:g}"
        power = int(np.floor(np.log10(value) + 1e-9))
        factor = f"{value / 10.0**power:.3g}"
        return f"$10^{{{power}}}$" if factor == "1" else rf"${factor} \times 10^{{{power}}}$"


def _of(helper: TickHelper) -> Axis:
    """The axis, which matplotlib has given to the locator or formatter."""
    axis = helper.axis
    assert isinstance(axis, Axis)
    return axis


def _inches(axis: Axis, places: Sequence[float] | np.ndarray) -> np.ndarray:
    """Where places of an axis lie in its panel."""
    box = axis.axes.get_window_extent()
    length = box.height if isinstance(axis, YAxis) else box.width
    low, high, *at = axis.get_transform().transform(np.asarray([*axis.get_view_interval(), *places], float))
    return (np.array(at) - low) / (high - low) * length / axis.axes.figure.dpi


def _epoch(value: float, _: int) -> str:
    power = np.log10(value) if value > 0 else 0.5
    return f"$10^{{{power:.0f}}}$" if float(power).is_integer() else f"{value:g}"


def plateaus(panels: Sequence[Axes], run: xr.DataTree) -> list:
    """Mark from t_train to t_test, means over the seeds, for each group that grokked; for the legend.

    Few are shaded in the colour of the group; many, which overlap, are bars above the panels.
    """
    spans = []
    for group in groups(run):
        status, t_train, t_test = (
            np.atleast_1d(measured(run, "/")[name].values)[group.replicas] for name in ("status", "t_train", "t_test")
        )
        grokked = status == "grokked"
        if not grokked.any():
            continue
        spans.append((t_train[grokked].mean(), t_test[grokked].mean(), group.colour))
    for axes in panels:
        for i, (start, end, colour) in enumerate(spans):
            if len(spans) <= _FEW:
                axes.axvspan(start, end, color=colour, alpha=0.1, linewidth=0)
            else:
                height = 1.02 + 0.02 * i
                across = axes.get_xaxis_transform()
                axes.plot([start, end], [height, height], color=colour, linewidth=1, transform=across, clip_on=False)
    if not spans:
        return []
    if len(spans) > _FEW:
        return [Line2D([], [], color="0.5", label="plateaus (bars)")]
    return [Patch(color="0.5", alpha=0.25, linewidth=0, label="grokking plateau")]


def key(run: xr.DataTree) -> list[Line2D]:
    """What the legend says of the groups; nothing of a single one, which the heading names."""
    named = [group for group in groups(run) if group.label]
    if len(named) > _NAMED:
        named = [named[i] for i in np.linspace(0, len(named) - 1, _NAMED).round().astype(int)]
    return [Line2D([], [], color=g.colour, linestyle=g.style, label=g.label) for g in named]


def blocks(run: xr.DataTree, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The replicas as the rows of a map, by init_scale and then by seed.

    Args:
        run: What ``open_run`` gives.
        most: So many init_scales are named.

    Returns:
        Their order; between which rows the init_scale changes (k + 0.5 for k and k + 1); in the middle of which rows
        an init_scale is to be named; and the names.
    """
    scales, seeds = (np.atleast_1d(run.coords[name].values) for name in ("init_scale", "seed"))
    order = np.lexsort((seeds, scales))
    edges = np.flatnonzero(np.diff(scales[order])) + 0.5
    shown = np.unique(scales)[:: -(-len(np.unique(scales)) // most)]
    centres = np.array([np.flatnonzero(scales[order] == scale).mean() for scale in shown])
    return order, edges, centres, [f"{scale:g}" for scale in shown]


def shown(run: xr.DataTree, known: np.ndarray) -> list[int]:
    """At most four replicas for pictures of their own: the first of every group and then its others.

    Args:
        run: What ``open_run`` gives.
        known: Whether there is something to show of a replica, shape (replicas,).
    """
    turns = zip_longest(*(group.replicas for group in groups(run)))
    return [int(r) for turn in turns for r in turn if r is not None and known[r]][:_PICTURES]


def few(run: xr.DataTree) -> bool:
    """Whether there are so few groups that marks of each can be told apart in one panel."""
    return len(groups(run)) <= _FEW


def styles(run: xr.DataTree, labels: Sequence[str], after: int = 0) -> Iterator[tuple[str, dict[str, Any], Line2D]]:
    """Things that share the colours of the groups: label, style of the line, and what the legend says of it.

    They differ in their dashes; where those tell groups apart, in width and strength. Of a single group more things
    than there are dashes have colours of their own, and of several groups some have a bolder line.

    Args:
        run: What ``open_run`` gives.
        labels: What is to be told apart.
        after: So many styles mean something else already.
    """
    found = groups(run)
    dashed = len({group.style for group in found}) > 1
    coloured = len(found) == 1 and after + len(labels) > len(STYLES)
    for i, label in enumerate(labels, after):
        style: dict[str, Any] = {"linestyle": STYLES[i % len(STYLES)]}
        if dashed:
            style = {"linewidth": 1.5 / (i + 1), "alpha": 0.4 + 0.6 / (i + 1)}
        elif coloured:
            style["color"] = matplotlib.color_sequences["petroff10"][i % 10]  # told apart without red and green too
        elif i >= len(STYLES):
            style["linewidth"] = 1.3 * (1 + i // len(STYLES))
        yield label, style, Line2D([], [], **{"color": "0.3"} | style, label=label)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Each name once, below the panels, where it hides nothing, in as many columns as fit."""
    named = {handle.get_label(): handle for handle in handles}
    if named:
        widest = 0.6 + max(_width(figure, name) for name in named)  # with its line, and the space to the next
        columns = min(len(named), max(1, int(figure.get_figwidth() / widest)))
        further = -(-len(named) // columns) - 2
        figure.set_figheight(figure.get_figheight() + _LINE * max(further, 0))  # not at the cost of the panels
        figure.legend(handles=list(named.values()), loc="outside lower center", ncols=columns, fontsize="small")


def _width(figure: Figure, text: str) -> float:
    """Inches of a text in a legend, whose letters may be written in TeX."""
    written = figure.text(0, 0, text, fontsize="small")
    width = written.get_window_extent().width / figure.dpi
    written.remove()
    return float(width)


def beside(axes: Axes, handles: Sequence[Any]) -> None:
    """A legend of what is in one panel alone, to the right of it, where it hides nothing."""
    axes.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        fontsize="small",
        borderaxespad=0,
        handlelength=2.4,
    )


def development(run: xr.DataTree, branch: str, panels: int, height: float = 1.7) -> tuple[Figure, list[Axes], list]:
    """A column of panels against the epoch, with the accuracy above them and the plateau shaded in all of them.

    Args:
        run: What ``open_run`` gives.
        branch: The callback's own branch.
        panels: How many there are below the accuracy.
        height: Of each, in inches.

    Returns:
        The figure, the empty panels, and what the legend below them has to say so far.
    """
    figure = Figure(figsize=(7.2, 1.2 + height * (panels + 1)), layout="constrained")
    # Room for texts that are a little wider in the PNG than in the PDF, whose layout it has.
    figure.get_layout_engine().set(w_pad=0.1)  # type: ignore[union-attr, call-arg]
    top, *below = figure.subplots(panels + 1, 1, sharex=True)
    handles = []
    for split, style, handle in styles(run, ["test", "train"]):
        curve(top, run, measured(run, "evaluation")[f"{split}_accuracy"], marker="", **style)
        handles.append(handle)
    beside(top, handles)
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    epochs = np.concatenate([measured(run, name).epoch.values for name in ("evaluation", branch)])
    epoch_axis([top, *below], epochs)
    below[-1].set_xlabel("epoch")
    title(figure, heading(run))
    figure.align_ylabels([top, *below])
    return figure, below, key(run) + plateaus([top, *below], run)


def log_axis(axes: Axes) -> None:
    """A logarithmic axis of values, with 1, 2 and 5 where powers of ten alone would leave it without numbers."""
    axes.set_yscale("log")
    log_ticks(axes.yaxis)


def log_ticks(axis: Axis) -> None:
    """The numbers along a logarithmic axis, as many as have room."""
    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter(_LogNumbers())
    axis.set_minor_formatter(NullFormatter())


def count_axis(axes: Axes) -> None:
    """An axis of numbers of things, which is not blown up where there are none."""
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as PDF and PNG; returns the PNG."""
    for kind in ("pdf", "png"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=150)
        figure.set_layout_engine("none")  # both have the layout of the first: finding it takes longest
        write(folder / f"{name}.{kind}", content.getvalue())
    return folder / f"{name}.png"


def has(run: xr.DataTree, branch: str, name: str, *dims: str) -> bool:
    """Whether a branch holds anything finite under this name, along these dimensions."""
    results = measured(run, branch) if branch in run.children else {}
    return name in results and set(dims) <= set(results[name].dims) and bool(np.isfinite(results[name].values).any())
