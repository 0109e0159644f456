"""Do the straight path and the features survive without weight decay, with other optimisers, with wrong labels?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import title
from lit_grok.figures.geometry import directions
from studies.claims import TASKS, Claim, Results
from studies.grokking_vs_learning.path import CONSECUTIVE, ORIGIN, VARIANT, on_plateau
from studies.grokking_vs_learning.sweeps import GROKS
from studies.open_questions.sweeps import ABLATED, ABLATIONS
from studies.readings import end, grokked, is_status
from studies.study import Study, chosen

_ENERGY = {"layer": "fc1", "observable": "energy"}
#: Of each task the feature that the paper finds, and how much of it there is at least.
_FEATURES: dict[str, tuple[str, dict[str, Any], float, str]] = {
    "ising": ("features/median_correlation", _ENERGY, 0.9, "median |r| of fc1 with the energy"),
    "mod_add": ("ipr/mean_ipr", {}, 0.35, "mean IPR"),
}

_OUTCOMES = tuple(f"evaluation/{name}" for name in ("train_accuracy", "test_accuracy", "weight_norm"))


def draw(results: Results) -> Mapping[str, Figure]:
    """Cosines of the steps of every ablation, where it groks and where it learns steadily."""
    figures = {}
    for (task, name), sweep in ABLATIONS.items():
        if sweep.name in results:
            figure = directions(chosen(results[sweep.name], (1.0, GROKS)), "fim_trajectory", VARIANT)
            title(figure, f"{TASKS[task]}, {ABLATED[task][name][0]}")
            figures[f"ablation_{task}_{name}"] = figure
    return figures


def _groks(results: Results, key: tuple[str, str]) -> xr.DataArray:
    return is_status(results[ABLATIONS[key].name], "grokked").sel(init_scale=GROKS, drop=True)


def _feature(results: Results, key: tuple[str, str]) -> xr.DataArray:
    tree = results[ABLATIONS[key].name]
    path, labels, *_ = _FEATURES[key[0]]
    return grokked(tree, end(tree, path, **labels)).sel(init_scale=GROKS, drop=True)


def _claims(task: str, name: str) -> list[Claim]:
    key, (how, _), (_, _, least, feature) = (task, name), ABLATED[task][name], _FEATURES[task]
    sweep = ABLATIONS[key].name
    where = f"init_scale {GROKS:g}, Fisher information of the classifier"
    return [
        Claim(
            name=f"{task}_{name}_groks",
            says=f"{TASKS[task][0].upper()}{TASKS[task][1:]} groks {how}.",
            source="ours, on Sec. 7",
            statistic=f"whether it groks at init_scale {GROKS:g}",
            values=partial(_groks, key=key),
            side=">",
            threshold=0.5,
            kind="share",
            main=True,
        ),
        Claim(
            name=f"{task}_{name}_straight",
            says=f"Where {TASKS[task]} groks {how}, it does so on a straight line.",
            source="ours, on Sec. 6.3",
            statistic=f"mean cosine of consecutive steps from t_train to t_test, {where}",
            values=lambda results: on_plateau(results[sweep], CONSECUTIVE),
            side=">",
            threshold=0.95,
        ),
        Claim(
            name=f"{task}_{name}_to_origin",
            says=f"Where {TASKS[task]} groks {how}, that line leads to the origin.",
            source="ours, on Sec. 6.3",
            statistic=f"mean cosine with the way to the origin from t_train to t_test, {where}",
            values=lambda results: on_plateau(results[sweep], ORIGIN),
            side=">",
            threshold=0.8,
        ),
        Claim(
            name=f"{task}_{name}_feature",
            says=f"Where {TASKS[task]} groks {how}, it has learned the same feature.",
            source="ours, on Sec. 4",
            statistic=f"{feature}, init_scale {GROKS:g}",
            values=partial(_feature, key=key),
            side=">",
            threshold=least,
        ),
    ]


STUDY = Study(
    name="ablations",
    title="Do path and features survive without weight decay, with other optimisers, with wrong labels?",
    figures=(),
    sweeps=tuple(ABLATIONS.values()),
    draws=dict.fromkeys((CONSECUTIVE, ORIGIN, *_OUTCOMES, *(path for path, *_ in _FEATURES.values()))),
    claims=tuple(claim for task, name in ABLATIONS for claim in _claims(task, name)),
    draw=draw,
)
