"""Figs. 25 to 27: other ways to prune by magnitude."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.pruning import pruning_curves
from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.grokking_vs_learning.sweeps import GROKS, ISING, MOD_ADD
from studies.readings import end, learned
from studies.study import Study, chosen, living

_SHOWN = (1.0, GROKS)
_SCHEMES = {"pruning": "layerwise", "pruning_global": "global", "pruning_normalised": "normalised"}


def draw(results: Results) -> Mapping[str, Figure]:
    """C of the three schemes (Fig. 25), and one layer at a time (Fig. 26: Ising, Fig. 27: modular addition)."""
    figures = {}
    for number, name in ((26, "ising"), (27, "mod_add")):
        if name in results:
            paths = {f"{branch}/final_compressibility": f"$C$, {scheme}" for branch, scheme in _SCHEMES.items()}
            figures[f"fig25-{name}"] = against_scale({name: living(results[name])}, paths)
            figures[f"fig{number}"] = pruning_curves(chosen(results[name], _SHOWN), "pruning_single_layer")
    return figures


def _gain(results: Results) -> xr.DataArray:
    tree = results["ising"]
    found = [end(tree, f"{branch}/final_compressibility") for branch in ("pruning_global", "pruning")]
    return learned(tree, xr.DataArray(np.log(found[0] / found[1]))).mean("init_scale")


def _robust(results: Results) -> xr.DataArray:
    """The area under the pruning curve of fc1 less that of conv1, mean over the init_scales that learn."""
    tree = results["ising"]
    areas = [end(tree, "pruning_single_layer/layer_final_area", layer=layer) for layer in ("fc1", "conv1")]
    return learned(tree, areas[0] - areas[1]).mean("init_scale")


CLAIMS = (
    Claim(
        name="global_prunes_more",
        says="One ranking over all weights of the Ising network prunes more of it than one in each layer.",
        source="App. F.2, Fig. 25",
        statistic="log of C by global over C by layerwise magnitude, mean over the init_scales that learn",
        values=_gain,
        side=">",
        threshold=0,
    ),
    Claim(
        name="last_layer_robust",
        says="The Ising network can spare weights of its fully connected layer, and few of its convolutions.",
        source="App. F.2, Fig. 26",
        statistic="area under the pruning curve, fc1 alone less conv1 alone, mean over the init_scales that learn",
        values=_robust,
        side=">",
        threshold=0,
    ),
)

STUDY = Study(
    name="pruning_schemes",
    title="Does it matter how one prunes?",
    figures=("fig25", "fig26", "fig27"),
    sweeps=(MOD_ADD, ISING),
    draws={
        **dict.fromkeys(f"{branch}/final_compressibility" for branch in _SCHEMES),
        **{f"pruning_single_layer/layer_{name}": _SHOWN for name in ("accuracy", "loss", "final_kept_share")},
    },
    claims=CLAIMS,
    draw=draw,
)
