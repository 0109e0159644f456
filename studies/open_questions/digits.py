"""Digits, a third task: same features, the same compressive regime, the same path as in the first paper's two?"""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.geometry import directions
from lit_grok.figures.grokking import curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.compressibility import COMPRESSIBILITY, excess
from studies.grokking_vs_learning.path import CONSECUTIVE, ORIGIN, VARIANT, on_plateau
from studies.grokking_vs_learning.sweeps import COMPRESSED, MOD_ADD_STEADY
from studies.open_questions.sweeps import DIGIT_BATCHES, DIGITS, DIGITS_GROK
from studies.readings import at, end, grid, grokked, is_status, learned
from studies.study import Study, chosen

CKA, MEAN_CKA = "similarity/cka", "similarity/mean_cka"
_LAYER = "hidden.1"
_BETWEEN, _STEADY = 0.3, MOD_ADD_STEADY
_WHERE = f"init_scale {DIGITS_GROK:g}, Fisher information of the classifier"
_CKA = f"CKA of {_LAYER} at init_scale {DIGITS_GROK:g} and {_STEADY:g}"


def draw(results: Results) -> Mapping[str, Figure]:
    """Curves, cosines of the steps, likeness of the hidden layers, and C of all batch sizes."""
    figures = {}
    if DIGITS.name in results:
        tree = results[DIGITS.name]
        figures["digits"] = curves(tree)
        figures["digits_path"] = directions(chosen(tree, (_STEADY, DIGITS_GROK)), "fim_trajectory", VARIANT)
    trees = {f"batch size {size}": results[s.name] for size, s in DIGIT_BATCHES.items() if s.name in results}
    if trees:
        quantities = {COMPRESSIBILITY: "compressibility $C$", "evaluation/train_loss": "train loss at the end"}
        figures["digits_batches"] = against_scale(trees, quantities, log=["evaluation/train_loss"])
    return figures


def _excess(sweep: str, results: Results) -> xr.DataArray:
    return excess(results[sweep])


def _alike(results: Results, one: float, other: float) -> xr.DataArray:
    """CKA of the last hidden layers of two init_scales, where both have learned."""
    tree = results[DIGITS.name]
    cka = learned(tree, grid(tree, CKA, layer=_LAYER)).sel(init_scale=one, drop=True)
    mates = [f"init_scale={other:g} seed={seed}" for seed in cka.seed.values]
    labels = set(cka.other.values.tolist())
    pairs = [
        cka.sel(seed=seed, other=mate, drop=True) if mate in labels else xr.DataArray(float("nan"))
        for seed, mate in zip(cka.seed.values, mates, strict=True)
    ]
    known = is_status(tree, "grokked", "steady").sel(init_scale=other, drop=True) == 1
    return xr.concat(pairs, cka.seed).where(known)


def _rise(results: Results) -> xr.DataArray:
    """Rise of the mean CKA with the other networks from half of t_test to the end, of what groks."""
    tree = results[DIGITS.name]
    before = at(tree, MEAN_CKA, grid(tree, "t_test") / 2, layer=_LAYER)
    return grokked(tree, end(tree, MEAN_CKA, layer=_LAYER) - before).sel(init_scale=DIGITS_GROK, drop=True)


CLAIMS = (
    Claim(
        name="digits_grok",
        says="Digits are grokked from large initial weights.",
        source="ours, on Sec. 7; Omnigrok",
        statistic=f"whether it groks at init_scale {DIGITS_GROK:g}",
        values=lambda results: is_status(results[DIGITS.name], "grokked").sel(init_scale=DIGITS_GROK, drop=True),
        side=">",
        threshold=0.5,
        kind="share",
        main=True,
    ),
    Claim(
        name="digits_as_alike_as_steady_ones",
        says="It ends as like one that learns steadily as two of these are.",
        source="ours, on Sec. 4",
        statistic=f"{_CKA}, less that at {_BETWEEN:g} and {_STEADY:g}",
        values=lambda results: _alike(results, DIGITS_GROK, _STEADY) - _alike(results, _BETWEEN, _STEADY),
        side=">",
        threshold=-0.1,
    ),
    Claim(
        name="digits_approach",
        says="On the plateau their layers are apart, and approach each other with the understanding.",
        source="ours",
        statistic=f"mean CKA of {_LAYER} with the others, the end less half of t_test, init_scale {DIGITS_GROK:g}",
        values=_rise,
        side=">",
        threshold=0.1,
    ),
    *(
        Claim(
            name=f"digits_regime_{size}",
            says=f"At batch size {size} small initial weights make digits more compressible.",
            source="ours, on Sec. 5",
            statistic=f"C({COMPRESSED:g}) / C({_STEADY:g}) − 1, batch size {size}",
            values=partial(_excess, sweep.name),
            side=">",
            threshold=0.1,
            main=size == 200,
        )
        for size, sweep in DIGIT_BATCHES.items()
    ),
    Claim(
        name="digits_straight",
        says="The network that groks digits walks a straight line on the plateau.",
        source="ours, on Sec. 6.3",
        statistic=f"mean cosine of consecutive steps from t_train to t_test, {_WHERE}",
        values=lambda results: on_plateau(results[DIGITS.name], CONSECUTIVE, DIGITS_GROK),
        side=">",
        threshold=0.95,
    ),
    Claim(
        name="digits_to_origin",
        says="That line leads to the origin.",
        source="ours, on Sec. 6.3",
        statistic=f"mean cosine with the way to the origin from t_train to t_test, {_WHERE}",
        values=lambda results: on_plateau(results[DIGITS.name], ORIGIN, DIGITS_GROK),
        side=">",
        threshold=0.8,
        main=True,
    ),
)

STUDY = Study(
    name="digits",
    title="Digits: same features, same regime, same path?",
    figures=(),
    sweeps=tuple({sweep.name: sweep for sweep in (DIGITS, *DIGIT_BATCHES.values())}.values()),
    draws=dict.fromkeys(
        (
            *(COMPRESSIBILITY, CONSECUTIVE, ORIGIN),
            *(f"evaluation/{split}_{name}" for split in ("train", "test") for name in ("accuracy", "loss")),
        )
    ),
    claims=CLAIMS,
    draw=draw,
)
