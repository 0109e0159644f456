"""Fig. 6: on the plateau of modular addition the Fourier modes grow, and compressibility peaks right after it."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.fourier import ipr_development
from lit_grok.figures.pruning import compressibility_development
from studies.claims import Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, MOD_ADD, MOD_ADD_STEADY
from studies.readings import at, end, grid, grokked, learned
from studies.study import Study, chosen

_SHOWN = (MOD_ADD_STEADY, GROKS)
_C = "pruning/compressibility"


def draw(results: Results) -> Mapping[str, Figure]:
    """Mean IPR (a, b) and compressibility (c, d) while the networks train."""
    if "mod_add" not in results:
        return {}
    tree = chosen(results["mod_add"], _SHOWN)
    return {"fig6a": ipr_development(tree, "ipr"), "fig6c": compressibility_development(tree, "pruning")}


def _growth(results: Results) -> xr.DataArray:
    """Over the first 80 % of the plateau, before the test accuracy rises."""
    tree = results["mod_add"]
    t_train, t_test = grid(tree, "t_train"), grid(tree, "t_test")
    growth = at(tree, "ipr/mean_ipr", 0.8 * t_test) / at(tree, "ipr/mean_ipr", t_train)
    return grokked(tree, growth).sel(init_scale=GROKS, drop=True)


def _transient(results: Results, scale: float) -> xr.DataArray:
    """How far the peak of C lies above its end, both on the fractions that are pruned during the training."""
    tree = results["mod_add"]
    mask = grokked if scale == GROKS else learned
    return mask(tree, grid(tree, _C).max("epoch") / end(tree, _C) - 1).sel(init_scale=scale, drop=True)


def _delay(results: Results) -> xr.DataArray:
    tree = results["mod_add"]
    curve = grid(tree, _C).dropna("epoch", how="all").sel(init_scale=GROKS, drop=True)
    return curve.idxmax("epoch") / grokked(tree, grid(tree, "t_test")).sel(init_scale=GROKS, drop=True)


CLAIMS = (
    Claim(
        name="ipr_grows_on_plateau",
        says="The Fourier modes grow on the plateau, before the test accuracy does.",
        source="Sec. 6.1, Fig. 6",
        statistic="mean IPR at 0.8 t_test over that at t_train, init_scale 10",
        values=_growth,
        side=">",
        threshold=1.2,
        main=True,
    ),
    Claim(
        name="peak_after_plateau",
        says="C peaks right after the plateau.",
        source="Sec. 6.2, Fig. 6c",
        statistic="epoch of the highest C over t_test, init_scale 10",
        values=_delay,
        side="within",
        threshold=(1, 2),
    ),
    Claim(
        name="transient_grokking",
        says="In grokking the peak of C lies 67 % above its end.",
        source="Sec. 6.2, Fig. 6c",
        statistic="highest C over the last one, less 1, init_scale 10",
        values=lambda results: _transient(results, GROKS),
        side="within",
        threshold=(0.5, 0.85),
        paper=".67",
        main=True,
    ),
    Claim(
        name="transient_steady",
        says="In steady learning the peak of C lies 50 % above its end.",
        source="Sec. 6.2, Fig. 6d",
        statistic="highest C over the last one, less 1, init_scale 1",
        values=lambda results: _transient(results, MOD_ADD_STEADY),
        side="within",
        threshold=(0.35, 0.65),
        paper=".50",
        main=True,
    ),
)

STUDY = Study(
    name="modular_development",
    title="What develops on the plateau of modular addition?",
    figures=("fig6",),
    sweeps=(MOD_ADD,),
    draws={
        **{f"evaluation/{name}": _SHOWN for name in ("train_accuracy", "test_accuracy")},
        **{f"ipr/{name}": _SHOWN for name in ("mean_ipr", "set_ipr", "dead_neurons")},
        **{f"pruning/{name}": _SHOWN for name in ("compressibility", "kept_share")},
    },
    claims=CLAIMS,
    draw=draw,
)
