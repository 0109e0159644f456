"""What every figure of a run has in common: who shares a colour, how several seeds are drawn, the axis of epochs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

#: Line styles of what shares a colour: weight decays, layers, sets of weights, subspaces.
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


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
    scales, decays = (np.atleast_1d(run.coords[name].values) for name in ("init_scale", "weight_decay"))
    found = []
    palette = _colours(len(np.unique(scales)))
    for scale, colour in zip(np.unique(scales), palette, strict=True):
        for i, decay in enumerate(np.unique(decays)):
            members = np.flatnonzero((scales == scale) & (decays == decay))
            parts = [f"init_scale {scale:g}"] * (len(palette) > 1)
            parts += [f"weight decay {decay:g}"] * (len(np.unique(decays)) > 1)
            if len(members):
                found.append(Group(", ".join(parts), colour, STYLES[i % len(STYLES)], members))
    return found


def _colours(count: int) -> list:
    """Colours in a perceptual order, told apart without red and green as well, none too light for a line."""
    return [matplotlib.colormaps["plasma"](x) for x in np.linspace(0.05, 0.8, count)]


def heading(run: xr.DataTree) -> str:
    """What a figure is of: the task, what all replicas have in common, and how many seeds they have.

    Args:
        run: What ``open_run`` gives.
    """
    scales, decays, seeds = (
        np.unique(np.atleast_1d(run.coords[name].values)) for name in ("init_scale", "weight_decay", "seed")
    )
    parts = [str(run.attrs.get("title", run.attrs.get("task", "")))]
    parts += [f"init_scale {scales[0]:g}"] * (len(scales) == 1)
    parts += [f"weight decay {decays[0]:g}"] * (len(decays) == 1)
    parts.append(f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds: mean and range")
    return ", ".join(part for part in parts if part)


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
    decades = 10.0 ** np.arange(np.ceil(np.log10(first)), np.floor(np.log10(last)) + 1)
    for axes in panels:
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.set_xlim(0, last * 1.05)
        axes.xaxis.set_major_locator(FixedLocator([0, *decades]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x == 0 else f"$10^{{{np.log10(x):.0f}}}$"))
        axes.xaxis.set_minor_locator(NullLocator())


def plateaus(panels: Sequence[Axes], run: xr.DataTree) -> list:
    """Shade from t_train to t_test, means over the seeds, in the colour of each group that grokked; for the legend."""
    found = []
    for group in groups(run):
        status, t_train, t_test = (
            np.atleast_1d(measured(run, "/")[name].values)[group.replicas] for name in ("status", "t_train", "t_test")
        )
        grokked = status == "grokked"
        if not grokked.any():
            continue
        for axes in panels:
            axes.axvspan(t_train[grokked].mean(), t_test[grokked].mean(), color=group.colour, alpha=0.1, linewidth=0)
        found = [Patch(color="0.5", alpha=0.25, linewidth=0, label="grokking plateau")]
    return found


def key(run: xr.DataTree) -> list[Line2D]:
    """What the legend says of the groups; nothing of a single one, which the heading names."""
    return [Line2D([], [], color=g.colour, linestyle=g.style, label=g.label) for g in groups(run) if g.label]


def styles(labels: Sequence[str]) -> Iterator[tuple[str, Any, Line2D]]:
    """Label, style of the line, and what the legend says of it, for things that share the colours of the groups."""
    for label, style in zip(labels, STYLES * len(labels), strict=False):
        yield label, style, Line2D([], [], color="0.3", linestyle=style, label=label)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Each name once, below the panels, where it hides nothing, in as many columns as fit."""
    named = {handle.get_label(): handle for handle in handles}
    if named:
        widest = 0.7 + 0.075 * max(map(len, named))  # inches
        columns = min(len(named), max(1, int(figure.get_figwidth() / widest)))
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
    for name, style, handle in styles(["test accuracy", "train accuracy"]):
        curve(top, run, measured(run, "evaluation")[name.replace(" ", "_")], linestyle=style, marker="")
        handles.append(handle)
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    handles += plateaus([top, *below], run)
    epochs = np.concatenate([measured(run, name).epoch.values for name in ("evaluation", branch)])
    epoch_axis([top, *below], epochs)
    below[-1].set_xlabel("epoch")
    figure.suptitle(heading(run), fontsize="medium")
    return figure, below, handles


def count_axis(axes: Axes) -> None:
    """An axis of numbers of things, which is not blown up where there are none."""
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))


def has(run: xr.DataTree, branch: str, name: str, *dims: str) -> bool:
    """Whether a branch holds anything finite under this name, along these dimensions."""
    if branch not in run.children or name not in measured(run, branch):
        return False
    array = measured(run, branch)[name]
    return set(dims) <= set(array.dims) and bool(np.isfinite(array.values).any())
