"""Table 1: what a training set with a hole makes possible."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_grok.figures.common import legend, title
from studies.beyond_progress_measures.sweeps import SQUARE, SQUARES, STRIP, STRIPS
from studies.claims import Claim, Results
from studies.readings import at, end, first_epoch, grid
from studies.runs import Sweep
from studies.study import Study

ACCURACY, TEST = "coverage/accuracy", "evaluation/test_accuracy"
_LEARNED = 0.9


def draw(results: Results) -> Mapping[str, Figure]:
    """Accuracy in the hole and outside it at the end, and the highest of all, against the size of the hole."""
    holes = [(name, sweeps, paper) for name, sweeps, paper in (("square", SQUARE, SQUARES), ("strip", STRIP, STRIPS))]
    if not any(sweep.name in results for _, sweeps, _ in holes for sweep in sweeps.values()):
        return {}
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    handles: list[Line2D] = []
    for axes, (name, sweeps, paper) in zip(figure.subplots(1, 2, sharey=True), holes, strict=True):
        there = {size: results[sweep.name] for size, sweep in sweeps.items() if sweep.name in results}
        lines = {
            "outside the hole, at the end": [end(tree, ACCURACY, group="outside") for tree in there.values()],
            "in the hole, at the end": [end(tree, ACCURACY, group="hole") for tree in there.values()],
            "all test pairs, highest": [grid(tree, TEST).max("epoch") for tree in there.values()],
        }
        for i, (label, values) in enumerate(lines.items()):
            for size, seeds in zip(there, values, strict=True):
                axes.plot([size] * seeds.size, seeds.values.ravel(), "o", color=f"C{i}", markersize=4, alpha=0.6)
            axes.plot(list(there), [float(seeds.mean()) for seeds in values], color=f"C{i}")
            handles.append(Line2D([], [], color=f"C{i}", marker="o", label=label))
        axes.plot(list(paper), list(paper.values()), "k_", markersize=14)
        handles.append(
            Line2D([], [], color="k", marker="_", linestyle="", markersize=14, label="all test pairs, in the paper")
        )
        axes.set(xlabel=f"largest residue of the {name}", ylim=(-0.03, 1.03))
    figure.axes[0].set_ylabel("test accuracy")
    legend(figure, handles)
    title(figure, "x + y, P = 97, train fraction 0.3, 12 000 epochs, each seed a mark")
    return {"prime_table1": figure}


def _highest(results: Results, sweep: Sweep) -> xr.DataArray:
    return grid(results[sweep.name], TEST).max("epoch").sel(init_scale=1.0, drop=True)


def _hole_when_rest_is_known(results: Results, sweep: Sweep) -> xr.DataArray:
    """Accuracy in the hole when that outside it first reaches .9; NaN where it never does."""
    tree = results[sweep.name]
    known = first_epoch(grid(tree, ACCURACY, group="outside") >= _LEARNED)
    return at(tree, ACCURACY, known, group="hole").sel(init_scale=1.0, drop=True)


def _falls(results: Results, sweeps: Mapping[int, Sweep]) -> xr.DataArray:
    """Largest rise of the highest test accuracy from a hole to the next larger one."""
    each = xr.concat([_highest(results, sweep) for sweep in sweeps.values()], "size", join="outer")
    return xr.DataArray(np.diff(each.values, axis=0).max(0), {"seed": each.seed}, ("seed",))


def _ceiling(hole: str, size: int, sweep: Sweep, paper: float) -> Claim:
    return Claim(
        name=f"{hole}_{size}",
        says=f"With a {hole} up to {size} left out the test accuracy reaches {100 * paper:.0f} %.",
        source="Table 1",
        statistic="highest test accuracy in 12 000 epochs",
        values=lambda results: _highest(results, sweep),
        side="within",
        threshold=(round(paper - 0.05, 4), min(round(paper + 0.05, 4), 1)),
        paper=f"{paper:.3f}",
    )


CLAIMS = (
    *(_ceiling("square", size, SQUARE[size], paper) for size, paper in SQUARES.items()),
    *(_ceiling("strip", size, STRIP[size], paper) for size, paper in STRIPS.items() if size != 67),
    Claim(
        name="squares_lower_the_ceiling",
        says="The larger the square, the lower the ceiling.",
        source="Table 1",
        statistic="largest rise of the highest test accuracy from a square to the next",
        values=lambda results: _falls(results, SQUARE),
        side="<",
        threshold=0,
        main=True,
    ),
    Claim(
        name="strip_67_never_groks",
        says="With the strip up to 67 left out grokking disappears.",
        source="Table 1",
        statistic="highest test accuracy in 12 000 epochs, strip up to 67",
        values=lambda results: _highest(results, STRIP[67]),
        side="<",
        threshold=0.15,
        paper="0.076",
        main=True,
    ),
    Claim(
        name="square_is_not_learned_with_the_rest",
        says="When the rest of the table is known, nothing of a square hole is.",
        source="ours",
        statistic="accuracy in the hole when that outside it reaches 0.9, square up to 45",
        values=lambda results: _hole_when_rest_is_known(results, SQUARE[45]),
        side="<",
        threshold=0.1,
        main=True,
    ),
    Claim(
        name="strip_is_learned_with_the_rest",
        says="A strip, whose transposes are trained on, is learned with the rest in part.",
        source="ours",
        statistic="accuracy in the hole when that outside it reaches 0.9, strip up to 50",
        values=lambda results: _hole_when_rest_is_known(results, STRIP[50]),
        side=">",
        threshold=0.2,
    ),
)

STUDY = Study(
    name="holes",
    title="What does a hole in the training set forbid?",
    figures=("prime_table1",),
    sweeps=(*SQUARE.values(), *STRIP.values()),
    draws=dict.fromkeys((ACCURACY, TEST)),
    claims=CLAIMS,
    draw=draw,
)
