"""Figs. 2, 9 and 10: the scale of the initial weights moves both tasks between grokking and steady learning."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.grokking import curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.sweeps import ISING, MOD_ADD
from studies.readings import end, is_status, onset
from studies.study import Study, living

_ENDS = {
    "evaluation/test_accuracy": "test accuracy at the end",
    "evaluation/train_loss": "train loss at the end",
    "evaluation/test_loss": "test loss at the end",
    "t_train": r"$t_{\rm train}$ (epochs)",
    "t_test": r"$t_{\rm test}$ (epochs)",
    "evaluation/weight_norm": "norm of the weights at the end",
}


def draw(results: Results) -> Mapping[str, Figure]:
    """Curves of every init_scale (Fig. 2), and what each seed comes to (Figs. 9, 10)."""
    figures = {}
    for letter, number, sweep in (("a", 9, ISING), ("b", 10, MOD_ADD)):
        if sweep.name in results:
            tree = results[sweep.name]
            figures[f"fig2{letter}"] = curves(tree)
            log = [path for path in _ENDS if not path.endswith("accuracy")]
            figures[f"fig{number}"] = against_scale({sweep.name: living(tree)}, _ENDS, log)
    return figures


def _least_accurate(results: Results) -> xr.DataArray:
    """A replica that diverged has no accuracy."""
    tree = results["mod_add"]
    accuracy = end(tree, "evaluation/test_accuracy").where(is_status(tree, "diverged") != 1, 0.0)
    return accuracy.min("init_scale", skipna=False)


CLAIMS = (
    Claim(
        name="ising_onset",
        says="The Ising task groks above an init_scale of about 3.",
        source="Sec. 3, Fig. 2a",
        statistic="init_scale beyond which nothing learns steadily, midway between two that were trained",
        values=lambda results: onset(results["ising"]),
        side="within",
        threshold=(2, 4),
        paper="3",
        main=True,
    ),
    Claim(
        name="mod_add_onset",
        says="Modular addition groks above an init_scale of about 0.4.",
        source="Sec. 3, Fig. 2b",
        statistic="init_scale beyond which nothing learns steadily, midway between two that were trained",
        values=lambda results: onset(results["mod_add"]),
        side="within",
        threshold=(0.3, 0.65),
        paper="0.4",
        main=True,
    ),
    Claim(
        name="mod_add_robust",
        says="In modular addition every seed is perfect at every init_scale.",
        source="App. A, Fig. 10",
        statistic="lowest test accuracy over the init_scales",
        values=_least_accurate,
        side=">",
        threshold=0.99,
        paper="1",
        main=True,
    ),
    Claim(
        name="ising_fails",
        says="In the Ising task a seed now and then fails to grok deep in the grokking regime.",
        source="App. A, Fig. 9",
        statistic="whether it fails to grok at init_scale 10 (of fewer than 14 seeds no number decides)",
        values=lambda results: 1 - is_status(results["ising"], "grokked").sel(init_scale=10, drop=True),
        side="within",
        threshold=(0.02, 0.4),
        kind="share",
        paper="one seed",
        main=True,
    ),
)

STUDY = Study(
    name="grokking",
    title="When does it grok?",
    figures=("fig2", "fig9", "fig10"),
    sweeps=(ISING, MOD_ADD),
    draws=dict.fromkeys(
        f"evaluation/{name}" for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss", "weight_norm")
    ),
    claims=CLAIMS,
    draw=draw,
)
