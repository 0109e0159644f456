"""What a sweep for each weight decay has measured, arranged by (weight decay, init_scale) and seed."""

from collections.abc import Callable, Mapping

import xarray as xr

from lit_grok.results import index_replicas, join
from studies.claims import Results
from studies.readings import end
from studies.runs import Sweep


def ends(results: Results, sweeps: Mapping[float, Sweep], path: str, **labels: str) -> xr.DataArray:
    """A variable at the end of the trainings of all weight decays, dimensions (weight_decay, init_scale, seed, …).

    Args:
        results: Those of the sweeps.
        sweeps: By their weight decay.
        path: ``BRANCH/VARIABLE``.
        labels: Of further dimensions.
    """
    return at_decays(results, sweeps, lambda tree: end(tree, path, **labels))


def at_decays(
    results: Results, sweeps: Mapping[float, Sweep], measure: Callable[[xr.DataTree], xr.DataArray]
) -> xr.DataArray:
    """Something measured of the trainings of each weight decay, dimensions (weight_decay, init_scale, seed, …).

    Args:
        results: Those of the sweeps.
        sweeps: By their weight decay.
        measure: Of one tree, dimensions (init_scale, seed, …).
    """
    each = [measure(results[sweep.name]) for sweep in sweeps.values()]
    return xr.concat(each, xr.DataArray(list(sweeps), dims="weight_decay", name="weight_decay"), join="outer")


def as_cells(array: xr.DataArray) -> xr.DataArray:
    """Every weight decay and init_scale in one dimension, ``cell``."""
    return array.stack(cell=("weight_decay", "init_scale"))


def joined(results: Results, sweeps: Mapping[float, Sweep]) -> xr.DataTree | None:
    """One tree with the replicas of all weight decays; None where there are none.

    Args:
        results: Those of the sweeps.
        sweeps: By their weight decay.
    """
    trees = [results[sweep.name] for sweep in sweeps.values() if sweep.name in results]
    if not trees:
        return None
    apart = [tree.copy() for tree in trees]
    for tree in apart:
        tree.dataset = tree.to_dataset().reset_index("replica")
    return index_replicas(join(apart))


def trained(results: Results, sweeps: Mapping[float, Sweep]) -> dict[str, xr.DataTree]:
    """The trees that are there, by what a legend calls them."""
    return {f"weight decay {d:g}": results[s.name] for d, s in sweeps.items() if s.name in results}
