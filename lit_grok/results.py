"""Reading and writing what a run found: labelled curves and arrays, summary records, network weights.

A run's directory holds

- ``config.yaml``: the resolved configuration, every default spelled out,
- ``results.nc``: one labelled tree of every curve and array, a branch for each callback (netCDF),
- ``weights.safetensors``: the parameters and buffers of all replicas, shape (R, …), and which replicas these are,
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import netCDF4
import numpy as np
import safetensors
import safetensors.torch
import torch
import xarray as xr
import yaml
from torch import Tensor, nn

from lit_grok.files import ReadError, WriteError, check_archive, check_seal, reading, seal, write
from lit_grok.measures.grokking import Status
from lit_grok.recorder import REPLICA_KEYS

log = logging.getLogger("lit_grok")

CONFIG, RESULTS, WEIGHTS, SUMMARY = "config.yaml", "results.nc", "weights.safetensors", "summary.json"
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoints/last.ckpt", "checkpoints/previous.ckpt"

#: What a run is written to and watched by, and how fast: no difference between what two runs find.
_ELSEWHERE = (
    "run_dir",
    "resume",
    "dry_run",
    "threads",
    "replicas_at_once",
    "accelerator",
    "checkpoint_every",
    "logger",
)
_FOLLOWS = (("trainer", "default_root_dir"), ("trainer", "accelerator"), ("callbacks", "checkpoint"))


def write_results(run_dir: str | Path, tree: xr.DataTree, stacked: Mapping[str, Tensor]) -> None:
    """Write the tree and the parameters and buffers of all replicas, each file as a whole.

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


def open_runs(pattern: str | Path | Sequence[str | Path], *branches: str) -> xr.DataTree:
    """The runs whose directories match a pattern, as one tree along ``replica``.

    Whatever else differs between their configurations (``batch_size``, ``datamodule.shuffle``, …) becomes a
    coordinate to select by, but for what makes no difference to what they find (`essence`). Curves measured at
    different epochs are aligned, NaN where there is no value.

    Args:
        pattern: A glob pattern such as ``runs/mod_add/*``, or the directories themselves.
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
    matching = sorted(glob.glob(str(pattern))) if isinstance(pattern, str | Path) else pattern
    directories = [Path(path) for path in matching if (Path(path) / RESULTS).exists()]
    if not directories:
        raise FileNotFoundError(f"{pattern}: no run directory matches (one that holds {RESULTS})")
    configs = [_flatten(essence(read_config(directory))) for directory in directories]
    varying = _varying(configs)
    trees: list[xr.DataTree] = []
    there: set[str] = set()
    for directory, config in zip(directories, configs, strict=True):
        tree, own = _read(directory, branches)
        there |= set(own)
        size = tree.sizes["replica"]
        labels = {key: [config.get(key)] * size for key in varying} | {"run_dir": [str(directory)] * size}
        root = tree.to_dataset(inherit=False)
        tree.dataset = root.assign_coords({key: ("replica", values) for key, values in labels.items()})
        trees.append(tree)
    if unknown := [branch for branch in branches if branch not in there]:
        raise KeyError(f"no run has a branch {', '.join(unknown)}; there are: {', '.join(sorted(there))}")
    joined = index_replicas(join(trees), also=varying)
    if (twice := joined.to_dataset().indexes["replica"].duplicated()).any():
        log.warning(
            "%s: %d replicas are there more than once, the same setting with the same seed", pattern, twice.sum()
        )
    return joined


def read_results(run_dir: str | Path) -> xr.DataTree:
    """The results of a run as they were written, with replicas that are not yet indexed."""
    return _read(Path(run_dir))[0]


def join(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """Trees side by side along ``replica``, curves aligned, NaN where one has no value; replicas not indexed."""
    parts: dict[str, list[xr.Dataset]] = {}
    ends: dict[str, list[int]] = {}
    first = 0
    for tree in trees:
        size, root = tree.sizes["replica"], tree.to_dataset(inherit=False)
        parts.setdefault("/", []).append(root)
        for name, branch in tree.children.items():
            numbered = branch.to_dataset(inherit=False).assign_coords(replica=np.arange(first, first + size))
            parts.setdefault(name, []).append(numbered)
            ends.setdefault(name, []).append(int(root.epochs.max()))
        first += size
    options: Any = {"dim": "replica", "join": "outer", "combine_attrs": "drop_conflicts"}
    merged = {
        name: xr.concat(_alike(several, ends[name]) if name in ends else several, **options)
        for name, several in parts.items()
    }
    for name, part in merged.items():
        if name != "/":  # a run that lacks it has NaN there
            merged[name] = part.reindex(replica=np.arange(first)).drop_vars("replica")
    return xr.DataTree.from_dict(merged)


def _alike(parts: Sequence[xr.Dataset], ends: Sequence[int]) -> list[xr.Dataset]:
    """The parts of one branch, so that they can stand side by side.

    What one run measured once, at its end, and another on a cadence is put at the last epoch of the former; of a
    dimension without labels, such as ``neuron``, the shorter ones are filled up with NaN.
    """
    curves = {name for part in parts for name, variable in part.data_vars.items() if "epoch" in variable.dims}
    lengths = {dim: max(p.sizes.get(dim, 0) for p in parts) for part in parts for dim in part.dims}
    found = []
    for part, end in zip(parts, ends, strict=True):
        once = [name for name in curves & set(part.data_vars) if "epoch" not in part[name].dims]
        if once:
            part = part.assign({name: part[name].expand_dims(epoch=[end], axis=1) for name in once})
        missing = {dim: (0, lengths[dim] - n) for dim, n in part.sizes.items() if dim not in part.coords}
        found.append(part.pad(missing) if any(after for _, after in missing.values()) else part)
    return found


def _varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which configurations differ, but for those that say of a replica what it is."""
    skipped = {*REPLICA_KEYS, *(key for config in configs for key in config if key.startswith("seeds."))}
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
        for name, own in (dict(network.named_parameters()) | kept_buffers(network)).items():
            values = weights.get_slice(name)
            if tuple(values.get_shape()) != (len(replicas), *own.shape):
                raise ValueError(f"{name} has the shape {tuple(values.get_shape())}")
            own.copy_(values[matches[0]])
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


def kept_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Name to tensor of what a network keeps beside its parameters, such as running statistics.

    Example:
        >>> list(kept_buffers(nn.BatchNorm1d(2)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    state = network.state_dict()
    return {name: buffer for name, buffer in network.named_buffers() if name in state}


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


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a difference to what a run finds, of its resolved configuration.

    Example:
        >>> both = {"epochs": 5, "trainer": {"accelerator": "cpu", "precision": 32}, "callbacks": {"checkpoint": {}}}
        >>> essence(both | {"run_dir": "here", "threads": 8})
        {'epochs': 5, 'trainer': {'precision': 32}, 'callbacks': {}}
    """
    found = {key: value for key, value in config.items() if key not in _ELSEWHERE}
    for group, name in _FOLLOWS:
        if isinstance(there := found.get(group), dict):  # a damaged file may hold anything
            found[group] = {key: value for key, value in there.items() if key != name}
    return found


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


def has_checkpoint(run_dir: str | Path) -> bool:
    """Whether a run has saved the state of its training, so that it can go on."""
    return any((Path(run_dir) / name).exists() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT))


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


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings by its dotted key; a mapping without entries counts as a value.

    Example:
        >>> dict(leaves({"P": 113, "network": {"hidden": [512]}}))
        {'P': 113, 'network.hidden': [512]}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves, as what a coordinate can hold."""
    return {
        key: value if isinstance(value, str | int | float | None) else str(value)
        for key, value in leaves(tree)
        if not isinstance(value, Mapping)
    }
