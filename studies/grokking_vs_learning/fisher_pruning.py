"""Figs. 21 to 24: pruning by the Fisher information instead of by magnitude."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import TASKS, Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY, MOD_ADD
from studies.readings import end, learned
from studies.study import Study, chosen, living

_SHOWN = (1.0, GROKS)
_BRANCHES = {"pruning": "layerwise", "pruning_global": "global", "pruning_fisher": "fisher"}


def draw(results: Results) -> Mapping[str, Figure]:
    """Pruning curves by the Fisher information, of the whole network and of each layer; C of three schemes."""
    figures = {}
    for name in ("ising", "mod_add"):
        if name in results:
            figures[f"fig21-24-{name}"] = pruning_curves(chosen(results[name], _SHOWN), "pruning_fisher")
            paths = {f"{branch}/final_compressibility": f"$C$, {scheme}" for branch, scheme in _BRANCHES.items()}
            figures[f"fig21-{name}"] = against_scale({name: living(results[name])}, paths)
    return figures


def _ratio(results: Results, sweep: str, other: str) -> xr.DataArray:
    """The log of C by Fisher information over C by another scheme, mean over the init_scales that learn."""
    tree = results[sweep]
    found = [end(tree, f"{branch}/final_compressibility") for branch in ("pruning_fisher", other)]
    return learned(tree, xr.DataArray(np.log(found[0] / found[1]))).mean("init_scale")


def _advantage(results: Results) -> xr.DataArray:
    tree = results["ising"]
    found = learned(tree, end(tree, "pruning_fisher/final_compressibility"))
    ratio = found.sel(init_scale=GROKS, drop=True) / found.sel(init_scale=ISING_STEADY, drop=True)
    return xr.DataArray(np.log(ratio))


CLAIMS = (
    *(
        Claim(
            name=f"{sweep}_worse_than_{scheme}",
            says=f"In {TASKS[sweep]} pruning by Fisher information is worse than by magnitude ({scheme}).",
            source="App. D; App. F.1, Figs. 21, 22",
            statistic=f"log of C by Fisher over C by {scheme} magnitude, mean over the init_scales that learn",
            values=partial(_ratio, sweep=sweep, other=branch),
            side="<",
            threshold=0,
            main=scheme == "layerwise",
        )
        for sweep in ("mod_add", "ising")
        for branch, scheme in (("pruning", "layerwise"), ("pruning_global", "global"))
    ),
    Claim(
        name="no_advantage_of_grokking",
        says="Under Fisher pruning an Ising network that has grokked has no clear advantage.",
        source="App. F.1, Fig. 21, which trains with other settings",
        statistic="log of C(10) / C(1) by Fisher information",
        values=_advantage,
        side="<",
        threshold=0.25,
        paper="0",
    ),
)

STUDY = Study(
    name="fisher_pruning",
    title="Is the Fisher information a better guide to what can go?",
    figures=("fig21", "fig22", "fig23", "fig24"),
    sweeps=(MOD_ADD, ISING),
    draws={
        **{
            f"pruning_fisher/{of}{name}": _SHOWN
            for of in ("", "layer_")
            for name in ("accuracy", "loss", "final_kept_share")
        },
        **dict.fromkeys(f"{branch}/final_compressibility" for branch in _BRANCHES),
    },
    claims=CLAIMS,
    draw=draw,
)
