"""What the figures of a quantity against the epoch have in common: the accuracy above it, on the same axis."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_grok.figures import TEST, TRAIN

#: Colours of whatever is shown beside the training and the test set.
COLOURS = ("#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd")


def development(replica: xr.Dataset, title: str, rows: int, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Panels with a common logarithmic epoch axis, the accuracy in the first row, the grokking plateau in grey.

    Args:
        replica: One replica of a run; its accuracies and grokking times are shown where there are any.
        title: What to write above the figure.
        rows: Number of rows below the accuracy.
        columns: Number of columns.

    Returns:
        The figure and the empty axes below the accuracy, shape (rows, columns).
    """
    width = 6.5 if columns == 1 else 3.2 * columns + 1
    figure = Figure(figsize=(width, 1.8 + 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows + 1, columns, sharex=True, sharey="row", squeeze=False)
    t_train, t_test = (float(replica[name]) if name in replica else np.nan for name in ("t_train", "t_test"))
    for panel in axes.flat:
        if t_test - t_train > t_train:
            panel.axvspan(max(t_train, 1.0), t_test, color="0.92", zorder=-1)
    for top in axes[0]:
        for split, colour in (("train", TRAIN), ("test", TEST)):
            if f"{split}_accuracy" in replica:
                line(top, replica, f"{split}_accuracy", color=colour, label=split)
        top.set(xscale="log", ylim=(-0.02, 1.02))
    axes[0, 0].set_ylabel("accuracy")
    legend(axes[0, -1])
    for bottom in axes[-1]:
        bottom.set_xlabel("epoch")
    figure.suptitle(title)
    return figure, axes[1:]


def line(axes: Axes, replica: xr.Dataset, name: str, **style) -> None:
    """Draw a curve at the epochs at which it was measured, without epoch 0, which a logarithmic axis lacks."""
    values = replica[name].dropna("epoch")
    values = values.isel(epoch=values.epoch.values > 0)
    # Few measurements are shown as such: a line alone would hide how coarse they are.
    marker = "o" if values.sizes["epoch"] < 100 else None
    axes.plot(values.epoch, values, marker=marker, markersize=2, linewidth=1.2, **style)


def legend(axes: Axes, **options) -> None:
    """A legend to the right of a panel, where it hides nothing."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **options)


def last(replica: xr.Dataset, name: str) -> float:
    """A quantity at the end of the training, NaN where it was never measured."""
    values = np.atleast_1d(replica[name].dropna("epoch") if "epoch" in replica[name].dims else replica[name])
    return float(values[-1]) if values.size else np.nan
