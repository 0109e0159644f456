"""Where networks grok, learn steadily, are compressed, or fail: maps over weight decay and initial scale."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.phases import has_phases, phase_diagram
from studies.claims import TASKS, Claim, Results
from studies.open_questions.cells import along, joined
from studies.open_questions.sweeps import DIGIT_PHASES, DIGITS_GROK, ISING_PHASES, PHASES, PRIME_PHASES
from studies.readings import end, grid, is_status, learned, over_scales, slope
from studies.runs import Sweep
from studies.study import Study

ACCURACY, COMPRESSIBILITY, IPR = "evaluation/test_accuracy", "pruning/final_compressibility", "ipr/mean_ipr"
_SMALL, _LARGE = 0.4, 4.0


class _Map(NamedTuple):
    """The cells of one task."""

    sweeps: Mapping[float, Sweep]
    scale: float  # an init_scale that groks


_MAPS = {
    "mod_add": _Map(PHASES, 10.0),
    "ising": _Map(ISING_PHASES, 10.0),
    "prime": _Map(PRIME_PHASES, 1.0),
    "mnist": _Map(DIGIT_PHASES, DIGITS_GROK),
}


def draw(results: Results) -> Mapping[str, Figure]:
    """The phase diagram of each task, as far as all of its cells are there."""
    trees = {name: joined(results, each.sweeps) for name, each in _MAPS.items()}
    whole = {name: tree for name, tree in trees.items() if tree is not None and has_phases(tree)}
    return {f"phases_{name}": phase_diagram(tree) for name, tree in whole.items()}


def _not_understood(results: Results) -> xr.DataArray:
    """Whether the Ising network has at most memorised, at weight decay .01."""
    return is_status(results[ISING_PHASES[0.01].name], "memorised", "undertrained").sel(init_scale=10.0, drop=True)


def _exponent(results: Results, task: str) -> xr.DataArray:
    """Exponent of t_test ∝ (weight decay)^p, from one init_scale, over the weight decays at which it is understood."""
    sweeps, scale = _MAPS[task]
    times = along(results, sweeps, lambda tree: learned(tree, grid(tree, "t_test"))).sel(init_scale=scale, drop=True)
    decays, times = (xr.DataArray(np.log(each)) for each in (times.weight_decay, times.clip(min=1)))
    return over_scales(slope, decays, times, dim="weight_decay")


def _highest_share(results: Results, task: str, status: str) -> xr.DataArray:
    """Share of the init_scales that have a status, at the one weight decay at which it is highest over all seeds."""
    shares = along(results, _MAPS[task].sweeps, lambda tree: is_status(tree, status)).mean("init_scale")
    return shares.sel(weight_decay=shares.mean("seed").idxmax("weight_decay"), drop=True)


def _corner(results: Results) -> xr.DataArray:
    """Highest C where init_scale is at most .4, over the highest where it is at least 4, of what learns."""
    found = along(results, PHASES, lambda tree: learned(tree, end(tree, COMPRESSIBILITY)))
    small, large = found.init_scale <= _SMALL, found.init_scale >= _LARGE
    return found.where(small).max(["weight_decay", "init_scale"]) / found.where(large).max(
        ["weight_decay", "init_scale"]
    )


CLAIMS = (
    Claim(
        name="decay_breaks_down",
        says="At weight decay 2e-3 modular addition is not learned, from whatever scale.",
        source="ours, on Sec. 5",
        statistic="highest test accuracy over the init_scales, P = 59",
        values=lambda results: end(results[PHASES[2e-3].name], ACCURACY).max("init_scale"),
        side="<",
        threshold=0.5,
    ),
    Claim(
        name="compressive_corner",
        says="The most compressed networks start from small weights: the regime is a corner of the diagram.",
        source="ours, on Sec. 5",
        statistic="highest C at init_scale ≤ 0.4 over that at ≥ 4, over the weight decays, P = 59",
        values=_corner,
        side=">",
        threshold=1.5,
        main=True,
    ),
    *(
        Claim(
            name=f"{task}_decay_hastens",
            says=f"The more weight decay, the sooner {TASKS[task]} is understood.",
            source="ours",
            statistic=f"exponent of t_test ∝ (weight decay)^p where it is understood, init_scale {each.scale:g}",
            values=partial(_exponent, task=task),
            side="<",
            threshold=0.0,
        )
        for task, each in _MAPS.items()
    ),
    *(
        Claim(
            name=f"{task}_only_{name}",
            says=f"There is a weight decay at which {TASKS[task]} is learned {how}, from whatever scale.",
            source="ours, on Sec. 7",
            statistic=f"share of the init_scales that {do}, at the weight decay at which it is highest",
            values=partial(_highest_share, task=task, status=status),
            side=">",
            threshold=0.95,
            main=True,
        )
        for task in _MAPS
        for name, how, do, status in (
            ("groks", "by grokking only", "grok", "grokked"),
            ("learns", "without a plateau only", "learn steadily", "steady"),
        )
    ),
    Claim(
        name="ising_memorises",
        says="With a tenth of the weight decay the Ising task is memorised at init_scale 10, and not understood.",
        source="ours",
        statistic="whether it has not been after 40 000 epochs at weight decay 0.01",
        values=_not_understood,
        side=">",
        threshold=0.5,
        kind="share",
    ),
)

STUDY = Study(
    name="phases",
    title="Where does it grok, learn steadily, and fail?",
    figures=(),
    sweeps=tuple(sweep for each in _MAPS.values() for sweep in each.sweeps.values()),
    draws=dict.fromkeys((ACCURACY, COMPRESSIBILITY, IPR)),
    claims=CLAIMS,
    draw=draw,
)
