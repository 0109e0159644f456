"""What a sweep for each weight decay has measured, arranged by (weight decay, init_scale) and seed."""

from collections.abc import Mapping

import xarray as xr

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
    each = [end(results[sweep.name], path, **labels) for sweep in sweeps.values()]
    return xr.concat(each, xr.DataArray(list(sweeps), dims="weight_decay", name="weight_decay"), join="outer")


def as_cells(array: xr.DataArray) -> xr.DataArray:
    """Every weight decay and init_scale in one dimension, ``cell``."""
    return array.stack(cell=("weight_decay", "init_scale"))


def trained(results: Results, sweeps: Mapping[float, Sweep]) -> dict[str, xr.DataTree]:
    """The trees that are there, by what a legend calls them."""
    return {f"weight decay {d:g}": results[s.name] for d, s in sweeps.items() if s.name in results}
