"""Fig. 20: does an embedding that starts as a Toeplitz matrix halve the time to understanding?"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import legend
from studies.beyond_progress_measures.sweeps import INITS
from studies.claims import Claim, Results
from studies.readings import first_epoch, grid
from studies.study import Study

TEST = "evaluation/test_accuracy"
_STARTS = 0.5
_NAMES = ("random", "Toeplitz")


def draw(results: Results) -> Mapping[str, Figure]:
    """The epoch at which half of the test pairs are known against the fraction, from both."""
    if not any(sweep.name in results for pair in INITS.values() for sweep in pair):
        return {}
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes, handles = figure.subplots(), []
    for i, name in enumerate(_NAMES):
        for fraction, pair in INITS.items():
            if pair[i].name in results:
                epochs = _starts(results[pair[i].name]).values
                axes.plot([fraction] * len(epochs), epochs, "os"[i], color=f"C{i}", markersize=5, alpha=0.7)
        handles.append(Line2D([], [], color=f"C{i}", marker="os"[i], linestyle="", label=f"{name} embedding"))
    axes.set(xlabel="train fraction", ylabel="epoch of test accuracy 0.5", ylim=(0, None), xticks=list(INITS))
    legend(figure, handles)
    figure.suptitle("x + y, P = 97, each seed a mark", fontsize="medium")
    return {"prime_fig20": figure}


def _starts(tree: xr.DataTree) -> xr.DataArray:
    return first_epoch(grid(tree, TEST).sel(init_scale=1.0, drop=True) >= _STARTS)


def _claim(fraction: float) -> Claim:
    normal, toeplitz = INITS[fraction]
    return Claim(
        name=f"toeplitz_halves_the_time_{fraction:g}",
        says=f"A Toeplitz embedding at the start halves the time to understanding, train fraction {fraction:g}.",
        source="App. E, Fig. 20",
        statistic="log2 of the epoch of test accuracy 0.5, Toeplitz over random",
        values=lambda results: xr.DataArray(np.log2(_starts(results[toeplitz.name]) / _starts(results[normal.name]))),
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
