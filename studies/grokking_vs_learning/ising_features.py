"""Figs. 3, 12 and 13: grokked and steadily trained networks tell the Ising phases by the same feature, the energy."""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.features import correlation_layers, correlation_scatter
from studies.claims import Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY
from studies.readings import end, grokked, learned
from studies.study import Study, chosen

_SHOWN = (ISING_STEADY, GROKS)


def draw(results: Results) -> Mapping[str, Figure]:
    """The last layer against the observables (Fig. 3), and every layer's summaries (Figs. 12, 13)."""
    if "ising" not in results:
        return {}
    tree = chosen(results["ising"], _SHOWN)
    return {"fig3": correlation_scatter(tree, "features"), "fig12-13": correlation_layers(tree, "features")}


def _energy(results: Results, scale: float) -> xr.DataArray:
    tree, mask = results["ising"], grokked if scale == GROKS else learned
    found = end(tree, "features/median_correlation", layer="fc1", observable="energy")
    return mask(tree, found).sel(init_scale=scale, drop=True)


def _leading(results: Results, layer: str) -> xr.DataArray:
    """Whether the energy is the observable of most neurons, at every init_scale that is shown."""
    tree = results["ising"]
    shares = learned(tree, end(tree, "features/neuron_share", layer=layer, observable="energy"))
    least = shares.sel(init_scale=list(_SHOWN)).min("init_scale", skipna=False)
    return (least > 0.5).astype(float).where(least.notnull())


CLAIMS = (
    Claim(
        name="steady_energy",
        says="After steady learning fc1 follows the energy.",
        source="Sec. 4.1, Fig. 3; App. C",
        statistic="median |r| of the fc1 neurons with the energy at init_scale 1",
        values=lambda results: _energy(results, ISING_STEADY),
        side=">",
        threshold=0.95,
        paper=".99",
        main=True,
    ),
    Claim(
        name="grokked_energy",
        says="After grokking fc1 follows the energy as well.",
        source="Sec. 4.1, Fig. 3; App. C",
        statistic="median |r| of the fc1 neurons with the energy at init_scale 10",
        values=lambda results: _energy(results, GROKS),
        side=">",
        threshold=0.95,
        paper=".99, with three of ten seeds below",
        main=True,
    ),
    Claim(
        name="same_feature",
        says="Grokked and steadily trained networks follow the energy equally well.",
        source="Sec. 4.1",
        statistic="median |r| with the energy, init_scale 10 less 1",
        values=lambda results: _energy(results, GROKS) - _energy(results, ISING_STEADY),
        side="within",
        threshold=(-0.05, 0.05),
        paper="0",
    ),
    *(
        Claim(
            name=f"leading_{layer}",
            says=f"The energy is the observable of most neurons in {layer}, in grokking and in steady learning.",
            source="Sec. 4.1, App. C",
            statistic="whether more than half of the neurons have their highest |r| with it, at init_scale 1 and 10",
            values=partial(_leading, layer=layer),
            side=">",
            threshold=0.5,
            kind="share",
            paper="every seed",
        )
        for layer in ("conv2", "fc1")
    ),
)

STUDY = Study(
    name="ising_features",
    title="What does the Ising network learn?",
    figures=("fig3", "fig12", "fig13"),
    sweeps=(ISING,),
    draws={
        **{f"features/{name}": _SHOWN for name in ("correlation", "neuron_share", "activation_share")},
        **{f"features/{name}": _SHOWN for name in ("sample_preactivation", "sample_observable", "neuron_correlation")},
    },
    claims=CLAIMS,
    draw=draw,
)
