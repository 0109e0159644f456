"""Figs. 21 to 24: pruning by the Fisher information instead of by magnitude."""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY, MOD_ADD
from studies.readings import end, is_status
from studies.study import Study

_BRANCHES = {"pruning": "layerwise", "pruning_global": "global", "pruning_fisher": "fisher"}


def draw(results: Results) -> Mapping[str, Figure]:
    """Pruning curves by the Fisher information, of the whole network and of each layer; C of three schemes."""
    figures = {}
    for name in ("ising", "mod_add"):
        if name in results:
            figures[f"fig21-24-{name}"] = pruning_curves(results[name], "pruning_fisher")
            paths = {f"{branch}/final_compressibility": f"$C$, {scheme}" for branch, scheme in _BRANCHES.items()}
            figures[f"fig21-{name}"] = against_scale({name: results[name]}, paths)
    return figures


def _ratio(results: Results, sweep: str, other: str) -> xr.DataArray:
    """C by Fisher information over C by another scheme, mean over the init_scales that learn."""
    tree = results[sweep]
    learns = is_status(tree, "grokked", "steady") == 1
    found = [end(tree, f"{branch}/final_compressibility") for branch in ("pruning_fisher", other)]
    return (found[0] / found[1]).where(learns).mean("init_scale")


def _advantage(results: Results) -> xr.DataArray:
    found = end(results["ising"], "pruning_fisher/final_compressibility")
    return found.sel(init_scale=GROKS, drop=True) / found.sel(init_scale=ISING_STEADY, drop=True) - 1


CLAIMS = (
    *(
        Claim(
            name=f"{sweep}_worse_than_{scheme}",
            says=f"In {task} pruning by Fisher information is worse than by magnitude ({scheme}).",
            source="App. D; App. F.1, Figs. 21, 22",
            statistic=f"C by Fisher information over C by {scheme} magnitude, mean over the init_scales that learn",
            values=partial(_ratio, sweep=sweep, other=branch),
            side="<",
            threshold=1,
            main=scheme == "layerwise",
        )
        for sweep, task in (("mod_add", "modular addition"), ("ising", "the Ising task"))
        for branch, scheme in (("pruning", "layerwise"), ("pruning_global", "global"))
    ),
    Claim(
        name="no_advantage_of_grokking",
        says="Under Fisher pruning an Ising network that has grokked has no clear advantage.",
        source="App. F.1, Fig. 21",
        statistic="C(10) / C(1) − 1 by Fisher information",
        values=_advantage,
        side="within",
        threshold=(-0.25, 0.25),
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
            f"pruning_fisher/{of}{name}": (1.0, GROKS)
            for of in ("", "layer_")
            for name in ("accuracy", "loss", "final_kept_share")
        },
        **dict.fromkeys(f"{branch}/final_compressibility" for branch in _BRANCHES),
    },
    claims=CLAIMS,
    draw=draw,
)
