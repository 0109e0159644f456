"""What a sweep for each weight decay, or modulus, has measured, arranged by (that, init_scale) and seed."""

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
    return along(results, sweeps, lambda tree: end(tree, path, **labels))


def along(
    results: Results,
    sweeps: Mapping[float, Sweep] | Mapping[int, Sweep],
    measure: Callable[[xr.DataTree], xr.DataArray],
    key: str = "weight_decay",
) -> xr.DataArray:
    """Something measured of the trainings of each sweep, dimensions (key, init_scale, seed, …).

    A seed that lacks some of the sweeps is left out: the least, or the rank, of a few cells says nothing of all.

    Args:
        results: Those of the sweeps.
        sweeps: By their value of the key.
        measure: Of one tree, dimensions (init_scale, seed, …).
        key: In what they differ.
    """
    each = [measure(results[sweep.name]) for sweep in sweeps.values()]
    return xr.concat(each, xr.DataArray(list(sweeps), dims=key, name=key), join="inner")


def as_cells(array: xr.DataArray) -> xr.DataArray:
    """Every weight decay and init_scale in one dimension, ``cell``."""
    return array.stack(cell=("weight_decay", "init_scale"))


def joined(
    results: Results, sweeps: Mapping[float, Sweep] | Mapping[int, Sweep], key: str = "weight_decay"
) -> xr.DataTree | None:
    """One tree with the replicas of all sweeps, told apart by the key; None where there are none.

    Args:
        results: Those of the sweeps.
        sweeps: By their value of the key.
        key: In what they differ.
    """
    apart = [(value, results[sweep.name].copy()) for value, sweep in sweeps.items() if sweep.name in results]
    if not apart:
        return None
    for value, tree in apart:
        root = tree.to_dataset().reset_index("replica")
        tree.dataset = root.assign_coords({key: ("replica", [value] * root.sizes["replica"])})
    return index_replicas(join([tree for _, tree in apart]), also=[key])


def trained(results: Results, sweeps: Mapping[float, Sweep]) -> dict[str, xr.DataTree]:
    """The trees that are there, by what a legend calls them."""
    return {f"weight decay {d:g}": results[s.name] for d, s in sweeps.items() if s.name in results}
