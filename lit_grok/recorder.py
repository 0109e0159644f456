"""What a training has found so far: curves and arrays by name and epoch, and the verdict on every replica."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from lit_grok.measures.grokking import Outcome, outcome

#: What tells one replica of a run from another; the first two are always there to select by.
REPLICA_KEYS = ("init_scale", "seed", "weight_decay", "seed_init", "seed_data", "seed_order")

#: The curves of every training, by which it is judged, in the branch ``evaluation``.
EVALUATION = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "weight_norm")


class _Series:
    """The measurements of one variable, in one array that grows by doubling.

    Thousands of small arrays that live on between the large temporary ones of the training would keep the allocator
    from ever reusing the memory of those: 20 MB lost per epoch with nine replicas of modular addition.
    """

    def __init__(
        self,
        dims: Sequence[str],
        epochs: Sequence[int | None],
        values: np.ndarray,
        attributes: Mapping[str, str] | None = None,
    ):
        self.dims, self.epochs = list(dims), list(epochs)
        self.attributes = {"long_name": "", **(attributes or {})}
        self._buffer = np.array(values)

    @property
    def values(self) -> np.ndarray:
        """Shape (n, R, *shape), one row per epoch."""
        return self._buffer[: len(self.epochs)]

    def append(self, epoch: int | None, array: np.ndarray) -> None:
        """Add the values at an epoch, or replace those at the last one."""
        if not (self.epochs and self.epochs[-1] == epoch):
            self.epochs.append(epoch)
            if len(self.epochs) > len(self._buffer):
                self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[len(self.epochs) - 1] = array


class Recorder:
    """Curves and arrays of one training run, kept by name and epoch, to be written as one labelled tree.

    A name is ``BRANCH/VARIABLE``; the branch is that of the callback that measures it.

    Args:
        replicas: One mapping per replica, with the keys of `REPLICA_KEYS`.

    Attributes:
        attributes: What is to be known of the run (under ``""``) and of its branches: texts by name, by branch.

    Example:
        >>> from lit_grok.results import index_replicas
        >>> recorder = Recorder([{"init_scale": 10.0, "seed": 0}, {"init_scale": 10.0, "seed": 1}])
        >>> recorder.add("evaluation/test_accuracy", [0.5, 0.7], epoch=0)
        >>> recorder.add("evaluation/test_accuracy", [0.9, 1.0], epoch=10)
        >>> run = index_replicas(recorder.tree())
        >>> run.evaluation.test_accuracy.sel(init_scale=10).mean("seed").values.round(2).tolist()
        [0.6, 0.95]
    """

    def __init__(self, replicas: Sequence[Mapping[str, Any]]):
        self.replicas = [dict(replica) for replica in replicas]
        self.attributes: dict[str, dict[str, str]] = {}
        self._series: dict[str, _Series] = {}
        self._coordinates: dict[str, dict[str, list]] = {}

    def add(
        self,
        name: str,
        values: ArrayLike,
        epoch: int | None,
        dims: Sequence[str] = (),
        coordinates: Mapping[str, Sequence] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Record one measurement of all replicas.

        Args:
            name: ``BRANCH/VARIABLE``, each a Python identifier, so that ``run.BRANCH.VARIABLE`` finds it.
            values: Shape (R, *shape), NaN for a replica that was not measured.
            epoch: Number of completed epochs, or None for something measured once, at the end.
            dims: A name for each dimension of ``shape``.
            coordinates: Labels along those dimensions, where they have any.
            attributes: ``long_name``, and ``units`` of what is not dimensionless.

        Raises:
            ValueError: Where the name cannot be used, or the shape does not fit the replicas, the dims or what was
                recorded before.
        """
        branch, _, variable = name.partition("/")
        if not (branch.isidentifier() and variable.isidentifier()):
            raise ValueError(
                f"{name}: a branch and a variable have names of letters, digits and underscores, by which "
                "results.BRANCH.VARIABLE finds them"
            )
        array = np.asarray(values, dtype=None if np.asarray(values).dtype.kind == "f" else float)
        if array.shape[:1] != (len(self.replicas),) or array.ndim != 1 + len(dims):
            raise ValueError(
                f"{name}: shape {array.shape} does not fit {len(self.replicas)} replicas and dimensions {tuple(dims)}"
            )
        reserved = (_TAKEN & {variable, *dims}) | ((_TAKEN_BRANCHES - {"logged"}) & {branch})
        if reserved:
            raise ValueError(f"{name}: {', '.join(sorted(reserved))}: taken; choose another name")
        for dim, size in zip(dims, array.shape[1:], strict=True):
            self._check_dim(branch, variable, dim, size, (coordinates or {}).get(dim))
        series = self._series.get(name)
        if series is not None:
            self._check_series(name, series, array, epoch, dims)
            series.append(epoch, array)
        else:
            self._series[name] = _Series(dims, [epoch], array[np.newaxis], attributes)
        for dim, labels in (coordinates or {}).items():
            self._coordinates.setdefault(branch, {}).setdefault(dim, np.asarray(labels).tolist())

    def amend(self, name: str, values: ArrayLike, epoch: int) -> None:
        """Put in, for an epoch that was recorded before, what could not be measured then.

        Args:
            name: Name of the variable.
            values: Shape (R, *shape), NaN where nothing is to change.
            epoch: One of its epochs.
        """
        series = self._series[name]
        kept, array = series.values[series.epochs.index(epoch)], np.asarray(values)
        kept[...] = np.where(np.isnan(array), kept, array)

    @staticmethod
    def _check_series(name: str, series: _Series, array: np.ndarray, epoch: int | None, dims: Sequence[str]) -> None:
        """One variable is always measured alike."""
        if (epoch is None) != (series.epochs == [None]):
            raise ValueError(f"{name}: measured both on a cadence and once, without an epoch: choose another name")
        if series.values.shape[1:] != array.shape or series.dims != list(dims):
            raise ValueError(
                f"{name}: shape {array.shape[1:]} and dimensions {tuple(dims)} differ from the "
                f"{series.values.shape[2:]} and {tuple(series.dims)} recorded before"
            )

    def _check_dim(self, branch: str, variable: str, dim: str, size: int, labels: Sequence | None) -> None:
        """One dimension has one size and one set of labels in a branch, and no variable of that name beside it."""
        name = f"{branch}/{variable}"
        for other, series in self._series.items():
            if not other.startswith(f"{branch}/"):
                continue
            there = dict(zip(series.dims, series.values.shape[2:], strict=True)).get(dim, size)
            if there != size:
                raise ValueError(
                    f"{name}: its dimension {dim} has the length {size}, that of {other} has {there}: "
                    "give it another name"
                )
        if dim == variable or f"{branch}/{dim}" in self._series:
            raise ValueError(f"{name}: {dim} is the name of a variable too: give the dimension another")
        if labels is not None and (len(labels) != size or np.asarray(labels).dtype.kind not in "biufU"):
            raise ValueError(f"{name}: the labels of its dimension {dim} are not {size} numbers or texts")
        known = self._coordinates.get(branch, {}).get(dim)
        if labels is not None and known is not None and np.asarray(labels).tolist() != known:
            raise ValueError(f"{name}: the labels of its dimension {dim} differ from those recorded before")

    def has(self, name: str, *epoch: int | None) -> bool:
        """Whether this variable was recorded; at this epoch, last, where one is given."""
        return name in self._series and (not epoch or self._series[name].epochs[-1] == epoch[0])

    def latest(self, name: str) -> np.ndarray:
        """The last recorded values, shape (R, *shape)."""
        return self._series[name].values[-1].copy()

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Epochs (n,) and values (n, R, *shape) of one variable."""
        return np.array(self._series[name].epochs), self._series[name].values.copy()

    @property
    def last_epoch(self) -> int:
        """The last epoch that anything was recorded at; 0 before that."""
        return max((e for s in self._series.values() for e in s.epochs if e is not None), default=0)

    def tree(self, outcomes: Sequence[Outcome] | None = None) -> xr.DataTree:
        """Everything as one tree: the replicas at its root, and a branch with an epoch axis of its own per callback.

        Args:
            outcomes: What became of every replica: ``status``, ``t_train``, ``t_test`` and ``t_grok`` at the root.

        Returns:
            The tree. Curves have the dimensions (replica, epoch, …), NaN at an epoch of their branch at which they
            were not measured.
        """
        branches = {name.partition("/")[0] for name in self._series}
        root = xr.Dataset(
            coords={
                key: ("replica", np.array([replica[key] for replica in self.replicas]), _REPLICA_ATTRIBUTES.get(key))
                for key in self.replicas[0]
            },
            attrs=self.attributes.get(""),
        )
        root["epochs"] = ("replica", [self.last_epoch] * len(self.replicas), {"long_name": "last epoch measured"})
        if outcomes is not None:
            root["status"] = (
                "replica",
                [str(found.status) for found in outcomes],
                {"long_name": "status"},
            )
            for name, long_name in _TIMES.items():
                times = [np.nan if (t := getattr(found, name)) is None else t for found in outcomes]
                root[name] = ("replica", np.array(times, float), {"long_name": long_name, "units": "epochs"})
        return xr.DataTree.from_dict({"/": root, **{branch: self._branch(branch) for branch in sorted(branches)}})

    def _branch(self, branch: str) -> xr.Dataset:
        members = {name.partition("/")[2]: s for name, s in self._series.items() if name.startswith(f"{branch}/")}
        epochs = sorted({e for s in members.values() for e in s.epochs if e is not None})
        variables: dict[str, Any] = {}
        for name, series in members.items():
            attributes = {**series.attributes, "long_name": series.attributes["long_name"] or name.replace("_", " ")}
            if series.epochs == [None]:
                variables[name] = (("replica", *series.dims), series.values[0].copy(), attributes)
                continue
            values = series.values.swapaxes(0, 1)
            filled = np.full((values.shape[0], len(epochs), *values.shape[2:]), np.nan, values.dtype)
            filled[:, np.searchsorted(epochs, np.array(series.epochs))] = values
            variables[name] = (("replica", "epoch", *series.dims), filled, attributes)
        used = {dim for series in members.values() for dim in series.dims}
        coordinates: dict[str, Any] = {
            dim: labels for dim, labels in self._coordinates.get(branch, {}).items() if dim in used
        }
        if epochs:
            coordinates["epoch"] = ("epoch", np.array(epochs, dtype=np.int64), {"long_name": "epoch"})
        return xr.Dataset(variables, coordinates, self.attributes.get(branch))

    def state_dict(self) -> dict[str, Any]:
        """All recorded values as tensors and plain containers."""
        series = {
            name: {
                "dims": s.dims,
                "epochs": s.epochs,
                "values": torch.from_numpy(s.values.copy()),
                "attributes": s.attributes,
            }
            for name, s in self._series.items()
        }
        return {"series": series, "coordinates": self._coordinates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: Where that is not a record of these replicas; then everything stays as it was.
        """
        taken = Recorder(self.replicas)
        known = state["coordinates"]
        for name, s in state["series"].items():
            dims, epochs, values, attributes = s["dims"], s["epochs"], s["values"].numpy(), dict(s["attributes"])
            if not all(isinstance(text, str) for text in (name, *dims, *attributes, *attributes.values())):
                raise ValueError(f"{name}: its name, one of its dimensions {dims} or attributes is no text")
            whole = all(type(epoch) is int and epoch >= 0 for epoch in epochs)
            if epochs != [None] and not (whole and epochs and epochs == sorted(set(epochs))):
                raise ValueError(f"{name}: its epochs are not None or whole numbers that increase")
            if len(values) != len(epochs) or values.dtype.kind != "f":
                raise ValueError(f"{name}: {len(values)} values of the type {values.dtype} at {len(epochs)} epochs")
            there = known.get(name.partition("/")[0], {})
            labels = {dim: there[dim] for dim in dims if dim in there}
            taken.add(name, values[0], epochs[0], dims, labels)
            taken._series[name] = _Series(dims, epochs, values, attributes)
        taken.tree()  # whatever else two names cannot share
        self._series, self._coordinates = taken._series, taken._coordinates


def check_branch(name: str) -> None:
    """Refuse what cannot name a branch of the results.

    Raises:
        ValueError: Where it is no identifier, or the name of something else.

    Example:
        >>> check_branch("ipr_r4")
        >>> check_branch("my-norm")
        Traceback (most recent call last):
        ValueError: callbacks.my-norm: the results have a branch of that name: letters, digits and underscores only
    """
    if not name.isidentifier():
        raise ValueError(
            f"callbacks.{name}: the results have a branch of that name: letters, digits and underscores only"
        )
    if name in _TAKEN_BRANCHES:
        raise ValueError(f"callbacks.{name}: the results have something else of that name; choose another")


_TIMES = {
    "t_train": "train accuracy within 5 % of its maximum",
    "t_test": "test accuracy within 5 % of its maximum",
    "t_grok": "t_test − t_train",
}

RESERVED = ("replica", "epoch", *REPLICA_KEYS)
_TAKEN = frozenset(RESERVED)
_TAKEN_BRANCHES = _TAKEN | {"status", "epochs", "logged", *_TIMES, *dir(xr.DataTree)}

_REPLICA_ATTRIBUTES = {
    "init_scale": {"long_name": "scale of the initial weights"},
    "weight_decay": {"long_name": "weight decay"},
}


def outcomes(
    recorder: Recorder, *, chance: float, generalisation: float, diverged: Sequence[int | None]
) -> list[Outcome]:
    """What became of every replica, from its own curves, as far as its loss was finite.

    Args:
        recorder: Curves of the run.
        chance: Accuracy of a guess.
        generalisation: Test accuracy from which a run counts as having generalised.
        diverged: For each replica the epoch at which its loss was found not to be finite, or None.

    Returns:
        One outcome per replica.
    """
    curves = _curves(recorder, "train_accuracy", "test_accuracy", "weight_norm")
    found = []
    for r, end in enumerate(diverged):
        epochs, train = _sound(curves["train_accuracy"], r, end)
        test, norm = (_sound(curves[name], r, end)[1] for name in ("test_accuracy", "weight_norm"))
        options = {"chance": chance, "generalisation": generalisation}
        found.append(outcome(epochs, train, test, norm, diverged=end is not None, **options))
    return found


def summarise(
    recorder: Recorder,
    *,
    task: str,
    chance: float,
    generalisation: float,
    diverged: Sequence[int | None],
    epochs: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """The end-of-run facts of every replica.

    Args:
        recorder: Curves of the run.
        task: Name of the task.
        chance: Accuracy of a guess.
        generalisation: Test accuracy from which a run counts as having generalised.
        diverged: For each replica the epoch at which its loss was found not to be finite, or None.
        epochs: Completed epochs.
        seconds: Wall time of the training, shared by all replicas that trained together.

    Returns:
        One record per replica; None where something is undefined. Of a replica that diverged, losses, accuracies and
        weight norm are those of its last sound evaluation, as its weights are.
    """
    judged = outcomes(recorder, chance=chance, generalisation=generalisation, diverged=diverged)
    curves = _curves(recorder, *EVALUATION)
    records = []
    for r, (replica, found) in enumerate(zip(recorder.replicas, judged, strict=True)):
        record = {"task": task, **replica, "status": found.status, "grokked": found.status == "grokked"}
        record |= {"t_train": found.t_train, "t_test": found.t_test, "t_grok": found.t_grok, "epochs": epochs}
        for name in EVALUATION:
            _, values = _sound(curves[name], r, diverged[r])
            record[name] = float(values[-1]) if values.size else None
            if name.endswith("accuracy"):
                record[f"max_{name}"] = float(values.max()) if values.size else None
        record["seconds"] = round(seconds, 3)
        records.append(record)
    return records


def _curves(recorder: Recorder, *names: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs (n,) and values (n, R) of curves of the evaluation; each is a copy, made once for all replicas."""
    return {name: recorder.curve(f"evaluation/{name}") for name in names}


def _sound(curve: tuple[np.ndarray, np.ndarray], replica: int, diverged: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (n,) and values (n,) of one replica, up to its divergence."""
    epochs, values = curve
    sound = slice(None) if diverged is None else epochs < diverged
    return epochs[sound], values[sound, replica]
