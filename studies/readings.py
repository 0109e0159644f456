"""What claims are made of: numbers of every replica, arranged by init_scale and seed.

Every function takes the results of one sweep and returns an array with the dimensions (init_scale, seed), NaN where
there is no such replica, or with ``seed`` alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from scipy import stats


def grid(tree: xr.DataTree, path: str, **labels: str) -> xr.DataArray:
    """A variable of the results, with the dimensions (init_scale, seed, …).

    Args:
        tree: The results.
        path: ``BRANCH/VARIABLE``, or the name of one at the root.
        labels: Of further dimensions.
    """
    branch, _, name = path.rpartition("/")
    array = (tree[branch] if branch else tree).to_dataset()[name].sel(labels).transpose("replica", ...)
    scales, seeds = (np.atleast_1d(tree.coords[key].values) for key in ("init_scale", "seed"))
    coords = {"init_scale": ("replica", scales), "seed": ("replica", seeds)}
    others = {dim: array[dim].values for dim in array.dims[1:] if dim in array.coords}
    plain = xr.DataArray(array.values, coords | others, array.dims, attrs=array.attrs)
    return plain.set_index(replica=list(coords)).unstack("replica").transpose("init_scale", "seed", ...)


def end(tree: xr.DataTree, path: str, **labels: str) -> xr.DataArray:
    """A variable at the end of the training: the last value of a curve that is a number."""
    array = grid(tree, path, **labels)
    return xr.apply_ufunc(_last, array, input_core_dims=[["epoch"]], vectorize=True) if "epoch" in array.dims else array


def _last(curve: np.ndarray) -> float:
    known = curve[np.isfinite(curve)]
    return float(known[-1]) if known.size else np.nan


def at(tree: xr.DataTree, path: str, epochs: xr.DataArray, **labels: str) -> xr.DataArray:
    """A curve at the epoch of each replica's own, linear between measurements.

    Args:
        tree: The results.
        path: Of a curve.
        epochs: Dimensions (init_scale, seed).
        labels: Of further dimensions.
    """
    curve = grid(tree, path, **labels).dropna("epoch", how="all")
    return xr.apply_ufunc(
        lambda when, values: np.interp(when, curve.epoch.values, values) if np.isfinite(when) else np.nan,
        epochs.sel(init_scale=curve.init_scale),
        curve,
        input_core_dims=[[], ["epoch"]],
        vectorize=True,
    )


def between(
    tree: xr.DataTree,
    path: str,
    first: xr.DataArray | float,
    last: xr.DataArray | float,
    reduce: Callable[[xr.DataArray], xr.DataArray],
    labels: Mapping[str, str],
) -> xr.DataArray:
    """A curve between two epochs of each replica's own, reduced to a number.

    Args:
        tree: The results.
        path: Of a curve.
        first: From which epoch on.
        last: Up to which epoch, included.
        reduce: Of an array along ``epoch``, NaN outside.
        labels: Of further dimensions.
    """
    curve = grid(tree, path, **labels)
    inside = curve.where((curve.epoch >= first) & (curve.epoch <= last))
    return reduce(inside).where(inside.notnull().any("epoch"))


def time_mean(curve: xr.DataArray) -> xr.DataArray:
    """Mean over the time that a curve spans: the trapezoids below it over their width, whatever the epochs measured.

    Args:
        curve: Along ``epoch``, NaN where it does not count. A single value is its own mean.
    """

    def of_one(epochs: np.ndarray, values: np.ndarray) -> float:
        known = np.isfinite(values)
        x, y = epochs[known], values[known]
        return float(np.trapezoid(y, x) / np.ptp(x)) if len(x) > 1 else float(y[0]) if len(x) else np.nan

    return xr.apply_ufunc(of_one, curve.epoch, curve, input_core_dims=[["epoch"]] * 2, vectorize=True)


def first_epoch(condition: xr.DataArray) -> xr.DataArray:
    """The epoch at which something is first true, NaN where it never is.

    Args:
        condition: Truth values along ``epoch``.
    """
    first = condition.epoch[condition.argmax("epoch")]
    return first.where(condition.any("epoch")).drop_vars("epoch", errors="ignore")


def is_status(tree: xr.DataTree, *status: str) -> xr.DataArray:
    """1 where a replica has one of these statuses, 0 where it has another."""
    found = grid(tree, "status")
    return found.isin(status).astype(float).where(found.notnull())


def grokked(tree: xr.DataTree, array: xr.DataArray) -> xr.DataArray:
    """The array where a replica has grokked, else NaN."""
    return array.where(is_status(tree, "grokked") == 1)


def learned(tree: xr.DataTree, array: xr.DataArray) -> xr.DataArray:
    """The array where a replica has grokked or learned steadily, else NaN."""
    return array.where(is_status(tree, "grokked", "steady") == 1)


def onset(tree: xr.DataTree) -> xr.DataArray:
    """From which init_scale on a seed groks: the geometric mean of the last scale that learns steadily and the next.

    What memorised, collapsed or diverged is passed over. NaN where nothing learns steadily, or nothing beyond groks.
    """
    scales = grid(tree, "status").init_scale.values

    def of_seed(steady: np.ndarray, groks: np.ndarray) -> float:
        last = np.flatnonzero(steady == 1)
        beyond = [i for i in np.flatnonzero(groks == 1) if last.size and i > last[-1]]
        return float(np.sqrt(scales[last[-1]] * scales[beyond[0]])) if beyond else np.nan

    both = is_status(tree, "steady"), is_status(tree, "grokked")
    return xr.apply_ufunc(of_seed, *both, input_core_dims=[["init_scale"]] * 2, vectorize=True)


def over_scales(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: xr.DataArray,
    y: xr.DataArray,
    scales: Sequence[float] | None = None,
    dim: str = "init_scale",
) -> xr.DataArray:
    """A statistic of two quantities over the init_scales, for each seed; NaN where one of them is constant.

    Args:
        statistic: Of two arrays, at least three numbers each.
        x: Dimensions (init_scale, seed).
        y: Likewise.
        scales: Over which; None for all.
        dim: Another dimension, over which it is taken instead.
    """
    if scales is not None:
        x, y = x.sel(init_scale=list(scales)), y.sel(init_scale=list(scales))

    def of_seed(a: np.ndarray, b: np.ndarray) -> float:
        known = np.isfinite(a) & np.isfinite(b)
        a, b = a[known], b[known]
        return statistic(a, b) if len(a) >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan

    return xr.apply_ufunc(of_seed, x, y, input_core_dims=[[dim], [dim]], vectorize=True)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the line of least squares.

    Example:
        >>> round(slope(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])), 6)
        2.0
    """
    return float(stats.linregress(x, y).slope)


def determination(x: np.ndarray, y: np.ndarray) -> float:
    """r² of the line of least squares.

    Example:
        >>> round(determination(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])), 6)
        1.0
    """
    return float(stats.linregress(x, y).rvalue ** 2)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ.

    Example:
        >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0])), 6)
        1.0
    """
    return float(stats.spearmanr(x, y).statistic)
