"""The picture of a run: accuracy and loss, with the grokking plateau."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import (
    curve,
    epoch_axis,
    groups,
    heading,
    key,
    legend,
    log_axis,
    measured,
    plateaus,
    styles,
    title,
)


def curves(run: xr.DataTree) -> Figure:
    """Accuracy and loss against the epoch, and the plateau from t_train to t_test where it grokked.

    Args:
        run: What ``open_run`` gives.

    Returns:
        The figure; for a single init_scale with t_train and t_test, means over its seeds, as dotted lines.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    handles = key(run)
    evaluation = measured(run, "evaluation")
    for split, style, handle in styles(run, ["test", "train"]):
        curve(top, run, evaluation[f"{split}_accuracy"], marker="", **style)
        curve(bottom, run, evaluation[f"{split}_loss"], marker="", **style)
        handles.append(handle)
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    bottom.set(xlabel="epoch", ylabel="loss")
    losses = np.concatenate([evaluation[name].values.ravel() for name in ("train_loss", "test_loss")])
    if (losses[np.isfinite(losses)] > 0).any():
        log_axis(bottom)
    handles += plateaus([top, bottom], run)
    epoch_axis([top, bottom], evaluation.epoch.values)
    if len(groups(run)) == 1:
        marked = []
        for name in ("train", "test"):
            times = measured(run, "/")[f"t_{name}"].values
            if np.isfinite(times).any():
                mean = np.nanmean(times)
                top.axvline(mean, color="0.3", linestyle=":", linewidth=1)
                marked.append(f"$t_{{\\rm {name}}}$")
                label = f"{marked[-1]} = {mean:.0f}"
                top.annotate(label, (mean, 0.5), xytext=(3, 0), textcoords="offset points", fontsize="small")
        if marked:
            handles.append(Line2D([], [], color="0.3", linestyle=":", label=", ".join(marked)))
    figure.align_ylabels([top, bottom])
    legend(figure, handles)
    title(figure, heading(run))
    return figure
