"""Figs. 14 and 16: at a batch size of 200 the compressive regime of modular addition is gone."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.compressibility import COMPRESSIBILITY, excess
from studies.grokking_vs_learning.correlates import PAIRS, correlates
from studies.grokking_vs_learning.sweeps import BATCH_200, BATCH_200_RESHUFFLED, COMPRESSED, GROKS, MOD_ADD
from studies.readings import end, learned
from studies.study import Study

_NAMES = {"mod_add": "batch size 64", "batch_200": "200", "batch_200_reshuffled": "200, reshuffled"}


def draw(results: Results) -> Mapping[str, Figure]:
    """Pruning curves (Fig. 14), what C goes with (Fig. 16), and C of all batch sizes."""
    figures = {}
    if "batch_200" in results:
        figures["fig14"] = pruning_curves(results["batch_200"], "pruning")
        figures["fig16"] = correlates(results["batch_200"])
    trees = {label: results[name] for name, label in _NAMES.items() if name in results}
    if len(trees) > 1:
        quantities = {COMPRESSIBILITY: "compressibility $C$", "evaluation/train_loss": "train loss at the end"}
        figures["fig14b"] = against_scale(trees, quantities, log=["evaluation/train_loss"])
    return figures


def _ipr_difference(results: Results) -> xr.DataArray:
    tree = results["batch_200"]
    ipr = learned(tree, end(tree, "ipr/mean_ipr"))
    return ipr.sel(init_scale=GROKS, drop=True) - ipr.sel(init_scale=COMPRESSED, drop=True)


CLAIMS = (
    Claim(
        name="no_regime_at_200",
        says="At batch size 200 small initial weights leave C as it is.",
        source="App. D, Fig. 14",
        statistic="C(0.1) / C(1) − 1, batch size 200",
        values=lambda results: excess(results["batch_200"]),
        side="within",
        threshold=(-0.1, 0.1),
        paper="0",
        main=True,
    ),
    Claim(
        name="no_regime_at_200_reshuffled",
        says="At batch size 200, reshuffled, they leave it as it is, too.",
        source="ours, of App. D",
        statistic="C(0.1) / C(1) − 1, batch size 200, reshuffled",
        values=lambda results: excess(results["batch_200_reshuffled"]),
        side="within",
        threshold=(-0.1, 0.1),
    ),
    Claim(
        name="same_ipr_at_200",
        says="At batch size 200 the IPR does not depend on init_scale.",
        source="App. D, Fig. 16",
        statistic="mean IPR, init_scale 10 less 0.1",
        values=_ipr_difference,
        side="within",
        threshold=(-0.05, 0.05),
        paper="0",
    ),
)

STUDY = Study(
    name="batch_size",
    title="Does the compressive regime survive larger batches?",
    figures=("fig14", "fig16"),
    sweeps=(MOD_ADD, BATCH_200, BATCH_200_RESHUFFLED),
    draws=dict.fromkeys(("pruning/accuracy", "pruning/loss", "pruning/final_kept_share", *PAIRS)),
    claims=CLAIMS,
    draw=draw,
)
