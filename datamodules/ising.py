"""Snapshots of the two-dimensional Ising model, and which phase they are in."""

import io
import logging
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from datamodules.base import Dataset, ReplicaDataModule, Split
from datamodules.glauber import sample
from lit_grok.files import ReadError, check_archive, write
from lit_grok.measures.ising import CRITICAL_TEMPERATURE

log = logging.getLogger("lit_grok")


class IsingDataModule(ReplicaDataModule):
    """Glauber snapshots at evenly spaced temperatures; label 0 (ordered) below Tc, 1 (disordered) above.

    Inputs are spins ±1 as floats, shape (R, N, L, L); targets (R, N). The sets are class-balanced and drawn
    without overlap. The snapshots are sampled once and kept in ``data_dir`` under a name made of everything
    they depend on.

    Args:
        side: L.
        train_size: Training snapshots per replica, even.
        test_size: Test snapshots per replica, even.
        temperatures: Number of temperatures, evenly spaced between t_min and t_max, both included.
        t_min: Lowest temperature, J = 1.
        t_max: Highest temperature.
        snapshots: Snapshots per temperature.
        steps: Single-spin steps from the random start to the snapshot.
        sample_seed: Seed of the sampler.
        source: File of snapshots to read instead of sampling: the authors' pickle, a list of a description and
            of [array (L, L), phase, temperature] entries.
        data_dir: Where sampled snapshots are kept.
        batch_size: Examples per step and replica.
        options: Those of `ReplicaDataModule`: ``data_seeds``, ``order_seeds``, ``shuffle``, ``label_noise``.

    Example:
        >>> data = IsingDataModule(side=8, train_size=4, test_size=2, snapshots=2, steps=0, data_dir="/tmp/ising")
        >>> data.setup()
        >>> data.split("train")[0].shape, data.split("train")[1].sum().item()
        (torch.Size([1, 4, 8, 8]), 2)
    """

    def __init__(
        self,
        side: int = 16,
        train_size: int = 300,
        test_size: int = 1000,
        temperatures: int = 50,
        t_min: float = 1.0,
        t_max: float = 3.5,
        snapshots: int = 1000,
        steps: int = 50_000,
        sample_seed: int = 0,
        source: str | None = None,
        data_dir: str = "data",
        batch_size: int = 300,
        **options: Any,
    ):
        super().__init__(batch_size=batch_size, **options)
        self.train_size, self.test_size = train_size, test_size
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            if size < 2 or size % 2:
                raise ValueError(f"{name}={size}: must be a positive even number, half of it from each phase")
        if not 0 < t_min < CRITICAL_TEMPERATURE < t_max:
            raise ValueError(f"t_min={t_min}, t_max={t_max}: must be positive and lie on both sides of Tc = 2.269")
        for name, value, least in (
            ("temperatures", temperatures, 2),
            ("snapshots", snapshots, 1),
            ("steps", steps, 0),
            ("side", side, 2),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        self.side, self.snapshots, self.steps, self.sample_seed = side, snapshots, steps, sample_seed
        self.temperatures = np.repeat(np.linspace(t_min, t_max, temperatures), snapshots)
        self.source = Path(source) if source else None
        low, high = (np.format_float_positional(t, trim="-") for t in (t_min, t_max))  # every digit there is
        name = f"ising_L{side}_T{low}-{high}x{temperatures}_n{snapshots}_steps{steps}_seed{sample_seed}.npz"
        self.path = Path(data_dir) / name
        if self.source is None:
            self._check_sizes(self.temperatures > CRITICAL_TEMPERATURE)
        elif not self.source.is_file():
            raise ValueError(f"datamodule.source={source}: no such file")

    def prepare_data(self) -> None:
        """Sample the snapshots, unless they are there already and whole."""
        if self.source is not None or self._load_sampled() is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.with_suffix(".lock").touch()
        except OSError as error:
            raise ValueError(f"datamodule.data_dir={self.path.parent}: cannot be written ({error.strerror})") from None
        with self._lock():
            if self._load_sampled() is not None:
                return  # another process made it while this one waited
            count = len(self.temperatures)
            log.info("sampling %d Ising snapshots of %d Glauber steps into %s", count, self.steps, self.path)
            with tqdm(total=count, unit="snapshot", leave=False, disable=not sys.stderr.isatty()) as bar:
                spins = sample(
                    self.temperatures,
                    self.steps,
                    side=self.side,
                    seed=self.sample_seed,
                    progress=lambda done: bar.update(done - bar.n),
                )
            archive = io.BytesIO()
            np.savez(archive, bits=np.packbits(spins > 0), temperatures=self.temperatures)
            write(self.path, archive.getvalue())

    def dataset(self) -> Dataset:
        """All snapshots, int8 (N, L, L), and their labels (N,)."""
        if self.source is not None:
            spins, temperatures = read_snapshots(self.source)
            if spins.shape[1] != self.side:
                raise ValueError(f"side={self.side}: the snapshots of {self.source} have side {spins.shape[1]}")
        else:
            self.prepare_data()
            sampled = self._load_sampled()
            assert sampled is not None, "prepare_data has just written it"
            spins, temperatures = sampled, self.temperatures
        labels = temperatures > CRITICAL_TEMPERATURE
        self._check_sizes(labels)
        self._labels = labels
        return Dataset(torch.from_numpy(spins), torch.from_numpy(labels.astype(np.int64)))

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """Half of each set from each phase, in random order, without overlap."""
        train, test = [], []
        for phase in (False, True):
            members = generator.permutation(np.flatnonzero(self._labels == phase))
            train.append(members[: self.train_size // 2])
            test.append(members[self.train_size // 2 : (self.train_size + self.test_size) // 2])
        return {
            "train": generator.permutation(np.concatenate(train)),
            "test": generator.permutation(np.concatenate(test)),
        }

    def encode(self, inputs: Tensor) -> Tensor:
        """Spins as floats."""
        return inputs.float()

    def layout(self, inputs: Tensor) -> Tensor:
        """Samples innermost in memory, as the fused convolutions want them: 10 % less time per step."""
        return inputs.movedim(1, -1).contiguous().movedim(-1, 1)

    def _lock(self) -> AcquireReturnProxy:
        """A context in which no other process samples; says so where it has to wait for one."""
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for the process that makes %s", self.path)
            return lock.acquire()

    def _check_sizes(self, labels: np.ndarray) -> None:
        smaller = int(min(labels.sum(), (~labels).sum()))
        if (self.train_size + self.test_size) // 2 > smaller:
            raise ValueError(
                f"train_size={self.train_size}, test_size={self.test_size}: half of each comes from each phase, "
                f"and the smaller phase has {smaller} snapshots, so their sum is at most {2 * smaller}"
            )

    def _load_sampled(self) -> np.ndarray | None:
        """The sampled snapshots, or None where the file is missing or damaged (the archive has checksums)."""
        shape = (len(self.temperatures), self.side, self.side)
        try:
            check_archive(self.path)
            with np.load(self.path, allow_pickle=False) as archive:
                if not np.array_equal(archive["temperatures"], self.temperatures):
                    raise ValueError("these are other temperatures")
                bits = np.unpackbits(archive["bits"])[: math.prod(shape)].reshape(shape)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception:  # a damaged archive raises whatever its damaged part leads to
            log.warning("%s is damaged and is made again", self.path)
            return None
        return (2 * bits.astype(np.int8) - 1).astype(np.int8)


class _SnapshotUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and builtin containers, and nothing else."""

    _numpy = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._numpy:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how old pickles spell bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a file of snapshots has no use for")


def _first_line(error: Exception) -> str:
    """What a library says, as far as it is one sentence; it may quote the file."""
    return next(iter(str(error).splitlines()), "")


def read_snapshots(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the authors' snapshot file.

    A pickle of ``[description, [[array (L, L), phase, temperature], …]]``. Only NumPy arrays and builtin
    containers are admitted, so reading it runs no code from it.

    Args:
        path: The file.

    Returns:
        Spins, int8 (N, L, L), and temperatures (N,).

    Raises:
        ReadError: Where the file is truncated, refers to anything else, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            content = _SnapshotUnpickler(file).load()
        entries = content[1]
        arrays = [entry[0] for entry in entries]
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "iuf" for array in arrays):
            raise TypeError("snapshots must be arrays of numbers")
        if sum(array.nbytes for array in arrays) > Path(path).stat().st_size:  # one array a million times over, say
            raise ValueError("it unfolds to more than it holds")
        spins = np.stack(arrays)
        temperatures = np.array([float(entry[2]) for entry in entries])
    except (pickle.UnpicklingError, EOFError) as error:
        raise ReadError(f"datamodule.source={path}: not a readable snapshot file ({_first_line(error)})") from None
    except Exception as error:
        raise ReadError(
            f"datamodule.source={path}: not the authors' format [description, [[array, phase, temperature], …]] "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from None
    if spins.ndim != 3 or spins.shape[1] != spins.shape[2] or not np.isin(spins, (-1, 1)).all():
        raise ReadError(f"datamodule.source={path}: snapshots must be square arrays of spins ±1")
    if not (np.isfinite(temperatures) & (temperatures > 0)).all():
        raise ReadError(f"datamodule.source={path}: temperatures must be positive numbers")
    return spins.astype(np.int8), temperatures
