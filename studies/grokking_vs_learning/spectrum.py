"""Fig. 20: the spectrum of the Fisher information of trained networks, and the gap between stiff and sloppy."""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.geometry import spectra
from studies.claims import TASKS, Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, ISING, MOD_ADD
from studies.readings import grid, learned
from studies.study import Study, chosen

_VARIANT = "regression"
_SHOWN = (1.0, GROKS)


def draw(results: Results) -> Mapping[str, Figure]:
    """The final F of every parameter, sorted."""
    return {
        f"fig20-{name}": spectra(chosen(results[name], _SHOWN), "fim_trajectory")
        for name in ("ising", "mod_add")
        if name in results
    }


def _stiff_share(results: Results, sweep: str) -> xr.DataArray:
    tree = results[sweep]
    stiff = learned(tree, grid(tree, "fim_trajectory/stiff_parameters", variant=_VARIANT))
    return stiff.sel(init_scale=GROKS, drop=True) / grid(tree, "fim_trajectory/spectrum").sizes["rank"]


CLAIMS = tuple(
    Claim(
        name=f"{sweep}_sloppy",
        says=f"Most parameters of the trained network are sloppy in {TASKS[sweep]}.",
        source="App. F, Fig. 20",
        statistic="share of the parameters with F ≥ 0.1 under the regression's Fisher information, init_scale 10",
        values=partial(_stiff_share, sweep=sweep),
        side="<",
        threshold=0.5,
    )
    for sweep in ("ising", "mod_add")
)

STUDY = Study(
    name="spectrum",
    title="Which parameters matter?",
    figures=("fig20",),
    sweeps=(ISING, MOD_ADD),
    draws={f"fim_trajectory/{name}": _SHOWN for name in ("spectrum", "stiff_parameters")},
    claims=CLAIMS,
    draw=draw,
)
