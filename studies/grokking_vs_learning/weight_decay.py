"""Figs. 18 and 19: ten times the weight decay, and the network that adds is compressed to a twentieth."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.compressibility import COMPRESSIBILITY, compressibility
from studies.grokking_vs_learning.correlates import PAIRS, correlates
from studies.grokking_vs_learning.sweeps import COMPRESSED, DECAY, DECAY_200, EDGE, MOD_ADD, MORE_DECAY
from studies.readings import end, is_status, learned, over_scales, rank_correlation
from studies.study import Study

_NAMES = {
    "mod_add": "weight decay 3e-5",
    "decay": "3e-4",
    "more_decay": "4e-4",
    "decay_200": "3e-4, batch size 200",
}


def draw(results: Results) -> Mapping[str, Figure]:
    """Pruning curves (Fig. 18), what C goes with (Fig. 19), and C of all weight decays."""
    figures = {}
    if "decay" in results:
        figures["fig18"] = pruning_curves(results["decay"], "pruning")
        figures["fig19"] = correlates(results["decay"])
    trees = {label: results[name] for name, label in _NAMES.items() if name in results}
    if len(trees) > 1:
        quantities = {
            COMPRESSIBILITY: "compressibility $C$",
            "ipr/mean_ipr": "mean IPR",
            "evaluation/test_accuracy": "test accuracy at the end",
        }
        figures["fig18b"] = against_scale(trees, quantities, log=[COMPRESSIBILITY])
    return figures


def _fall(results: Results) -> xr.DataArray:
    ipr = [
        learned(results[name], end(results[name], "ipr/mean_ipr")).sel(init_scale=COMPRESSED, drop=True)
        for name in ("mod_add", "decay")
    ]
    return xr.DataArray(np.log10(ipr[0] / ipr[1]))


def _kept(tree: xr.DataTree) -> xr.DataArray:
    return learned(tree, end(tree, "pruning/final_kept_share"))


def _mean_compressibility(results: Results) -> xr.DataArray:
    found = compressibility(results["decay"])
    return found.where(found.init_scale <= EDGE).mean("init_scale")


def _highest_accuracy(results: Results) -> xr.DataArray:
    """What has diverged has learned nothing."""
    tree = results["more_decay"]
    return end(tree, "evaluation/test_accuracy").where(is_status(tree, "diverged") != 1, 0.0).max("init_scale")


def _worse_loss(results: Results) -> xr.DataArray:
    """Spearman's ρ of C and the train loss over the init_scales that learn."""
    tree = results["decay"]
    return over_scales(rank_correlation, end(tree, "evaluation/train_loss"), compressibility(tree))


def _of_batches(results: Results) -> xr.DataArray:
    highest = [compressibility(results[name]).max("init_scale") for name in ("decay_200", "decay")]
    return xr.DataArray(np.log(highest[0] / highest[1]))


CLAIMS = (
    Claim(
        name="compressed_25_times",
        says="At weight decay 3e-4 compressibility goes beyond 20, to 25.",
        source="Sec. 5, Fig. 5a inset; App. E, Fig. 18",
        statistic="highest C over the init_scales that learn",
        values=lambda results: compressibility(results["decay"]).max("init_scale"),
        side=">",
        threshold=20,
        paper="25",
        main=True,
    ),
    Claim(
        name="compressed_throughout",
        says="Not the best of them alone: in the compressive regime C is beyond 20 on average.",
        source="ours, of Sec. 5",
        statistic="mean C over init_scale ≤ 0.4, of those that learn",
        values=_mean_compressibility,
        side=">",
        threshold=20,
        main=True,
    ),
    Claim(
        name="five_percent_kept",
        says="At weight decay 3e-4 a twentieth of the weights keeps 95 % of the accuracy.",
        source="App. E, Fig. 18",
        statistic="smallest share of weights that keeps 95 % of the accuracy over the init_scales that learn",
        values=lambda results: _kept(results["decay"]).min("init_scale"),
        side="<",
        threshold=0.065,
        paper=".05",
        main=True,
    ),
    Claim(
        name="ipr_breaks_down",
        says="At weight decay 3e-4 the IPR falls by close to ten times.",
        source="Sec. 5; App. E, Fig. 19",
        statistic="log10 of the mean IPR at weight decay 3e-5 over that at 3e-4, init_scale 0.1",
        values=_fall,
        side=">",
        threshold=0.7,
        paper="close to 1",
        main=True,
        of_ends=True,
    ),
    Claim(
        name="breakdown_beyond",
        says="At a weight decay a third larger, 4e-4, the network does not learn.",
        source="Sec. 5",
        statistic="highest test accuracy over init_scale ≤ 0.4 at weight decay 4e-4",
        values=_highest_accuracy,
        side="<",
        threshold=0.5,
        paper="none learns",
        main=True,
    ),
    Claim(
        name="losses_fall",
        says="At weight decay 3e-4 C and the training loss are negatively related.",
        source="App. E, Fig. 19",
        statistic="Spearman's ρ of C and the train loss over the init_scales that learn",
        values=_worse_loss,
        side="<",
        threshold=0,
    ),
    Claim(
        name="batch_200_at_3e-4",
        says="At batch size 200 weight decay 3e-4 compresses less than at 64.",
        source="ours, of Apps. D and E",
        statistic="log of the ratio of the highest C, batch size 200 to 64",
        values=_of_batches,
        side="<",
        threshold=0,
        of_ends=True,
    ),
)

STUDY = Study(
    name="weight_decay",
    title="How far can compression go?",
    figures=("fig18", "fig19"),
    sweeps=(MOD_ADD, DECAY, MORE_DECAY, DECAY_200),
    draws=dict.fromkeys(
        ("pruning/accuracy", "pruning/loss", "pruning/final_kept_share", "evaluation/test_accuracy", *PAIRS)
    ),
    claims=CLAIMS,
    draw=draw,
)
