"""Figs. 31 to 33: does the length of the steps under the Fisher information say when a network groks?"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.geometry import lengths
from studies.claims import TASKS, Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY, MOD_ADD, MOD_ADD_STEADY
from studies.readings import grid, grokked
from studies.study import Study, chosen

_SHOWN = {"ising": (ISING_STEADY, GROKS), "mod_add": (MOD_ADD_STEADY, GROKS)}
_VARIANT = "regression"  # whose final F the threshold of 0.1 suits, and which shows the bump
_LENGTH = "fim_trajectory/step_magnitude"
_FACTOR = 2.0  # so far from t_train and t_test the ends of a bump may lie
_SHARE = 20  # the beginning and the end of the training are so small a part of its steps


def draw(results: Results) -> Mapping[str, Figure]:
    """Lengths under the Fisher information and without (Figs. 31, 32), their gradient (33), and both subspaces (32)."""
    return {
        f"fig31-33-{name}": lengths(chosen(results[name], scales), "fim_trajectory", _VARIANT)
        for name, scales in _SHOWN.items()
        if name in results
    }


def _marks(results: Results, sweep: str) -> xr.DataArray:
    """Whether the bump begins near t_train and ends near t_test."""
    tree = results[sweep]
    labels = {"variant": _VARIANT, "metric": "fisher"}
    near = [
        abs(np.log(grid(tree, f"fim_trajectory/{of}", **labels) / grid(tree, when))) <= np.log(_FACTOR)
        for of, when in (("bump_start", "t_train"), ("bump_end", "t_test"))
    ]
    return grokked(tree, (near[0] & near[1]).astype(float)).sel(init_scale=GROKS, drop=True)


def _cross(results: Results, sweep: str) -> xr.DataArray:
    """Whether sloppy steps are the longer ones at the beginning, and stiff ones at the end."""
    curves = [
        grid(results[sweep], _LENGTH, variant=_VARIANT, metric="fisher", subspace=subspace).dropna("epoch", how="all")
        for subspace in ("sloppy", "stiff")
    ]
    part = max(1, curves[0].sizes["epoch"] // _SHARE)
    first, last = (
        [curve.isel(epoch=at).median("epoch") for curve in curves] for at in (slice(part), slice(-part, None))
    )
    crosses = ((first[0] > first[1]) & (last[0] < last[1])).astype(float)
    return grokked(results[sweep], crosses.where((first[0] + first[1] + last[0] + last[1]).notnull())).sel(
        init_scale=GROKS, drop=True
    )


CLAIMS = (
    *(
        Claim(
            name=f"{sweep}_bump",
            says=f"In {TASKS[sweep]} a bump of the step length marks the time from t_train to t_test.",
            source="App. G.3, Figs. 32, 33",
            statistic="whether it begins and ends within a factor of 2 of them, init_scale 10",
            values=partial(_marks, sweep=sweep),
            side=">",
            threshold=0.5,
            kind="share",
            paper=paper,
            main=True,
        )
        for sweep, paper in (("ising", "2200 to 6400"), ("mod_add", "19 to 47"))
    ),
    *(
        Claim(
            name=f"{sweep}_crossing",
            says=f"In grokking {TASKS[sweep]}, sloppy steps are the longer ones at first, and stiff ones at the end.",
            source="App. G.3, Fig. 32",
            statistic="whether the lengths cross, init_scale 10",
            values=partial(_cross, sweep=sweep),
            side=">",
            threshold=0.5,
            kind="share",
            main=True,
        )
        for sweep in ("ising", "mod_add")
    ),
)

STUDY = Study(
    name="step_length",
    title="Does the length of the steps say when it groks?",
    figures=("fig31", "fig32", "fig33"),
    sweeps=(ISING, MOD_ADD),
    draws={
        **dict.fromkeys((_LENGTH, "fim_trajectory/bump_start", "fim_trajectory/bump_end"), (1.0, GROKS)),
    },
    claims=CLAIMS,
    draw=draw,
)
