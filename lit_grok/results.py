"""Reading and writing what a run found: labelled curves and arrays, summary records, network weights.

A run's directory holds

- ``config.yaml``: the resolved configuration, every default spelled out,
- ``results.nc``: one labelled tree of every curve and array, a branch for each callback (netCDF),
- ``weights.safetensors``: the parameters of all replicas, shape (R, …), and which replicas these are,
- ``summary.json``: a record per replica, written when the run has ended,
- ``checkpoints/``, ``figures/``, ``train.log``.

Every file is replaced as a whole, so a kill cannot leave an unreadable one, and none is read by unpickling. One that is
damaged all the same, or something else, is a `lit_grok.files.ReadError`, which says so in one sentence.
"""

import glob
import importlib
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import netCDF4
import numpy as np
import safetensors
import safetensors.torch
import torch
import xarray as xr
import yaml
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lit_grok.files import ReadError, WriteError, check_archive, check_seal, reading, seal, write
from lit_grok.measures.grokking import Outcome, Status, outcome

log = logging.getLogger("lit_grok")

CONFIG, RESULTS, WEIGHTS, SUMMARY = "config.yaml", "results.nc", "weights.safetensors", "summary.json"
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoints/last.ckpt", "checkpoints/previous.ckpt"

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
        reserved = (_RESERVED & {variable, *dims}) | ((_RESERVED | _AT_THE_ROOT) & {branch})
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
    if name in _RESERVED | _AT_THE_ROOT:
        raise ValueError(f"callbacks.{name}: the results have something else of that name; choose another")


_TIMES = {
    "t_train": "train accuracy within 5 % of its maximum",
    "t_test": "test accuracy within 5 % of its maximum",
    "t_grok": "t_test − t_train",
}

_RESERVED = {"replica", "epoch", *REPLICA_KEYS}
_AT_THE_ROOT = {"status", *_TIMES}

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
    found = []
    for r, end in enumerate(diverged):
        epochs, train = _sound(recorder, "train_accuracy", r, end)
        test, norm = (_sound(recorder, name, r, end)[1] for name in ("test_accuracy", "weight_norm"))
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
    records = []
    for r, (replica, found) in enumerate(zip(recorder.replicas, judged, strict=True)):
        record = {"task": task, **replica, "status": found.status, "grokked": found.status == "grokked"}
        record |= {"t_train": found.t_train, "t_test": found.t_test, "t_grok": found.t_grok, "epochs": epochs}
        for name in EVALUATION:
            _, values = _sound(recorder, name, r, diverged[r])
            record[name] = float(values[-1]) if values.size else None
            if name.endswith("accuracy"):
                record[f"max_{name}"] = float(values.max()) if values.size else None
        record["seconds"] = round(seconds, 3)
        records.append(record)
    return records


def _sound(recorder: Recorder, name: str, replica: int, diverged: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (n,) and values (n,) of one curve of one replica, up to its divergence."""
    epochs, values = recorder.curve(f"evaluation/{name}")
    sound = slice(None) if diverged is None else epochs < diverged
    return epochs[sound], values[sound, replica]


def write_results(run_dir: str | Path, tree: xr.DataTree, stacked: Mapping[str, Tensor]) -> None:
    """Write the tree and the parameters of all replicas, each file as a whole.

    Raises:
        lit_grok.files.WriteError: Where that cannot be done.
    """
    path = Path(run_dir) / RESULTS
    compression = {
        node.path: {
            str(name): {"zlib": True, "complevel": 1}
            for name in node.data_vars
            if node.data_vars[name].dtype.kind == "f"
        }
        for node in tree.subtree
    }
    try:
        with tempfile.TemporaryDirectory() as folder:  # the library writes to files, and what is written has a seal
            tree.to_netcdf(Path(folder) / RESULTS, engine="netcdf4", encoding=compression)
            content = (Path(folder) / RESULTS).read_bytes()
    except (OSError, RuntimeError) as error:  # a full disk is either, as the library has it
        raise WriteError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    write(path, seal(content))
    weights = {name: values.detach().cpu().contiguous() for name, values in stacked.items()}
    write(Path(run_dir) / WEIGHTS, safetensors.torch.save(weights, {"replicas": json.dumps(_replicas(tree))}))


def write_config(run_dir: str | Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration."""
    text = yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write(Path(run_dir) / CONFIG, text)


def write_summary(run_dir: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the list of records, one per replica; NaN and infinity become null."""
    clean = [{k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in r.items()} for r in records]
    write(Path(run_dir) / SUMMARY, json.dumps(clean, indent=2, allow_nan=False) + "\n")


def open_run(run_dir: str | Path, *branches: str) -> xr.DataTree:
    """Every curve and array of one run, labelled: a tree with a branch for each callback.

    The root has the replicas and what became of each: ``status``, ``t_train``, ``t_test``, ``t_grok``. A branch is
    named by the callback's key in the configuration and has an epoch axis of its own; its curves have the dimensions
    (replica, epoch, …). Replicas are selected by ``init_scale`` and ``seed``, and by ``weight_decay`` or a seed stream
    where those differ. A run that is still going on can be opened too.

    Args:
        run_dir: The run's directory.
        branches: Which branches to read; all of them where none is named.

    Returns:
        The tree; the attributes of its root hold the task, versions, the command line and the run's directory.

    Raises:
        FileNotFoundError: Where there is no run.
        KeyError: Where the run has no such branch; the message lists those there are.
        lit_grok.files.ReadError: Where its results are damaged.

    Example:
        ``open_run("runs/ising/…").evaluation.train_accuracy.sel(init_scale=10).mean("seed")``
    """
    tree, there = _read(Path(run_dir), branches)
    if unknown := [branch for branch in branches if branch not in there]:
        raise KeyError(f"{run_dir} has no branch {', '.join(unknown)}; there are: {', '.join(there)}")
    return index_replicas(tree)


def open_runs(pattern: str | Path, *branches: str) -> xr.DataTree:
    """The runs whose directories match a pattern, as one tree along ``replica``.

    Whatever else differs between their configurations (``batch_size``, ``datamodule.shuffle``, …) becomes a
    coordinate to select by. Curves measured at different epochs are aligned, NaN where there is no value.

    Args:
        pattern: A glob pattern such as ``runs/mod_add/*``.
        branches: Which branches to read; all of them where none is named.

    Returns:
        The tree, with the coordinate ``run_dir`` telling where each replica comes from.

    Raises:
        FileNotFoundError: Where no run matches.
        KeyError: Where no run has such a branch.
        lit_grok.files.ReadError: Where the files of one are damaged.

    Example:
        ``open_runs("runs/mod_add/*").evaluation.test_accuracy.isel(epoch=-1).groupby("init_scale").mean()``
    """
    directories = sorted(Path(p) for p in glob.glob(str(pattern)) if (Path(p) / RESULTS).exists())
    if not directories:
        raise FileNotFoundError(f"{pattern}: no run directory matches (one that holds {RESULTS})")
    configs = [_flatten(read_config(directory)) for directory in directories]
    varying = _varying(configs)
    parts: dict[str, list[xr.Dataset]] = {}
    there: set[str] = set()
    first = 0
    for directory, config in zip(directories, configs, strict=True):
        tree, own = _read(directory, branches)
        there |= set(own)
        size = tree.sizes["replica"]
        labels = {key: [config.get(key)] * size for key in varying} | {"run_dir": [str(directory)] * size}
        root = tree.to_dataset(inherit=False)
        parts.setdefault("/", []).append(root.assign_coords({k: ("replica", v) for k, v in labels.items()}))
        for name, branch in tree.children.items():
            numbered = branch.to_dataset(inherit=False).assign_coords(replica=np.arange(first, first + size))
            parts.setdefault(name, []).append(numbered)
        first += size
    if unknown := [branch for branch in branches if branch not in there]:
        raise KeyError(f"no run has a branch {', '.join(unknown)}; there are: {', '.join(sorted(there))}")
    options: Any = {"dim": "replica", "join": "outer", "combine_attrs": "drop_conflicts"}
    merged = {name: xr.concat(several, **options) for name, several in parts.items()}
    for name, part in merged.items():
        if name != "/":  # a run that lacks it has NaN there
            merged[name] = part.reindex(replica=np.arange(first)).drop_vars("replica")
    return index_replicas(xr.DataTree.from_dict(merged), also=varying)


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which configurations differ, but for those that say of a replica what it is."""
    skipped = {
        *REPLICA_KEYS,
        "run_dir",
        "trainer.default_root_dir",
        *(key for config in configs for key in config if key.startswith("seeds.")),
    }
    keys = sorted(
        {key for config in configs for key in config} - skipped, key=lambda key: (key != "task", "." in key, key)
    )
    columns = {key: tuple(config.get(key) for config in configs) for key in keys}
    varying: list[str] = []
    for key, column in columns.items():  # a key that others determine (optimizer.lr, say) is no level of its own
        known = list(zip(*(columns[other] for other in varying), strict=True)) or [()] * len(configs)
        if len(set(zip(known, column, strict=True))) > len(set(known)):
            varying.append(key)
    return varying


def load_network(run_dir: str | Path, **replica: float) -> nn.Module:
    """One trained network of a run as a plain ``nn.Module``, with the weights last saved.

    Args:
        run_dir: The run's directory.
        replica: Which replica: ``init_scale=10, seed=0``, or any other of `REPLICA_KEYS`; may be left out where
            the run has just one that fits.

    Returns:
        The network, on the CPU.

    Raises:
        KeyError: Where no replica or more than one fits; the message lists those there are.
        FileNotFoundError: Where there is no run.
        lit_grok.files.ReadError: Where its files are damaged, do not fit each other, or name no network.

    Example:
        ``load_network("runs/ising/…", init_scale=10, seed=0)(spins)``
    """
    unknown = set(replica) - set(REPLICA_KEYS)
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))}: replicas are told apart by {', '.join(REPLICA_KEYS)}")
    config, path = read_config(run_dir), Path(run_dir) / WEIGHTS
    with reading(path, "the weights of such networks"), safetensors.safe_open(str(path), framework="pt") as weights:
        replicas = json.loads((weights.metadata() or {})["replicas"])
        if not (isinstance(replicas, list) and replicas):
            raise ValueError("its replicas are no list of them")
        matches = [
            r
            for r, one in enumerate(replicas)
            if all(_same(key, float(one[key]), value) for key, value in replica.items())
        ]
        keys = [key for key in REPLICA_KEYS if key in REPLICA_KEYS[:2] or len({one[key] for one in replicas}) > 1]
        there = [" ".join(f"{key}={one[key]:.15g}" for key in keys) for one in replicas]
    if len(matches) != 1:
        raise KeyError(f"{replica or 'no selection'} fits {len(matches)} replicas; there are: {', '.join(there)}")
    with reading(Path(run_dir) / CONFIG, "the configuration of a run"):
        network = build_network(config["network"])
    with (
        reading(path, f"the weights of {len(replicas)} such networks"),
        safetensors.safe_open(str(path), framework="pt") as weights,
        torch.no_grad(),
    ):
        for name, parameter in network.named_parameters():
            values = weights.get_slice(name)
            if tuple(values.get_shape()) != (len(replicas), *parameter.shape):
                raise ValueError(f"{name} has the shape {tuple(values.get_shape())}")
            parameter.copy_(values[matches[0]])
    return network


def build_network(specification: Mapping[str, Any]) -> nn.Module:
    """The network that a configuration names: ``_target_`` is its class, the rest are its arguments.

    Example:
        >>> build_network({"_target_": "lit_grok.networks.IsingCNN", "side": 8}).fc1.in_features
        16
    """
    if not isinstance(specification, Mapping) or "_target_" not in specification:
        raise ValueError(f"network={specification}: give network._target_, a class, and its arguments")
    target = str(specification["_target_"])
    arguments = {key: value for key, value in specification.items() if key != "_target_"}
    module, _, name = target.rpartition(".")
    try:
        constructor = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"network._target_={target}: cannot be imported ({error})") from error
    if not (isinstance(constructor, type) and issubclass(constructor, nn.Module)):
        raise ValueError(f"network._target_={target}: not a torch.nn.Module class")
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise ValueError(f"network={arguments}: {error}") from error


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The resolved configuration of a run."""
    path = Path(run_dir) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: not a run directory (it has no {CONFIG})")
    with reading(path, "the configuration of a run"):
        try:
            text = path.read_text()
            # By references a file of ten lines can grow to a billion values, or contain itself.
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_LOADER)):
                raise ValueError("it has references, which a run does not write")
            config = yaml.load(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            raise ValueError(f"{where}{error.problem}") from None
        if not isinstance(config, Mapping):
            raise ValueError("it is no mapping of keys to values")
        return dict(config)


class _Dumper(yaml.SafeDumper):
    """Spells out what stands in two places twice, because no references are read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


#: Compiled, where PyYAML has been built with libyaml: opening a thousand runs reads as many configurations.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The complete state of a training, tensors on the CPU and not read before they are used.

    Raises:
        lit_grok.files.ReadError: Where it is damaged or something else.
    """
    check_archive(path)  # PyTorch does not look at the checksums
    with reading(path, "a checkpoint"):
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def finished(run_dir: str | Path, epochs: int) -> list[dict[str, Any]]:
    """The summary of a run that has ended after so many epochs or by a stopping rule, if its results are there."""
    path = Path(run_dir) / SUMMARY
    try:
        replicas = _replicas(_read(Path(run_dir), ("evaluation",))[0])
        with reading(path, f"the summary of {len(replicas)} replicas"):
            records = json.loads(path.read_text())
            _check_records(records, replicas)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ReadError as error:
        log.warning("%s: it is written again", error)
        return []
    ended = all(r["epochs"] >= epochs or r["status"] == "diverged" or r.get("stopped") for r in records)
    return records if ended else []


def _check_records(records: Any, replicas: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what `summarise` does not give for these replicas."""
    if [{key: record[key] for key in replicas[0]} for record in records] != list(replicas):
        raise ValueError("its replicas are others")
    for record in records:
        if record["status"] not in get_args(Status):
            raise ValueError(f"status {record['status']!r:.40}")
        if type(stopped := record.get("stopped", False)) is not bool:
            raise ValueError(f"stopped {stopped!r:.40}")
        for name in ("epochs", "t_train", "t_test", "train_accuracy", "test_accuracy", "weight_norm"):
            if type(record[name]) not in ((int,) if name == "epochs" else (int, float, type(None))):
                raise ValueError(f"{name} {record[name]!r:.40}")


def index_replicas(tree: xr.DataTree, also: Sequence[str] = ()) -> xr.DataTree:
    """Make replicas selectable by init_scale, seed and whatever else tells them apart, in every branch."""
    root = tree.to_dataset(inherit=False)
    # A seed stream that follows the seed tells nothing new, and a level too many would keep
    # .sel(init_scale=10) from leaving a plain "seed" dimension.
    follows = {key for key in REPLICA_KEYS[3:] if key in root and np.array_equal(root[key], root.seed)}
    others = [key for key in (*REPLICA_KEYS[2:], *also) if key in root.coords and key not in follows]
    levels = [*REPLICA_KEYS[:2], *(key for key in others if len(set(root[key].values.tolist())) > 1)]
    branches = {name: branch.to_dataset(inherit=False) for name, branch in tree.children.items()}
    return xr.DataTree.from_dict({"/": root.set_index(replica=levels), **branches})


def _same(key: str, there: float, wanted: float) -> bool:
    """Seeds are compared exactly, the others up to rounding."""
    return there == wanted if key.startswith("seed") else math.isclose(there, wanted, rel_tol=1e-7)


def _replicas(tree: xr.DataTree) -> list[dict[str, Any]]:
    keys = [key for key in REPLICA_KEYS if key in tree.coords]
    return [{key: tree.coords[key].values[r].item() for key in keys} for r in range(tree.sizes["replica"])]


def _read(run_dir: Path, branches: Sequence[str] = ()) -> tuple[xr.DataTree, list[str]]:
    """The tree with these branches, or with all of them, its replicas not yet indexed; and the names of all."""
    path = run_dir / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: no results here yet (it has no {RESULTS})")
    check_seal(path)
    with reading(path, "the results of a run"), netCDF4.Dataset(path) as file:
        there = list(file.groups)
        root = _load(file, path)
        if "replica" not in root.sizes or not there:
            raise ValueError("it is no tree with the replicas at its root, which is how results are written now")
        if any(root[key].dims != ("replica",) or root[key].dtype.kind not in "iuf" for key in REPLICA_KEYS):
            raise ValueError(f"its replicas have no {', '.join(REPLICA_KEYS)}")
        chosen = [name for name in there if not branches or name in branches]
        tree = xr.DataTree.from_dict({"/": root, **{name: _load(file.groups[name], path) for name in chosen}})
    tree.attrs["run_dir"] = str(run_dir)
    return tree, there


def _load(group: netCDF4.Dataset, path: Path) -> xr.Dataset:
    """One group of an open file."""
    lazy = xr.open_dataset(xr.backends.NetCDF4DataStore(group))
    if lazy.nbytes > 1032 * path.stat().st_size:  # as far as zlib can compress; HDF5 fills in what is not there
        raise ValueError(f"it unfolds to {lazy.nbytes / 1e9:.1f} GB")
    return lazy.load()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else str(value)
    return flat
