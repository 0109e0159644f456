"""Fig. 15: what the compressibility of networks that add goes with, the local learning coefficient among it."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from studies.claims import Claim, Results
from studies.drawing import scatter
from studies.grokking_vs_learning.compressibility import COMPRESSIBILITY, compressibility
from studies.grokking_vs_learning.sweeps import MOD_ADD
from studies.readings import end, learned, over_scales, rank_correlation
from studies.study import Study

#: What is drawn against C, with its axis.
QUANTITIES = {
    "evaluation/train_loss": "train loss",
    "evaluation/test_loss": "test loss",
    "ipr/mean_ipr": "mean IPR",
    "weights/gini": "Gini coefficient of |w|",
    "fim_trajectory/gini": "Gini coefficient of F",
    "evaluation/weight_norm": "norm of the weights",
    "llc/coefficient": "local learning coefficient",
}
PAIRS = (COMPRESSIBILITY, *QUANTITIES)
_VARIANT = "classif_logits"


def correlates(tree: xr.DataTree) -> Figure:
    """Quantities at the end of the training against the compressibility."""
    there = {p: name for p, name in QUANTITIES.items() if p.partition("/")[0] in tree.children}
    pairs = [(COMPRESSIBILITY, path, "compressibility $C$", name) for path, name in there.items()]
    return scatter(tree, pairs, variant=_VARIANT)


def draw(results: Results) -> Mapping[str, Figure]:
    """All of them in one figure."""
    return {"fig15": correlates(results["mod_add"])} if "mod_add" in results else {}


def _with_compressibility(path: str, results: Results, **labels: str) -> xr.DataArray:
    tree = results["mod_add"]
    return over_scales(rank_correlation, end(tree, path, **labels), compressibility(tree))


def _gini_gap(results: Results) -> xr.DataArray:
    tree = results["mod_add"]
    of_fisher = end(tree, "fim_trajectory/gini", variant=_VARIANT)
    return learned(tree, of_fisher - end(tree, "weights/gini")).min("init_scale")


CLAIMS = (
    Claim(
        name="test_loss_unrelated",
        says="C and the test loss are unrelated.",
        source="Sec. 5, App. D, Fig. 15",
        statistic="Spearman's ρ over the init_scales",
        values=lambda results: _with_compressibility("evaluation/test_loss", results),
        side="within",
        threshold=(-0.5, 0.5),
        paper="0",
    ),
    Claim(
        name="ipr_falls",
        says="More compressible networks are less localised.",
        source="App. D, Fig. 15",
        statistic="Spearman's ρ of C and the mean IPR over the init_scales",
        values=lambda results: _with_compressibility("ipr/mean_ipr", results),
        side="<",
        threshold=0,
    ),
    Claim(
        name="gini_of_weights",
        says="More compressible networks have less equal weights.",
        source="App. D, Fig. 15",
        statistic="Spearman's ρ of C and the Gini coefficient of |w| over the init_scales",
        values=lambda results: _with_compressibility("weights/gini", results),
        side=">",
        threshold=0,
    ),
    Claim(
        name="gini_of_fisher",
        says="More compressible networks have a less equal Fisher information.",
        source="App. D, Fig. 15",
        statistic="Spearman's ρ of C and the Gini coefficient of F over the init_scales",
        values=lambda results: _with_compressibility("fim_trajectory/gini", results, variant=_VARIANT),
        side=">",
        threshold=0,
    ),
    Claim(
        name="gini_gap",
        says="The Fisher information is less equal than the weights.",
        source="App. D, Fig. 15",
        statistic="Gini coefficient of F less that of |w|, least over the init_scales",
        values=_gini_gap,
        side=">",
        threshold=0,
        main=True,
    ),
    Claim(
        name="llc_unrelated",
        says="C and the local learning coefficient are unrelated.",
        source="Sec. 5, App. D, Fig. 15",
        statistic="Spearman's ρ over the init_scales",
        values=lambda results: _with_compressibility("llc/coefficient", results),
        side="within",
        threshold=(-0.5, 0.5),
        paper="0",
        main=True,
    ),
)

STUDY = Study(
    name="correlates",
    title="What does compressibility go with?",
    figures=("fig15",),
    sweeps=(MOD_ADD,),
    draws=dict.fromkeys(PAIRS),
    claims=CLAIMS,
    draw=draw,
)
