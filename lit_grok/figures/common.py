"""What every figure of a run has in common: who shares a colour, how several seeds are drawn, the axis of epochs."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter

from lit_grok.files import write

#: Line styles of what shares a colour: weight decays, layers, sets of weights, subspaces.
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))

_PICTURES = 4  # so many replicas have a picture of their own
_FEW = 3  # so many groups may be shaded and marked one over the other; more would be a brown patch
_NAMED = 10  # so many groups stand in a legend; of more, which have colours in order, it names some
_LINEAR = 0.3  # width of the part of the epoch axis that holds epoch 0, in decades
_WIDTH = 75  # characters of a line of a heading, which fit over the narrowest figure
_TICK = 0.35  # inches that the label of a tick takes


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
    counts = sorted({len(group.replicas) for group in groups(run)})
    parts = [str(run.attrs.get("title", run.attrs.get("task", "")))]
    parts += [f"init_scale {scales[0]:.15g}"] * (len(scales) == 1)
    parts += [f"weight decay {decays[0]:.15g}"] * (len(decays) == 1)
    if counts == [1] and len(set(seeds)) == 1:
        parts.append(f"seed {seeds[0]}")
    else:
        parts.append(f"{'–'.join(map(str, (counts[0], counts[-1])[: len(counts)]))} seeds: {shown}".removesuffix(": "))
    # Lines are broken between the parts alone.
    words = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in ", ".join(filter(None, parts)).split(", ")]
    wrapped = textwrap.fill(", ".join(words), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return wrapped.replace("\N{NO-BREAK SPACE}", " ")


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
    axes.plot(x, np.nanmean(values, 0), **options | style)
    if len(values) > 1:
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
        axes.fill_between(x, low, high, color=group.colour, alpha=0.18, linewidth=0, zorder=1)


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
        inches = axes.get_window_extent().width / axes.figure.dpi
        per_decade = inches / (_LINEAR + np.log10(last / first * 1.05))
        every = max(1, int(np.ceil(_TICK / per_decade)))
        apart = per_decade * (_LINEAR + np.log10(decades / first)) >= _TICK  # from the label of 0
        axes.xaxis.set_major_locator(FixedLocator([0, *decades[apart][::every]]))
        axes.xaxis.set_major_formatter(FuncFormatter(_epoch))
        axes.xaxis.set_minor_locator(FixedLocator(minor if every == 1 else decades.tolist()))
        axes.xaxis.set_minor_formatter(NullFormatter())


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


def styles(run: xr.DataTree, labels: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], Line2D]]:
    """Things that share the colours of the groups: label, style of the line, and what the legend says of it.

    They differ in their dashes; where those are for the weight decay, in width and strength.
    """
    dashed = len(np.unique(run.coords["weight_decay"].values)) > 1
    for i, label in enumerate(labels):
        style = (
            {"linewidth": 1.5 / (i + 1), "alpha": 0.4 + 0.6 / (i + 1)}
            if dashed
            else {"linestyle": STYLES[i % len(STYLES)]}
        )
        yield label, style, Line2D([], [], color="0.3", label=label, **style)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Each name once, below the panels, where it hides nothing, in as many columns as fit."""
    named = {handle.get_label(): handle for handle in handles}
    if named:
        widest = 0.7 + 0.065 * max(map(len, named))  # inches
        columns = min(len(named), max(1, int(figure.get_figwidth() / widest)))
        further = -(-len(named) // columns) - 2
        figure.set_figheight(figure.get_figheight() + 0.17 * max(further, 0))  # not at the cost of the panels
        figure.legend(handles=list(named.values()), loc="outside lower center", ncols=columns, fontsize="small")


def development(run: xr.DataTree, branch: str, panels: int, height: float = 1.7) -> tuple[Figure, list[Axes], list]:
    """A column of panels against the epoch, with the accuracy above them and the plateau shaded in all of them.

    Args:
        run: What ``open_run`` gives.
        branch: The callback's own branch.
        panels: How many there are below the accuracy.
        height: Of each, in inches.

    Returns:
        The figure, the empty panels, and what the legend has to say so far.
    """
    figure = Figure(figsize=(6.5, 1.2 + height * (panels + 1)), layout="constrained")
    top, *below = figure.subplots(panels + 1, 1, sharex=True)
    handles = key(run)
    for name, style, handle in styles(run, ["test accuracy", "train accuracy"]):
        curve(top, run, measured(run, "evaluation")[name.replace(" ", "_")], marker="", **style)
        handles.append(handle)
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    handles += plateaus([top, *below], run)
    epochs = np.concatenate([measured(run, name).epoch.values for name in ("evaluation", branch)])
    epoch_axis([top, *below], epochs)
    below[-1].set_xlabel("epoch")
    figure.suptitle(heading(run), fontsize="medium")
    figure.align_ylabels([top, *below])
    return figure, below, handles


def log_axis(axes: Axes) -> None:
    """A logarithmic axis of values, with 1, 2 and 5 where powers of ten alone would leave it without numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    if low >= 1e-3 and high <= 1e4:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def count_axis(axes: Axes) -> None:
    """An axis of numbers of things, which is not blown up where there are none."""
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))


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
