"""Fig. 7: does a ResNet-18 that adds up the corners of polygons understand after a plateau? Small images, for a CPU."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.grokking import curves
from studies.beyond_progress_measures.sweeps import POLYGONS
from studies.claims import Claim, Results
from studies.readings import at, first_epoch, grid
from studies.study import Study

TEST, TRAIN = "evaluation/test_accuracy", "evaluation/train_accuracy"
_FITTED = 0.99


def draw(results: Results) -> Mapping[str, Figure]:
    """Accuracy and loss against the epoch."""
    return {"prime_fig7": curves(results[POLYGONS.name])} if POLYGONS.name in results else {}


def _fitted(results: Results) -> xr.DataArray:
    return first_epoch(grid(results[POLYGONS.name], TRAIN) >= _FITTED)


def _on_plateau(results: Results) -> xr.DataArray:
    tree = results[POLYGONS.name]
    return at(tree, TEST, 2 * _fitted(results)).sel(init_scale=1.0, drop=True)


CLAIMS = (
    Claim(
        name="polygons_fit_early",
        says="The training images are known after about a hundred epochs.",
        source="Fig. 7",
        statistic="epoch at which the train accuracy reaches 0.99, 5 symbols, 32 × 32 pixels, width 8",
        values=lambda results: _fitted(results).sel(init_scale=1.0, drop=True),
        side="within",
        threshold=(30, 300),
        paper="100",
    ),
    Claim(
        name="polygons_plateau",
        says="Others are not: there is a plateau.",
        source="Fig. 7",
        statistic="test accuracy at twice that epoch",
        values=_on_plateau,
        side="<",
        threshold=0.5,
        paper=".3 to .4",
        main=True,
    ),
    Claim(
        name="polygons_are_understood",
        says="Then the test accuracy rises to 1.",
        source="Fig. 7",
        statistic="highest test accuracy in 1000 epochs",
        values=lambda results: grid(results[POLYGONS.name], TEST).max("epoch").sel(init_scale=1.0, drop=True),
        side=">",
        threshold=0.9,
        paper="1, after 2800 epochs",
        main=True,
    ),
)

STUDY = Study(
    name="polygons",
    title="Does a ResNet-18 grok sums of polygons?",
    figures=("prime_fig7",),
    sweeps=(POLYGONS,),
    draws=dict.fromkeys(f"evaluation/{split}_{name}" for split in ("train", "test") for name in ("accuracy", "loss")),
    claims=CLAIMS,
    draw=draw,
)
