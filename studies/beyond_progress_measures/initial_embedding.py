"""Fig. 20: does an embedding that starts as a Toeplitz matrix halve the time to understanding?"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import legend, title
from studies.beyond_progress_measures.sweeps import INITS
from studies.claims import Claim, Results
from studies.readings import first_epoch, grid
from studies.study import Study

TEST = "evaluation/test_accuracy"
_STARTS = 0.5
_NAMES = ("random", "Toeplitz")
#: Half the distance of the two in the figure, as a train fraction.
_APART = 0.008


def draw(results: Results) -> Mapping[str, Figure]:
    """The epoch at which half of the test pairs are known, from both embeddings of each seed, beside the fraction."""
    drawn = [fraction for fraction, pair in INITS.items() if all(sweep.name in results for sweep in pair)]
    if not drawn:
        return {}
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    for fraction in drawn:
        starts, known = _pair(results, fraction)
        places = [fraction - _APART, fraction + _APART]
        axes.plot(places, starts, color="0.7", linewidth=0.8, zorder=1)
        for i, place in enumerate(places):
            for epoch, there in zip(starts[i].values, known[i].values, strict=True):
                inside = f"C{i}" if there else "white"
                axes.plot(place, epoch, "os"[i], color=f"C{i}", markerfacecolor=inside, markersize=5)
    handles = [
        Line2D([], [], color=f"C{i}", marker="os"[i], linestyle="", label=f"{name} embedding")
        for i, name in enumerate(_NAMES)
    ]
    handles.append(
        Line2D([], [], color="0.5", marker="o", markerfacecolor="white", linestyle="", label="not until then")
    )
    axes.set(xlabel="train fraction", ylabel="epoch of test accuracy 0.5", ylim=(0, None), xticks=drawn)
    legend(figure, handles)
    title(figure, "x + y, P = 97, a line for each seed")
    return {"prime_fig20": figure}


def _starts(tree: xr.DataTree) -> xr.DataArray:
    return first_epoch(grid(tree, TEST).sel(init_scale=1.0, drop=True) >= _STARTS)


def _pair(results: Results, fraction: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Start or else last epoch (embedding, seed), from a random and a Toeplitz embedding, and whether it started."""
    trees = [results[sweep.name] for sweep in INITS[fraction]]
    starts = xr.concat([_starts(tree) for tree in trees], "embedding", join="inner")
    ends = xr.DataArray([float(grid(tree, TEST).epoch.max()) for tree in trees], dims="embedding")
    return starts.fillna(ends), starts.notnull()


def _doublings(results: Results, fraction: float) -> xr.DataArray:
    """Log2 of the ratio of the times; a seed that never gets there counts with the last epoch, NaN where both do."""
    starts, known = _pair(results, fraction)
    return xr.DataArray(np.log2(starts[1] / starts[0])).where(known.any("embedding"))


def _claim(fraction: float) -> Claim:
    return Claim(
        name=f"toeplitz_halves_the_time_{fraction:g}",
        says=f"A Toeplitz embedding at the start halves the time to understanding, train fraction {fraction:g}.",
        source="App. E, Fig. 20",
        statistic="log2 of the epoch of test accuracy 0.5 (or the last), Toeplitz over random",
        values=partial(_doublings, fraction=fraction),
        side="within",
        threshold=(-1.5, -0.5),
        paper="-1",
        main=fraction == 0.3,
    )


STUDY = Study(
    name="initial_embedding",
    title="Does a Toeplitz embedding at the start halve the time?",
    figures=("prime_fig20",),
    sweeps=tuple(sweep for pair in INITS.values() for sweep in pair),
    draws=dict.fromkeys((TEST,)),
    claims=tuple(_claim(fraction) for fraction in INITS),
    draw=draw,
)
