"""Fig. 5: in modular addition small initial weights buy compressibility with training loss; in Ising nothing does."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import Claim, Results
from studies.drawing import against_scale, scatter
from studies.grokking_vs_learning.sweeps import COMPRESSED, EDGE, ISING, MOD_ADD, MOD_ADD_SCALES, MOD_ADD_STEADY
from studies.readings import determination, end, learned, over_scales, rank_correlation, slope
from studies.study import Study, living

COMPRESSIBILITY, LOSS = "pruning/final_compressibility", "evaluation/train_loss"
_REGIME = tuple(scale for scale in MOD_ADD_SCALES if scale <= EDGE)
_PAIR = (LOSS, COMPRESSIBILITY, "train loss at the end", "compressibility $C$")


def draw(results: Results) -> Mapping[str, Figure]:
    """Pruning curves (a, b), compressibility against the training loss (c, d) and against init_scale."""
    figures = {}
    for curve, cloud, name in (("a", "c", "mod_add"), ("b", "d", "ising")):
        if name in results:
            figures[f"fig5{curve}"] = pruning_curves(living(results[name]), "pruning")
            figures[f"fig5{cloud}"] = scatter(living(results[name]), [_PAIR])
    if len(figures) == 4:
        quantities = {COMPRESSIBILITY: "compressibility $C$", "pruning/final_kept_share": "kept for 95 %"}
        figures["fig5e"] = against_scale({name: living(results[name]) for name in ("mod_add", "ising")}, quantities)
    return figures


def compressibility(tree: xr.DataTree) -> xr.DataArray:
    """C at the end, of the networks that have learned."""
    return learned(tree, end(tree, COMPRESSIBILITY))


def excess(tree: xr.DataTree) -> xr.DataArray:
    """How much more compressible the smallest init_scale leaves the network than steady learning at 1, as a share."""
    found = compressibility(tree)
    return found.sel(init_scale=COMPRESSED, drop=True) / found.sel(init_scale=MOD_ADD_STEADY, drop=True) - 1


def _line(statistic, results: Results) -> xr.DataArray:
    tree = results["mod_add"]
    return over_scales(statistic, end(tree, LOSS), compressibility(tree), _REGIME)


def _flat(results: Results) -> xr.DataArray:
    """How far C is from its mean above the edge, at most."""
    found = compressibility(results["mod_add"])
    above = found.where(found.init_scale > EDGE, drop=True)
    return abs(above / above.mean("init_scale") - 1).max("init_scale")


def _below_edge(results: Results) -> xr.DataArray:
    found = compressibility(results["mod_add"])
    return found.sel(init_scale=COMPRESSED, drop=True) / found.sel(init_scale=EDGE, drop=True) - 1


def _trade_off(results: Results) -> xr.DataArray:
    tree = results["ising"]
    return over_scales(rank_correlation, end(tree, LOSS), compressibility(tree))


def _trend(results: Results) -> xr.DataArray:
    found = compressibility(results["ising"])
    scales = found.init_scale.broadcast_like(found)
    return over_scales(rank_correlation, scales, found)


CLAIMS = (
    Claim(
        name="compressive_regime",
        says="Below an init_scale of 0.4 networks that add become more compressible.",
        source="Sec. 5, Fig. 5a",
        statistic="C(0.1) / C(1) − 1",
        values=lambda results: excess(results["mod_add"]),
        side=">",
        threshold=0.1,
        main=True,
    ),
    Claim(
        name="rise_below_the_edge",
        says="It is below 0.4 that they do, not at it.",
        source="Sec. 5, Fig. 5a",
        statistic="C(0.1) / C(0.4) − 1",
        values=_below_edge,
        side=">",
        threshold=0.1,
    ),
    Claim(
        name="trade_off_linear",
        says="Below 0.4 C is linear in the training loss.",
        source="Sec. 5, Fig. 5c",
        statistic="r² of C against the train loss over init_scale ≤ 0.4",
        values=lambda results: _line(determination, results),
        side=">",
        threshold=0.8,
        main=True,
    ),
    Claim(
        name="trade_off_rises",
        says="Below 0.4 a higher training loss goes with a higher C.",
        source="Sec. 5, Fig. 5c",
        statistic="slope of C against the train loss over init_scale ≤ 0.4",
        values=lambda results: _line(slope, results),
        side=">",
        threshold=0,
    ),
    Claim(
        name="grokking_flat",
        says="Above 0.4 C does not depend on init_scale.",
        source="Sec. 5, Fig. 5a",
        statistic="largest |C / mean of C − 1| over init_scale > 0.4",
        values=_flat,
        side="<",
        threshold=0.1,
        paper="0",
        main=True,
    ),
    Claim(
        name="ising_no_trade_off",
        says="In the Ising task C and the training loss are unrelated.",
        source="Sec. 5, Fig. 5d",
        statistic="Spearman's ρ of C and the train loss over the init_scales that learn",
        values=_trade_off,
        side="within",
        threshold=(-0.5, 0.5),
        paper="0",
        main=True,
    ),
    Claim(
        name="ising_no_trend",
        says="In the Ising task C and init_scale are unrelated.",
        source="Sec. 5, Fig. 5b",
        statistic="Spearman's ρ of C and init_scale over the init_scales that learn",
        values=_trend,
        side="within",
        threshold=(-0.5, 0.5),
        paper="0",
    ),
)

STUDY = Study(
    name="compressibility",
    title="Are grokked networks more compressible?",
    figures=("fig5",),
    sweeps=(MOD_ADD, ISING),
    draws={
        **dict.fromkeys(("pruning/accuracy", "pruning/loss", COMPRESSIBILITY, "pruning/final_kept_share")),
        "evaluation/train_loss": None,
    },
    claims=CLAIMS,
    draw=draw,
)
