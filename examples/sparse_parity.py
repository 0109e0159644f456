"""Sparse parity: a task of its own in one module, with `examples/task/sparse_parity.yaml`."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules import ReplicaDataModule
from datamodules.base import Dataset, Split


class ParityMLP(nn.Module):
    """Linear(bits → width) ReLU Linear(→ 2), as in Barak et al. (arXiv 2207.08799) and Merrill et al. (2303.11873).

    Example:
        >>> ParityMLP(bits=40, width=200)(torch.ones(5, 40)).shape
        torch.Size([5, 2])
    """

    def __init__(self, bits: int = 40, width: int = 200):
        super().__init__()
        self.hidden = nn.Linear(bits, width)
        self.output = nn.Linear(width, 2)

    def preactivations(self, inputs: Tensor) -> dict[str, Tensor]:
        """Pre-activations ``hidden``, shape (B, width)."""
        return {"hidden": self.hidden(inputs)}

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (B, 2), of bits ±1, shape (B, bits)."""
        return self.output(F.relu(self.hidden(inputs)))


class SparseParityDataModule(ReplicaDataModule):
    """Uniformly random strings of bits ±1; the target is whether the product of the first k bits is −1.

    Which k bits count makes no difference to a network whose weights do not know their order, so it is the first.

    Args:
        bits: Length n of a string.
        k: Number of bits that count.
        train_size: Examples to train on, drawn by the data seed.
        test_size: Other examples, drawn by it too.
        options: Those of `ReplicaDataModule`.

    Example:
        >>> data = SparseParityDataModule(bits=40, k=3, train_size=1000, test_size=1000, batch_size=32)
        >>> data.setup()
        >>> data.split("train")[0].shape
        torch.Size([1, 1000, 40])
    """

    def __init__(self, bits: int = 40, k: int = 3, train_size: int = 1000, test_size: int = 1000, **options: Any):
        super().__init__(**options)
        if not 1 <= k <= bits:
            raise ValueError(f"k={k}: must lie between 1 and bits={bits}")
        if min(train_size, test_size) < 1:
            raise ValueError(f"train_size={train_size}, test_size={test_size}: both are at least 1")
        self.bits, self.k, self.train_size, self.test_size = bits, k, train_size, test_size

    def dataset(self) -> Dataset:
        """Four times as many strings as one replica needs, the same in every run."""
        generator = np.random.default_rng(0)
        inputs = 1 - 2 * generator.integers(0, 2, (4 * (self.train_size + self.test_size), self.bits))
        odd = inputs[:, : self.k].prod(1) < 0
        return Dataset(torch.from_numpy(inputs).float(), torch.from_numpy(odd).long())

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """A random choice of examples for each set, none in both (strings of few bits repeat)."""
        order = generator.permutation(4 * (self.train_size + self.test_size))
        return {"train": order[: self.train_size], "test": order[self.train_size :][: self.test_size]}
