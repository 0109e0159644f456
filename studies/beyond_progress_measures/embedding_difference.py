"""Does the mean embedding difference follow the test loss, and does it know more than a norm?"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import title
from studies.beyond_progress_measures.sweeps import PRIME, QUADRATIC, SQUARE, STRIP
from studies.claims import Claim, Results
from studies.readings import first_epoch, grid, rank_correlation
from studies.study import Study

LOSS, TRAIN = "evaluation/test_loss", "evaluation/train_accuracy"
MED, RELATIVE, NORM = "uniformity/med", "uniformity/relative_med", "uniformity/mean_norm"
_SWEEPS = {
    "x + y": PRIME,
    "x + y, square hole up to 45": SQUARE[45],
    "x + y, strip up to 50": STRIP[50],
    "x² + xy + y², half of the pairs": QUADRATIC[0.5],
}
_MEASURES = {MED: "MED", RELATIVE: "MED / mean norm", NORM: "mean norm"}


def draw(results: Results) -> Mapping[str, Figure]:
    """Rank correlation of each measure with the test loss, for every setting, a mark for each seed."""
    there = {label: results[sweep.name] for label, sweep in _SWEEPS.items() if sweep.name in results}
    if not there:
        return {}
    figure = Figure(figsize=(6.4, 0.75 * len(there) + 1.2), layout="constrained")
    axes = figure.subplots()
    for i, (path, label) in enumerate(_MEASURES.items()):
        for row, tree in enumerate(there.values()):
            values = follows(tree, path).values
            axes.plot(
                values,
                np.full(values.shape, row + 0.22 * (i - 1)),
                "o^s"[i],
                color=f"C{i}",
                markersize=5,
                alpha=0.7,
                label=label if row == 0 else None,
            )
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(xlim=(-1.03, 1.03), ylim=(len(there) - 0.5, -0.5), yticks=range(len(there)), yticklabels=list(there))
    axes.set_xlabel("Spearman's ρ with the test loss, from train accuracy 1 on")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    title(figure, "P = 97, each seed a mark")
    return {"embedding_difference": figure}


def follows(tree: xr.DataTree, path: str) -> xr.DataArray:
    """Spearman's ρ of a measure and the test loss over the measurements from train accuracy 1 on, for each seed.

    Args:
        tree: The results.
        path: Of the measure, with the dimension ``operand``.
    """
    measure = grid(tree, path, operand="both").dropna("epoch", how="all")
    loss = grid(tree, LOSS).dropna("epoch", how="all").interp(epoch=measure.epoch)
    after = (measure.epoch >= first_epoch(grid(tree, TRAIN) >= 1)) & measure.notnull() & loss.notnull()

    def rho(x: np.ndarray, y: np.ndarray, use: np.ndarray) -> float:
        return rank_correlation(x[use], y[use]) if use.sum() >= 5 else np.nan

    dims = [["epoch"]] * 3
    return xr.apply_ufunc(rho, measure, loss, after, input_core_dims=dims, vectorize=True).sel(
        init_scale=1.0, drop=True
    )


def _least(results: Results, path: str) -> xr.DataArray:
    each = [follows(results[sweep.name], path) for sweep in _SWEEPS.values()]
    return xr.concat(each, "setting", join="outer").min("setting", skipna=False)


def _advantage(results: Results) -> xr.DataArray:
    """How much better MED follows the test loss than the norm does: difference of |ρ|, mean over the settings."""
    each = [
        abs(follows(results[sweep.name], MED)) - abs(follows(results[sweep.name], NORM)) for sweep in _SWEEPS.values()
    ]
    return xr.concat(each, "setting", join="outer").mean("setting", skipna=False)


CLAIMS = (
    Claim(
        name="med_follows_the_loss",
        says="From train accuracy 1 on the mean embedding difference follows the test loss.",
        source="Sec. 6.3",
        statistic="Spearman's ρ of MED and test loss, least over four settings",
        values=lambda results: _least(results, MED),
        side=">",
        threshold=0.5,
        main=True,
    ),
    Claim(
        name="med_knows_no_more_than_the_norm",
        says="It follows the test loss no better than the plain norm of the embeddings does.",
        source="ours",
        statistic="|ρ| of MED less |ρ| of the mean norm, mean over four settings",
        values=_advantage,
        side="<",
        threshold=0.05,
        main=True,
    ),
)

STUDY = Study(
    name="embedding_difference",
    title="Does the mean embedding difference tell how far the network is?",
    figures=(),
    sweeps=tuple(_SWEEPS.values()),
    draws=dict.fromkeys((LOSS, TRAIN, MED, RELATIVE, NORM)),
    claims=CLAIMS,
    draw=draw,
)
