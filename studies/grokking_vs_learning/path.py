"""Figs. 8 and 34: under the Fisher information grokking walks a straight line, and in the Ising task to the origin."""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.geometry import directions
from studies.claims import TASKS, Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY, MOD_ADD, MOD_ADD_STEADY
from studies.readings import between, grid, grokked, learned, time_mean
from studies.study import Study, chosen

_SHOWN = {"ising": (ISING_STEADY, GROKS), "mod_add": (MOD_ADD_STEADY, GROKS)}
VARIANT = "classif_logits"
_FISHER = {"variant": VARIANT, "metric": "fisher", "subspace": "all"}
CONSECUTIVE, ORIGIN = "fim_trajectory/step_cosine", "fim_trajectory/origin_cosine"
_UNDER = ", Fisher information of the classifier"
_EARLY = 3000  # epochs in which a steady Ising network does its learning


def draw(results: Results) -> Mapping[str, Figure]:
    """Cosines of consecutive steps and with the way to the origin (Fig. 8), and in the subspaces (Fig. 34)."""
    return {
        f"fig8-34-{name}": directions(chosen(results[name], scales), "fim_trajectory", VARIANT)
        for name, scales in _SHOWN.items()
        if name in results
    }


def on_plateau(tree: xr.DataTree, path: str, scale: float = GROKS) -> xr.DataArray:
    """Mean of a cosine from t_train to t_test, of the seeds that grok.

    Args:
        tree: The results of a sweep.
        path: `CONSECUTIVE` or `ORIGIN`.
        scale: The init_scale at which they grok.
    """
    found = between(tree, path, grid(tree, "t_train"), grid(tree, "t_test"), time_mean, _FISHER)
    return grokked(tree, found).sel(init_scale=scale, drop=True)


def _steady(results: Results) -> xr.DataArray:
    tree = results["ising"]
    found = between(tree, ORIGIN, grid(tree, "t_train"), _EARLY, time_mean, _FISHER)
    return learned(tree, found).sel(init_scale=ISING_STEADY, drop=True)


def _late(results: Results, sweep: str, scale: float) -> xr.DataArray:
    """Over the last tenth of the steps, without its sign: seeds on either side of 0 do not make up for each other."""
    curve = grid(results[sweep], CONSECUTIVE, **_FISHER).dropna("epoch", how="all")
    late = curve.isel(epoch=slice(-curve.sizes["epoch"] // 10, None)).mean("epoch")
    return grokked(results[sweep], abs(late)).sel(init_scale=scale, drop=True)


CLAIMS = (
    Claim(
        name="ising_straight",
        says="The Ising network that groks walks a straight line on the plateau.",
        source="Sec. 6.3, Fig. 8a",
        statistic=f"mean cosine of consecutive steps from t_train to t_test, init_scale 10{_UNDER}",
        values=lambda results: on_plateau(results["ising"], CONSECUTIVE),
        side=">",
        threshold=0.95,
        paper="nearly 1",
        main=True,
    ),
    Claim(
        name="ising_to_origin",
        says="The line on which the Ising network groks leads to the origin.",
        source="Sec. 6.3, Fig. 8c",
        statistic=f"mean cosine with the way to the origin from t_train to t_test, init_scale 10{_UNDER}",
        values=lambda results: on_plateau(results["ising"], ORIGIN),
        side=">",
        threshold=0.8,
        paper="approaching 1",
        main=True,
    ),
    Claim(
        name="ising_steady_outwards",
        says="An Ising network that learns steadily walks away from the origin.",
        source="Sec. 6.3, Fig. 8c",
        statistic=f"mean cosine with the way to the origin from t_train to epoch 3000, init_scale 1{_UNDER}",
        values=_steady,
        side="<",
        threshold=0,
        main=True,
    ),
    Claim(
        name="mod_add_straight",
        says="The network that groks modular addition walks a straight line as well.",
        source="Sec. 6.3, Fig. 8b",
        statistic=f"mean cosine of consecutive steps from t_train to t_test, init_scale 10{_UNDER}",
        values=lambda results: on_plateau(results["mod_add"], CONSECUTIVE),
        side=">",
        threshold=0.95,
    ),
    Claim(
        name="mod_add_less_to_origin",
        says="Grokking modular addition leads to the origin far less.",
        source="Sec. 6.3, Fig. 8d",
        statistic=f"mean cosine with it from t_train to t_test, Ising less modular addition, init_scale 10{_UNDER}",
        values=lambda results: on_plateau(results["ising"], ORIGIN) - on_plateau(results["mod_add"], ORIGIN),
        side=">",
        threshold=0.2,
        main=True,
        of_ends=True,
    ),
    *(
        Claim(
            name=f"{sweep}_uncorrelated_late",
            says=f"Late in the training consecutive steps of {TASKS[sweep]} are uncorrelated.",
            source="Sec. 6.3, Fig. 8",
            statistic=f"|mean cosine| of consecutive steps over the last tenth of the steps, init_scale 10{_UNDER}",
            values=partial(_late, sweep=sweep, scale=GROKS),
            side="<",
            threshold=0.2,
            paper="0",
        )
        for sweep in ("ising", "mod_add")
    ),
)

STUDY = Study(
    name="path",
    title="Along which path does it learn?",
    figures=("fig8", "fig34"),
    sweeps=(ISING, MOD_ADD),
    draws=dict.fromkeys((CONSECUTIVE, ORIGIN), (1.0, GROKS)),
    claims=CLAIMS,
    draw=draw,
)
