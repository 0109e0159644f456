"""A question of our own: does the compressive regime need the same batches in the same order every epoch?"""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.compressibility import COMPRESSIBILITY, excess
from studies.grokking_vs_learning.sweeps import MOD_ADD, RESHUFFLED
from studies.study import Study

_NAMES = {"mod_add": "the same every epoch", "reshuffled": "reshuffled"}


def draw(results: Results) -> Mapping[str, Figure]:
    """C and the training loss with both."""
    trees = {label: results[name] for name, label in _NAMES.items() if name in results}
    quantities = {
        COMPRESSIBILITY: "compressibility $C$",
        "evaluation/train_loss": "train loss at the end",
        "ipr/mean_ipr": "mean IPR",
    }
    return {"batch_order": against_scale(trees, quantities, log=["evaluation/train_loss"])} if trees else {}


def _difference(results: Results) -> xr.DataArray:
    return excess(results["mod_add"]) - excess(results["reshuffled"])


CLAIMS = (
    Claim(
        name="needs_fixed_batches",
        says="With reshuffled batches small initial weights leave C as it is.",
        source="ours",
        statistic="C(0.1) / C(1) − 1, reshuffled",
        values=lambda results: excess(results["reshuffled"]),
        side="within",
        threshold=(-0.1, 0.1),
        main=True,
    ),
    Claim(
        name="fixed_batches_compress_more",
        says="With the same batches every epoch small initial weights raise C more.",
        source="ours",
        statistic="C(0.1) / C(1), the same batches less reshuffled",
        values=_difference,
        side=">",
        threshold=0,
        of_ends=True,
    ),
)

STUDY = Study(
    name="batch_order",
    title="Does the compressive regime need fixed batches?",
    figures=(),
    sweeps=(MOD_ADD, RESHUFFLED),
    draws=dict.fromkeys((COMPRESSIBILITY, "evaluation/train_loss", "ipr/mean_ipr")),
    claims=CLAIMS,
    draw=draw,
)
