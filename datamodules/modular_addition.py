"""Modular addition, and its sisters: all pairs of residues and the result of one operation on them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Dataset, ReplicaDataModule, Split

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
}


class ModularAdditionDataModule(ReplicaDataModule):
    """All P² pairs (a, b) with target (a ∘ b) mod P, a random part of them to train on and the rest to test.

    Inputs are integer token pairs, shape (R, N, 2); targets (R, N).

    Args:
        P: Modulus, at least 2; any, but multiplication takes a prime, without which residues share factors with
            P and the products do not spread evenly.
        operation: ``add``, ``subtract`` or ``multiply``.
        train_fraction: Part of the pairs to train on, rounded down to whole pairs.
        batch_size: Examples per step and replica.
        options: Those of `ReplicaDataModule`: ``data_seeds``, ``order_seeds``, ``shuffle``, ``label_noise``.

    Example:
        >>> data = ModularAdditionDataModule(P=113, batch_size=64)
        >>> data.setup()
        >>> data.split("train")[0].shape, data.split("test")[1].shape
        (torch.Size([1, 8938, 2]), torch.Size([1, 3831]))
    """

    def __init__(
        self,
        P: int = 113,
        operation: str = "add",
        train_fraction: float = 0.7,
        batch_size: int = 64,
        **options: Any,
    ):
        super().__init__(batch_size=batch_size, **options)
        if P < 2:
            raise ValueError(f"P={P}: the modulus is at least 2")
        if operation not in OPERATIONS:
            raise ValueError(f"operation={operation}: unknown; allowed: {', '.join(OPERATIONS)}")
        if operation == "multiply" and not _is_prime(P):
            raise ValueError(f"P={P}: operation=multiply needs a prime modulus")
        if not 0 < train_fraction < 1 or int(train_fraction * P**2) < 1:
            raise ValueError(
                f"train_fraction={train_fraction}: must lie between 0 and 1 and leave pairs to train and to test on"
            )
        self.P, self.operation, self.train_fraction = P, operation, train_fraction

    def dataset(self) -> Dataset:
        """All P² pairs in lexicographic order."""
        pairs = torch.cartesian_prod(torch.arange(self.P), torch.arange(self.P))
        return Dataset(pairs, OPERATIONS[self.operation](pairs[:, 0], pairs[:, 1]) % self.P)

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """A uniformly random choice of ⌊train_fraction · P²⌋ pairs, and the others."""
        order = generator.permutation(self.P**2)
        train = int(self.train_fraction * self.P**2)
        return {"train": order[:train], "test": order[train:]}


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
