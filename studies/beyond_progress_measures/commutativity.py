"""Fig. 4: what keeps x² + xy + y² from being learned, and what of it is."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import legend, title
from studies.beyond_progress_measures.sweeps import FRACTIONS, PRIME, QUADRATIC
from studies.claims import Claim, Results
from studies.readings import end
from studies.study import Study

ACCURACY, TEST = "coverage/accuracy", "evaluation/test_accuracy"
_GROUPS: dict[str, tuple[str, Literal["-", "--"]]] = {
    "transpose trained": ("o", "-"),
    "transpose not trained": ("s", "--"),
}


def draw(results: Results) -> Mapping[str, Figure]:
    """Accuracy of test pairs whose transpose was trained, and of the others, against the fraction."""
    there = [(f, results[s.name]) for f, s in QUADRATIC.items() if s.name in results]
    if not there:
        return {}
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes, handles = figure.subplots(), []
    fractions = [fraction for fraction, _ in there]
    for colour, (group, (mark, line)) in enumerate(_GROUPS.items()):
        values = [end(tree, ACCURACY, group=group).values.ravel() for _, tree in there]
        for fraction, seeds in zip(fractions, values, strict=True):
            axes.plot([fraction] * len(seeds), seeds, mark, color=f"C{colour}", markersize=4, alpha=0.6)
        axes.plot(fractions, [np.nanmean(seeds) for seeds in values], line, color=f"C{colour}")
        handles.append(Line2D([], [], color=f"C{colour}", marker=mark, linestyle=line, label=group))
    means = [float(end(tree, TEST).mean()) for _, tree in there]
    axes.plot(fractions, means, color="0.2", linewidth=2.5, alpha=0.5)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    handles.append(Line2D([], [], color="0.2", alpha=0.5, linewidth=2.5, label="all test pairs"))
    handles.append(Line2D([], [], color="0.6", linewidth=0.8, linestyle=":", label="share of trained transposes"))
    axes.set(xlabel="train fraction", ylabel="test accuracy at the end", ylim=(-0.03, 1.03), xlim=(0.2, 0.8))
    legend(figure, handles)
    title(figure, "x² + xy + y², P = 97, each seed a mark")
    return {"prime_fig4": figure}


def _least(results: Results, group: str, most: bool = False) -> xr.DataArray:
    """Accuracy of a group at the end, the least, or the most, over the fractions."""
    each = [_last(results[QUADRATIC[fraction].name], ACCURACY, group=group) for fraction in FRACTIONS]
    joined = xr.concat(each, "fraction", join="outer")
    return joined.max("fraction", skipna=False) if most else joined.min("fraction", skipna=False)


def _last(tree: xr.DataTree, path: str, **labels: str) -> xr.DataArray:
    return end(tree, path, **labels).sel(init_scale=1.0, drop=True)


def _correct(results: Results, fraction: float) -> xr.DataArray:
    """Share of all pairs that are test pairs answered rightly."""
    return (1 - fraction) * _last(results[QUADRATIC[fraction].name], TEST)


CLAIMS = (
    Claim(
        name="quadratic_is_not_learned",
        says="Even with seven tenths of the pairs x² + xy + y² is not learned.",
        source="Sec. 6.2, Fig. 4",
        statistic="test accuracy at the end, train fraction 0.7",
        values=lambda results: _last(results[QUADRATIC[0.7].name], TEST),
        side="<",
        threshold=0.9,
        main=True,
    ),
    Claim(
        name="correct_stay_as_many",
        says="The number of test pairs that are answered rightly does not grow with the training set.",
        source="Sec. 6.2, Fig. 4",
        statistic="test pairs answered rightly, train fraction 0.7 over 0.5",
        values=lambda results: _correct(results, 0.7) / _correct(results, 0.5),
        side="<",
        threshold=1.1,
        paper="about constant",
    ),
    Claim(
        name="transposes_are_known",
        says="In x² + xy + y² every pair is known whose transpose was trained.",
        source="ours",
        statistic="accuracy of these at the end, least over the train fractions",
        values=lambda results: _least(results, "transpose trained"),
        side=">",
        threshold=0.95,
        main=True,
    ),
    Claim(
        name="nothing_else_is",
        says="And nothing else: what is learned is that the operation commutes.",
        source="ours",
        statistic="accuracy of all other test pairs at the end, most over the train fractions",
        values=lambda results: _least(results, "transpose not trained", most=True),
        side="<",
        threshold=0.1,
        main=True,
    ),
    Claim(
        name="sums_are_understood",
        says="In x + y the pairs whose transpose was not trained are known as well.",
        source="ours",
        statistic="accuracy of these at the end, train fraction 0.3",
        values=lambda results: _last(results[PRIME.name], ACCURACY, group="transpose not trained"),
        side=">",
        threshold=0.9,
    ),
)

STUDY = Study(
    name="commutativity",
    title="Is x² + xy + y² more than its symmetry?",
    figures=("prime_fig4",),
    sweeps=(PRIME, *QUADRATIC.values()),
    draws=dict.fromkeys((ACCURACY, TEST)),
    claims=CLAIMS,
    draw=draw,
)
