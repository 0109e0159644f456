"""Where networks grok, learn steadily, are compressed, or fail: maps over weight decay and initial scale."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.phases import has_phases, phase_diagram
from studies.claims import TASKS, Claim, Results
from studies.open_questions.cells import along, joined
from studies.open_questions.sweeps import DIGIT_PHASES, DIGITS_GROK, ISING_PHASES, PHASES, PRIME_PHASES
from studies.readings import end, grid, grokked, is_status, learned
from studies.runs import Sweep
from studies.study import Study

ACCURACY, COMPRESSIBILITY, IPR = "evaluation/test_accuracy", "pruning/final_compressibility", "ipr/mean_ipr"
_SMALL, _LARGE = 0.4, 4.0


class _Map(NamedTuple):
    """The cells of one task."""

    sweeps: Mapping[float, Sweep]
    usual: float  # the weight decay of the papers; of digits the least with which they are grokked in the time given
    more: float  # another one
    scale: float  # an init_scale that groks with both


_MAPS = {
    "mod_add": _Map(PHASES, 3e-5, 1e-3, 10.0),
    "ising": _Map(ISING_PHASES, 0.1, 0.2, 10.0),
    "prime": _Map(PRIME_PHASES, 1.0, 2.0, 1.0),
    "mnist": _Map(DIGIT_PHASES, 0.1, 0.3, DIGITS_GROK),
}


def draw(results: Results) -> Mapping[str, Figure]:
    """The phase diagram of each task, as far as all of its cells are there."""
    trees = {name: joined(results, each.sweeps) for name, each in _MAPS.items()}
    whole = {name: tree for name, tree in trees.items() if tree is not None and has_phases(tree)}
    return {f"phases_{name}": phase_diagram(tree) for name, tree in whole.items()}


def _not_understood(results: Results, task: str, decay: float, scale: float) -> xr.DataArray:
    """Whether a cell has at most memorised."""
    status = is_status(results[_MAPS[task].sweeps[decay].name], "memorised", "undertrained")
    return status.sel(init_scale=scale, drop=True)


def _plateau(results: Results, task: str) -> xr.DataArray:
    """t_test with more weight decay over that at the usual one, from an init_scale that groks with both."""
    sweeps, usual, more, scale = _MAPS[task]
    trees = (results[sweeps[decay].name] for decay in (more, usual))
    times = [grokked(tree, grid(tree, "t_test")).sel(init_scale=scale, drop=True) for tree in trees]
    return times[0] / times[1]


def _least_share(results: Results, task: str, statuses: Sequence[str]) -> xr.DataArray:
    """Share of these statuses among them and what learns, at the one weight decay at which it is least for all seeds.

    Weight decays at which, for some seed, fewer than half of the init_scales learn are left out.
    """

    def mean(*of: str) -> xr.DataArray:
        return along(results, _MAPS[task].sweeps, lambda tree: is_status(tree, *of)).mean("init_scale")

    learn = mean("steady", "grokked")
    shares = (mean(*statuses) / mean("steady", "grokked", *statuses)).where(learn >= 0.5)
    common = shares.dropna("weight_decay")
    if not common.size:
        return shares.min("weight_decay", skipna=False)
    return common.sel(weight_decay=common.mean("seed").idxmin("weight_decay"), drop=True)


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
        says="Beyond some weight decay modular addition is not learned, from whatever scale.",
        source="ours, on Sec. 5",
        statistic="highest test accuracy over the init_scales, weight decay 2e-3, P = 59",
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
            name=f"{task}_decay_shortens",
            says=f"More weight decay shortens the plateau of {TASKS[task]}.",
            source="ours",
            statistic=f"t_test at weight decay {each.more:g} over that at {each.usual:g}, init_scale {each.scale:g}",
            values=partial(_plateau, task=task),
            side="<",
            threshold=0.8,
        )
        for task, each in _MAPS.items()
    ),
    *(
        Claim(
            name=f"{task}_only_{name}",
            says=f"There is a weight decay at which {TASKS[task]} is learned {how}, from whatever scale.",
            source="ours, on Sec. 7",
            statistic=f"of the init_scales that {of}; least over the weight decays at which half of all learn",
            values=partial(_least_share, task=task, statuses=statuses),
            side="<",
            threshold=0.05,
            main=True,
        )
        for task in _MAPS
        for name, how, of, statuses in (
            ("groks", "by grokking only", "learn, the share that does so steadily", ("steady",)),
            (
                "learns",
                "without a plateau only",
                "memorise or learn, the share that does not learn steadily",
                ("grokked", "memorised"),
            ),
        )
    ),
    Claim(
        name="ising_memorises",
        says="With a tenth of the weight decay the Ising task is memorised at init_scale 10, and not understood.",
        source="ours",
        statistic="whether it has not been after 40 000 epochs at weight decay 0.01",
        values=partial(_not_understood, task="ising", decay=0.01, scale=10.0),
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
