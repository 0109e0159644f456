"""How grokking depends on the modulus: memorising takes passes over the table, understanding takes steps."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import STYLES, legend, log_axis, title
from lit_grok.figures.phases import COLOURS, has_phases, phase_diagram
from studies.claims import Claim, Results
from studies.drawing import scale_axis
from studies.open_questions.cells import along, joined
from studies.open_questions.sweeps import MODULI
from studies.readings import grid, grokked, is_status, learned, slope
from studies.study import Study

_SMALL, _LARGE = 59, 113
_GROKS, _STEADY = 10.0, 1.0
#: Those of ``task=mod_add``.
_TRAIN_FRACTION, _BATCH_SIZE = 0.7, 64
_SHOWN = (0.1, 1.0, 10.0)


def steps_per_epoch(P: int) -> int:
    """Batches of 64 in seven tenths of the P² pairs.

    Example:
        >>> [steps_per_epoch(P) for P in (31, 59, 113)]
        [11, 39, 140]
    """
    return math.ceil(int(_TRAIN_FRACTION * P**2) / _BATCH_SIZE)


def _steps() -> xr.DataArray:
    return xr.DataArray([steps_per_epoch(P) for P in MODULI], coords={"P": list(MODULI)}, dims="P")


def _times(results: Results, name: str, of: Callable[[xr.DataTree, xr.DataArray], xr.DataArray]) -> xr.DataArray:
    """t_train or t_test by P, init_scale and seed, of those replicas that `of` keeps, in epochs and at least one."""
    return along(results, MODULI, lambda tree: of(tree, grid(tree, name)), "P").clip(min=1)


def _exponent(times: xr.DataArray, scale: float) -> xr.DataArray:
    """The exponent p of time ∝ P^p at one init_scale, by least squares of the logarithms; NaN without every P."""

    def of_seed(moduli: np.ndarray, values: np.ndarray) -> float:
        return slope(np.log(moduli), np.log(values)) if np.isfinite(values).all() else np.nan

    chosen = times.sel(init_scale=scale, drop=True)
    return xr.apply_ufunc(of_seed, chosen.P, chosen, input_core_dims=[["P"]] * 2, vectorize=True)


def _delays(results: Results) -> xr.DataArray:
    return _times(results, "t_test", learned) / _times(results, "t_train", learned)


def _moved(results: Results) -> xr.DataArray:
    """1 where init_scale 1 groks at the smaller modulus and learns steadily at the larger one."""

    def one(P: int, status: str) -> xr.DataArray:
        return is_status(results[MODULI[P].name], status).sel(init_scale=_STEADY, drop=True)

    return one(_SMALL, "grokked") * one(_LARGE, "steady")


def draw(results: Results) -> Mapping[str, Figure]:
    """The phase diagram over init_scale and P; t_train and t_test against P in epochs and in steps, of all moduli."""
    tree = joined(results, MODULI, "P")
    if tree is None or not has_phases(tree, "P"):
        return {}
    if any(sweep.name not in results for sweep in MODULI.values()):
        return {"moduli": phase_diagram(tree, "P")}
    figure = Figure(figsize=(6.6, 3.1), layout="constrained")
    panels = figure.subplots(1, 2)
    moduli = sorted(MODULI)
    handles = {}
    for name, style, colour in (("t_train", STYLES[1], COLOURS["steady"]), ("t_test", STYLES[0], COLOURS["grokked"])):
        times = _times(results, name, learned).sel(P=moduli)
        for axes, scaled in zip(panels, (times, times * _steps().sel(P=moduli)), strict=True):
            for scale, marker in zip(_SHOWN, "v.^", strict=True):
                values = scaled.sel(init_scale=scale).transpose("P", "seed")
                means = values.mean("seed").values
                for column in values.values.T:
                    axes.plot(moduli, column, marker, color=colour, markersize=4.5, alpha=0.5, markeredgewidth=0)
                (line,) = axes.plot(moduli, means, linestyle=style, color=colour, marker=marker, linewidth=1)
                symbol = "$t_{\\rm " + name.partition("_")[2] + "}$"
                handles[f"{symbol}, init_scale {scale:g}"] = line
    for axes, unit in zip(panels, ("epochs", "steps"), strict=True):
        scale_axis(axes, np.array(moduli))
        log_axis(axes)
        axes.set(xlabel="P", ylabel=unit)
    for label, line in handles.items():
        line.set_label(label)
    legend(figure, list(handles.values()))
    title(figure, "Modular addition: memorised and understood, lines through means over seeds")
    return {"moduli": phase_diagram(tree, "P"), "moduli_times": figure}


CLAIMS = (
    Claim(
        name="smaller_modulus_groks",
        says="Modulo 59 a network groks at init_scale 1, where modulo 113 it learns steadily.",
        source="ours",
        statistic="whether both are so, at weight decay 3e-5",
        values=_moved,
        side=">",
        threshold=0.5,
        kind="share",
        main=True,
        of_ends=True,
    ),
    Claim(
        name="understanding_takes_steps",
        says="From large weights modular addition is understood after a number of steps that does not depend on P.",
        source="ours",
        statistic=f"exponent of t_test in steps ∝ P^p, init_scale {_GROKS:g}",
        values=lambda results: _exponent(_times(results, "t_test", grokked) * _steps(), _GROKS),
        side="within",
        threshold=(-0.25, 0.25),
        main=True,
        of_ends=True,
    ),
    Claim(
        name="memorising_takes_passes",
        says="It is memorised after a number of passes over the training set that does not depend on P.",
        source="ours",
        statistic=f"exponent of t_train in epochs ∝ P^p, init_scale {_GROKS:g}",
        values=lambda results: _exponent(_times(results, "t_train", learned), _GROKS),
        side="within",
        threshold=(-0.25, 0.25),
        main=True,
        of_ends=True,
    ),
    Claim(
        name="plateau_shrinks",
        says="With the size of the table the plateau shrinks faster from small weights than from large ones.",
        source="ours",
        statistic=f"exponent of t_test / t_train ∝ P^p, init_scale {_STEADY:g}, less that at init_scale {_GROKS:g}",
        values=lambda results: _exponent(_delays(results), _STEADY) - _exponent(_delays(results), _GROKS),
        side="<",
        threshold=-0.25,
        of_ends=True,
    ),
)

STUDY = Study(
    name="moduli",
    title="How does grokking depend on the modulus?",
    figures=(),
    sweeps=tuple(MODULI[P] for P in sorted(MODULI)),
    draws={},
    claims=CLAIMS,
    draw=draw,
)
