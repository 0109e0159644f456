"""Fourier content of the neurons' weights: the figures of the inverse participation ratio."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.development import COLOURS, development, legend, line
from lit_grok.measures.fourier import share_by_frequency


def ipr_distribution(replica: xr.Dataset, sets: Sequence[str], title: str = "", prefix: str = "ipr") -> Figure:
    """IPR of all neurons, and how neurons and activations are spread over the frequencies (Fig. 4).

    Args:
        replica: One replica of a run.
        sets: Names of the sets of Fourier weights, such as ``a``, ``b`` and ``output``. The panel by frequency
            is that of the first.
        title: What to write above it.
        prefix: How the variables' names begin; another order of the IPR has another one.

    Returns:
        The figure. Dead neurons are counted in the legend and not shown.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    values = {name: replica[f"{prefix}_{name}_per_neuron"].values for name in sets}
    highest = max([0.6, *(np.nanmax(v) for v in values.values() if np.isfinite(v).any())])
    bins = np.linspace(0, highest, 41)
    for (name, ratios), colour in zip(values.items(), COLOURS, strict=False):
        live = ratios[np.isfinite(ratios)]
        mean = f"mean {live.mean():.2f}" if live.size else "none live"
        label = f"{name}: {mean}, {ratios.size - live.size} dead"
        left.hist(live, bins, histtype="stepfilled", color=colour, alpha=0.25)
        left.hist(live, bins, histtype="step", color=colour, linewidth=1.2, label=label)
        if live.size:
            left.axvline(live.mean(), color=colour, linestyle=":")
    left.set(xlabel="inverse participation ratio", ylabel="neurons", xlim=(0, highest))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize="small")

    first = f"{prefix}_{sets[0]}"
    frequency = replica[f"{first}_frequency"].values
    frequencies = torch.from_numpy(np.nan_to_num(frequency, nan=-1)).long()
    residues = 2 * int(frequencies.max()) + 1
    neurons = share_by_frequency(frequencies, torch.ones(len(frequencies)), residues)
    k = np.arange(len(neurons))
    if f"{first}_activation" in replica:
        magnitudes = torch.from_numpy(replica[f"{first}_activation"].values)
        shares = share_by_frequency(frequencies, magnitudes, residues)
        right.bar(k, shares, color=COLOURS[0], label="activation")
    right.plot(k, neurons, "_", color="0.2", markersize=6, markeredgewidth=1.5, label="neurons")
    right.set(xlabel=f"dominant frequency of {sets[0]}", ylabel="share", xlim=(-0.8, k[-1] + 0.8), ylim=(0, None))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="small")
    figure.suptitle(title)
    return figure


def ipr_development(replica: xr.Dataset, sets: Sequence[str], title: str = "", prefix: str = "ipr") -> Figure:
    """Mean IPR over the live neurons, and the number of dead ones, against the epoch, with the accuracy (Fig. 6).

    Args:
        replica: One replica of a run.
        sets: Names of the sets of Fourier weights, such as ``a``, ``b`` and ``output``.
        title: What to write above it.
        prefix: How the variables' names begin.

    Returns:
        The figure.
    """
    figure, ((ratio,), (dead,)) = development(replica, title, rows=2)
    for name, colour in zip(sets, COLOURS, strict=False):
        line(ratio, replica, f"{prefix}_{name}", color=colour, label=name)
        line(dead, replica, f"{prefix}_{name}_dead", color=colour, label=name)
    line(ratio, replica, f"{prefix}_mean", color="black", label="mean")
    ratio.set(ylabel="mean IPR", ylim=(0, None))
    dead.set(ylabel="dead neurons", ylim=(0, None))
    legend(ratio)
    legend(dead)
    return figure
