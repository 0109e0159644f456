"""Fig. 4: grokked and steadily trained networks add by the same Fourier modes, equally localised."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.fourier import ipr_distribution
from studies.claims import Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, MOD_ADD, MOD_ADD_STEADY
from studies.readings import end, grokked, learned
from studies.study import Study, chosen

_SHOWN = (MOD_ADD_STEADY, GROKS)


def draw(results: Results) -> Mapping[str, Figure]:
    """Inverse participation ratio of all neurons, and their frequencies."""
    return {"fig4": ipr_distribution(chosen(results["mod_add"], _SHOWN), "ipr")} if "mod_add" in results else {}


def _ipr(results: Results, scale: float) -> xr.DataArray:
    tree, mask = results["mod_add"], grokked if scale == GROKS else learned
    return mask(tree, end(tree, "ipr/mean_ipr")).sel(init_scale=scale, drop=True)


CLAIMS = (
    Claim(
        name="grokked_ipr",
        says="After grokking each neuron holds little more than one frequency.",
        source="Sec. 4.2, Fig. 4d",
        statistic="mean IPR at init_scale 10",
        values=lambda results: _ipr(results, GROKS),
        side="within",
        threshold=(0.38, 0.58),
        paper=".43",
    ),
    Claim(
        name="steady_ipr",
        says="After steady learning each neuron holds little more than one frequency, too.",
        source="Sec. 4.2, Fig. 4c",
        statistic="mean IPR at init_scale 1",
        values=lambda results: _ipr(results, MOD_ADD_STEADY),
        side="within",
        threshold=(0.38, 0.58),
        paper=".53",
    ),
    Claim(
        name="same_ipr",
        says="Grokked and steadily trained networks are equally localised in the Fourier basis.",
        source="Sec. 4.2",
        statistic="mean IPR, init_scale 10 less 1",
        values=lambda results: _ipr(results, GROKS) - _ipr(results, MOD_ADD_STEADY),
        side="within",
        threshold=(-0.1, 0.1),
        paper="-.10",
        main=True,
    ),
)

STUDY = Study(
    name="fourier",
    title="What does the network that adds learn?",
    figures=("fig4",),
    sweeps=(MOD_ADD,),
    draws={"ipr/neuron_ipr": _SHOWN, "ipr/neuron_frequency": _SHOWN},
    claims=CLAIMS,
    draw=draw,
)
