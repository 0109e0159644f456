"""Figs. 5 and 12 to 19: does the mean embedding difference follow the test loss for every prime and operation?"""

from collections.abc import Iterable, Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import title
from lit_grok.figures.embedding import uniformity_development
from studies.beyond_progress_measures.embedding_difference import LOSS, MED, NORM, RELATIVE, TRAIN, follows
from studies.beyond_progress_measures.sweeps import OPERATIONS, PRIMES
from studies.claims import Claim, Results
from studies.readings import end
from studies.runs import Sweep
from studies.study import Study

TEST, BEST = "evaluation/test_accuracy", "uniformity/smallest_relative_med"


def draw(results: Results) -> Mapping[str, Figure]:
    """Accuracy, MED and norm against the epoch, of every prime and of every operation."""
    figures = {}
    for P, sweep in PRIMES.items():
        if sweep.name in results:
            figures[f"prime_fig5_{P}"] = _development(results[sweep.name], f"x + y, P = {P}")
    for number, (label, sweep) in OPERATIONS.items():
        if sweep.name in results:
            figures[f"prime_fig{number}"] = _development(results[sweep.name], f"{label}, P = 97")
    return figures


def _development(tree: xr.DataTree, heading: str) -> Figure:
    figure = uniformity_development(tree, "uniformity")
    title(figure, heading)
    return figure


def _least(results: Results, sweeps: Iterable[Sweep]) -> xr.DataArray:
    """Spearman's ρ of MED and test loss, least over sweeps."""
    each = [follows(results[sweep.name], MED) for sweep in sweeps]
    return xr.concat(each, "setting", join="outer").min("setting", skipna=False)


def _accuracy(results: Results, number: int) -> xr.DataArray:
    return end(results[OPERATIONS[number][1].name], TEST).sel(init_scale=1.0, drop=True)


CLAIMS = (
    Claim(
        name="med_follows_for_every_prime",
        says="The mean embedding difference follows the test loss for P = 47, 97, 211 and 379.",
        source="Sec. 6.3, Fig. 5",
        statistic="Spearman's ρ of MED and test loss from train accuracy 1 on, least over the primes",
        values=lambda results: _least(results, PRIMES.values()),
        side=">",
        threshold=0.5,
        main=True,
    ),
    Claim(
        name="med_follows_in_every_operation",
        says="It follows the test loss in every operation.",
        source="App. E, Figs. 12-19",
        statistic="Spearman's ρ of MED and test loss from train accuracy 1 on, least over eight settings",
        values=lambda results: _least(results, [sweep for _, sweep in OPERATIONS.values()]),
        side=">",
        threshold=0.5,
        main=True,
    ),
    Claim(
        name="differences_are_understood",
        says="x − y is understood.",
        source="Fig. 12",
        statistic="test accuracy at the end",
        values=lambda results: _accuracy(results, 12),
        side=">",
        threshold=0.9,
    ),
    Claim(
        name="products_are_understood",
        says="x y is understood.",
        source="Fig. 13",
        statistic="test accuracy at the end",
        values=lambda results: _accuracy(results, 13),
        side=">",
        threshold=0.9,
    ),
)

STUDY = Study(
    name="operations",
    title="Does the mean embedding difference follow the test loss for every prime and operation?",
    figures=("prime_fig5", *(f"prime_fig{number}" for number in OPERATIONS)),
    sweeps=(*PRIMES.values(), *(sweep for _, sweep in OPERATIONS.values())),
    draws=dict.fromkeys((LOSS, TRAIN, TEST, MED, RELATIVE, NORM, BEST)),
    claims=CLAIMS,
    draw=draw,
)
