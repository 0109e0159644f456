"""Figs. 7 and 28 to 30: on the plateau of the Ising task nothing develops."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.features import correlation_development
from lit_grok.figures.pruning import compressibility_development
from studies.claims import Claim, Results
from studies.grokking_vs_learning.sweeps import GROKS, ISING, ISING_STEADY
from studies.readings import at, end, grid, grokked
from studies.study import Study, chosen

_SHOWN = (ISING_STEADY, GROKS)
_FOLLOWS = 0.9  # |r| of a neuron that follows an observable


def draw(results: Results) -> Mapping[str, Figure]:
    """Weighted |r| of every layer (Fig. 7), the shares of neurons and of |pre-activation| (28 to 30), and C (7)."""
    if "ising" not in results:
        return {}
    tree = chosen(results["ising"], _SHOWN)
    return {
        "fig7": correlation_development(tree, "features"),
        "fig7c": compressibility_development(tree, "pruning"),
        "fig28-30a": correlation_development(tree, "features", "neuron_share"),
        "fig28-30b": correlation_development(tree, "features", "activation_share"),
    }


def _change(results: Results) -> xr.DataArray:
    """Over the first 80 % of the plateau, before the test accuracy rises."""
    tree = results["ising"]
    path, labels = "features/correlation", {"layer": "fc1", "observable": "energy"}
    late, early = (at(tree, path, when, **labels) for when in (0.8 * grid(tree, "t_test"), grid(tree, "t_train")))
    return grokked(tree, late - early).sel(init_scale=GROKS, drop=True)


def _after(results: Results) -> xr.DataArray:
    """From the time when the test accuracy is there to the end."""
    tree = results["ising"]
    path, labels = "features/correlation", {"layer": "fc1", "observable": "energy"}
    gain = end(tree, path, **labels) - at(tree, path, grid(tree, "t_test"), **labels)
    return grokked(tree, gain).sel(init_scale=GROKS, drop=True)


def _detour(results: Results) -> xr.DataArray:
    """How far the median neuron follows the signed magnetisation rather than the energy, before it follows that."""
    tree = results["ising"]
    labels = [{"layer": "fc1", "observable": name} for name in ("magnetisation", "energy")]
    signed, energy = (grid(tree, "features/median_correlation", **each) for each in labels)
    follows = energy.epoch.where(energy > _FOLLOWS).min("epoch")
    before = (signed.epoch >= grid(tree, "t_train")) & (signed.epoch < follows)
    return grokked(tree, (signed - energy).where(before).max("epoch")).sel(init_scale=GROKS, drop=True)


CLAIMS = (
    Claim(
        name="nothing_on_plateau",
        says="The representation of the energy does not improve on the plateau.",
        source="Sec. 6.1, Fig. 7",
        statistic="change of the weighted |r| of fc1 with the energy from t_train to 0.8 t_test, init_scale 10",
        values=_change,
        side="<",
        threshold=0.1,
        paper="0",
        main=True,
    ),
    Claim(
        name="improves_afterwards",
        says="The representation of the energy goes on improving after the accuracy has come.",
        source="Sec. 6.1, Fig. 7",
        statistic="change of the weighted |r| of fc1 with the energy from t_test to the end, init_scale 10",
        values=_after,
        side=">",
        threshold=0,
    ),
    Claim(
        name="magnetisation_first",
        says="On their way neurons that grok follow the signed magnetisation before they follow the energy.",
        source="ours",
        statistic="median |r| of fc1, magnetisation less energy, at most until the energy has .9, init_scale 10",
        values=_detour,
        side=">",
        threshold=0.2,
        main=True,
    ),
)

STUDY = Study(
    name="ising_development",
    title="What develops on the plateau of the Ising task?",
    figures=("fig7", "fig28", "fig29", "fig30"),
    sweeps=(ISING,),
    draws={
        **{f"evaluation/{name}": _SHOWN for name in ("train_accuracy", "test_accuracy")},
        **{f"features/{name}": _SHOWN for name in ("correlation", "neuron_share", "activation_share")},
        **{f"pruning/{name}": _SHOWN for name in ("compressibility", "kept_share")},
    },
    claims=CLAIMS,
    draw=draw,
)
