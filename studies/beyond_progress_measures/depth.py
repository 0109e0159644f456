"""Fig. 2: does a deeper transformer forget what it has understood, while its embedding goes on becoming uniform?"""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import title
from lit_grok.figures.embedding import uniformity_development
from studies.beyond_progress_measures.embedding_difference import MED, NORM, RELATIVE
from studies.beyond_progress_measures.operations import BEST
from studies.beyond_progress_measures.sweeps import DEPTHS
from studies.claims import Claim, Results
from studies.readings import first_epoch, grid, rank_correlation
from studies.study import Study

TEST, TRAIN = "evaluation/test_accuracy", "evaluation/train_accuracy"
_UNDERSTOOD = 0.9
_DEEP = max(DEPTHS)


def draw(results: Results) -> Mapping[str, Figure]:
    """Accuracy, MED and norm against the epoch, of every depth."""
    figures = {}
    for layers, sweep in DEPTHS.items():
        if sweep.name in results:
            figure = figures[f"prime_fig2_{layers}"] = uniformity_development(results[sweep.name], "uniformity")
            title(figure, f"x + y, P = 97, {layers} layer{'s' * (layers > 1)}")
    return figures


def _fall(tree: xr.DataTree) -> xr.DataArray:
    """How deep the test accuracy falls below `_UNDERSTOOD` once it has passed it; 0 where it never does."""
    accuracy = grid(tree, TEST).sel(init_scale=1.0, drop=True).dropna("epoch", how="all")
    after = accuracy.where(accuracy.epoch >= first_epoch(accuracy >= _UNDERSTOOD))
    return (_UNDERSTOOD - after.min("epoch")).clip(min=0).where(after.notnull().any("epoch"))


def _falls_on(tree: xr.DataTree) -> xr.DataArray:
    """Spearman's ρ of MED and the epoch from the understanding on."""
    med = grid(tree, MED, operand="both").sel(init_scale=1.0, drop=True).dropna("epoch", how="all")
    understood = first_epoch(grid(tree, TEST).sel(init_scale=1.0, drop=True) >= _UNDERSTOOD)
    after = med.where(med.epoch >= understood)

    def rho(values: xr.DataArray) -> float:
        known = values.dropna("epoch")
        return rank_correlation(known.epoch.values, known.values) if known.size >= 5 else float("nan")

    return xr.concat([xr.DataArray(rho(after.sel(seed=seed))) for seed in after.seed.values], after.seed)


CLAIMS = (
    Claim(
        name="depth_makes_it_fall_back",
        says="With more layers the test accuracy fluctuates violently.",
        source="Fig. 2",
        statistic="how far it falls below 0.9 after it has passed it, three layers less one",
        values=lambda results: _fall(results[DEPTHS[_DEEP].name]) - _fall(results[DEPTHS[1].name]),
        side=">",
        threshold=0.1,
        main=True,
    ),
    Claim(
        name="med_falls_on",
        says="Meanwhile the mean embedding difference keeps falling.",
        source="Fig. 2",
        statistic="Spearman's ρ of MED and the epoch from test accuracy 0.9 on, three layers",
        values=lambda results: _falls_on(results[DEPTHS[_DEEP].name]),
        side="<",
        threshold=-0.5,
    ),
)

STUDY = Study(
    name="depth",
    title="Does a deeper transformer fall back?",
    figures=("prime_fig2",),
    sweeps=tuple(DEPTHS.values()),
    draws=dict.fromkeys((TEST, TRAIN, MED, RELATIVE, NORM, BEST)),
    claims=CLAIMS,
    draw=draw,
)
