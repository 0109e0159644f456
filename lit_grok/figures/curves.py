"""The picture of a run: accuracy and loss, with the grokking plateau."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures import TEST, TRAIN


def curves(replica: xr.Dataset, title: str = "") -> Figure:
    """Accuracy and loss of one replica against the epoch, with t_train, t_test and the plateau between them.

    Args:
        replica: One replica of a run: ``open_run(…).sel(init_scale=10, seed=0)``.
        title: What to write above it.

    Returns:
        The figure, with an epoch axis that is logarithmic from the first measurement after epoch 0 on.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, quantity in ((top, "accuracy"), (bottom, "loss")):
        for split, colour in (("train", TRAIN), ("test", TEST)):
            values = replica[f"{split}_{quantity}"].dropna("epoch")
            axes.plot(values.epoch, values, color=colour, label=split)
        axes.set_ylabel(quantity)
    top.set(ylim=(-0.02, 1.02), title=title)
    bottom.set(xlabel="epoch")
    later = replica.epoch.values[replica.epoch.values > 0]
    first = float(later[0]) if len(later) else 1.0
    top.set_xscale("symlog", linthresh=first, linscale=0.2)
    top.set_xlim(left=0)
    losses = replica[["train_loss", "test_loss"]].to_array()
    if (np.isfinite(losses) & (losses > 0)).any():
        bottom.set_yscale("log")
    t_train, t_test = (float(replica[name]) if name in replica else np.nan for name in ("t_train", "t_test"))
    for time, colour, name in ((t_train, TRAIN, "train"), (t_test, TEST, "test")):
        if np.isfinite(time):
            top.axvline(max(time, first), color=colour, linestyle=":", label=f"$t_{{\\rm {name}}}$ = {time:g}")
    if np.isfinite(t_train) and t_test - t_train > t_train:
        for axes in (top, bottom):
            axes.axvspan(max(t_train, first), t_test, color="0.9", zorder=-1)
        top.annotate("grokking plateau", (np.sqrt(max(t_train, first) * t_test), 0.6), ha="center", color="0.4")
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
