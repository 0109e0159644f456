"""Arithmetic modulo P: all pairs of residues and the result of one operation on them."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Dataset, ReplicaDataModule, Split
from datamodules.streams import stream

log = logging.getLogger("lit_grok")

#: Targets modulo P of residues a and b, by the name of the operation.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "x2+xy+y2": lambda a, b: a * a + a * b + b * b,
    "(x+y)2": lambda a, b: (a + b) ** 2,
    "x2+y2": lambda a, b: a * a + b * b,
    "x3+y3": lambda a, b: a**3 + b**3,
    "x3+xy+y3": lambda a, b: a**3 + a * b + b**3,
}

#: What takes any modulus; the others are polynomials over a field.
_ANY_MODULUS = ("add", "subtract", "random")

HOLES = ("none", "square", "strip")


class ModularArithmeticDataModule(ReplicaDataModule):
    """All P² pairs (a, b) with target (a ∘ b) mod P, a random part of them to train on and the rest to test.

    A hole keeps some pairs out of the training set (arXiv 2504.03162, Table 1): the ``square`` of a, b ≤ hole_size, or
    the ``strip`` of a ≤ hole_size. The training pairs are then drawn from the others, as many as without a hole if
    there are, and all of the hole is tested on.

    Inputs are integer pairs, shape (R, N, 2); targets (R, N).

    Args:
        P: Modulus, at least 2; any for ``add``, ``subtract`` and ``random``, a prime for the others, over which the
            residues are a field.
        operation: One of ``add``, ``subtract``, ``multiply``, ``x2+xy+y2``, ``(x+y)2``, ``x2+y2``, ``x3+y3``,
            ``x3+xy+y3``, and ``random``: one table of random residues, the same for every seed, in which nothing can be
            understood.
        train_fraction: Part of all P² pairs to train on, rounded down to whole pairs.
        hole: ``none``, ``square`` or ``strip``.
        hole_size: The largest residue in the hole, which is hole_size + 1 residues wide; null without one.
        batch_size: Examples per step and replica; null for all of them.
        options: Those of `ReplicaDataModule`: ``data_seeds``, ``order_seeds``, ``shuffle``, ``label_noise``.

    Example:
        >>> data = ModularArithmeticDataModule(P=97, train_fraction=0.3, hole="square", hole_size=45, batch_size=None)
        >>> data.setup()
        >>> data.split("train")[0].shape, data.split("test")[1].shape
        (torch.Size([1, 2822, 2]), torch.Size([1, 6587]))
        >>> int(data.in_hole(data.split("test")[0]).sum())
        2116
    """

    def __init__(
        self,
        P: int = 113,
        operation: str = "add",
        train_fraction: float = 0.7,
        hole: str = "none",
        hole_size: int | None = None,
        batch_size: int | None = 64,
        **options: Any,
    ):
        if P < 2:
            raise ValueError(f"P={P}: the modulus is at least 2")
        super().__init__(batch_size=P**2 if batch_size is None else batch_size, **options)
        if operation not in OPERATIONS and operation != "random":
            raise ValueError(f"operation={operation}: unknown; allowed: {', '.join((*OPERATIONS, 'random'))}")
        if operation not in _ANY_MODULUS and not _is_prime(P):
            raise ValueError(f"P={P}: operation={operation} needs a prime modulus")
        if not 0 < train_fraction < 1 or int(train_fraction * P**2) < 1:
            raise ValueError(
                f"train_fraction={train_fraction}: must lie between 0 and 1 and leave pairs to train and to test on"
            )
        if hole not in HOLES:
            raise ValueError(f"hole={hole}: unknown; allowed: {', '.join(HOLES)}")
        if hole == "none" and hole_size is not None:
            raise ValueError(f"hole_size={hole_size}: there is no hole; choose hole=square or hole=strip")
        if hole != "none" and (hole_size is None or not 0 <= hole_size <= P - 2):
            raise ValueError(
                f"hole_size={'null' if hole_size is None else hole_size}: the largest residue in the hole, from 0 to "
                f"{P - 2}, so that pairs are left to train on"
            )
        self.P, self.operation, self.train_fraction = P, operation, train_fraction
        self.hole, self.hole_size = hole, -1 if hole_size is None else hole_size
        width = self.hole_size + 1
        asked, free = int(train_fraction * P**2), P**2 - width * (P if hole == "strip" else width)
        if asked > free:
            log.warning(
                "hole=%s hole_size=%s leaves %d pairs to train on, fewer than the %d of train_fraction=%g: all of them "
                "are trained on, and the hole alone is tested on",
                *(hole, hole_size, free, asked, train_fraction),
            )

    def dataset(self) -> Dataset:
        """All P² pairs in lexicographic order."""
        pairs = torch.cartesian_prod(torch.arange(self.P), torch.arange(self.P))
        if self.operation == "random":
            return Dataset(pairs, torch.from_numpy(stream(0, "table").integers(0, self.P, self.P**2)))
        return Dataset(pairs, OPERATIONS[self.operation](pairs[:, 0], pairs[:, 1]) % self.P)

    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """A uniformly random choice of ⌊train_fraction · P²⌋ pairs outside the hole, and the others."""
        order = generator.permutation(self.P**2)
        hole = self.in_hole(torch.from_numpy(np.stack(np.divmod(order, self.P), -1))).numpy()
        free = order[~hole]
        train = int(self.train_fraction * self.P**2)
        return {"train": free[:train], "test": np.concatenate([free[train:], order[hole]])}

    def in_hole(self, pairs: Tensor) -> Tensor:
        """Whether each pair, shape (…, 2), lies in the hole; shape (…,)."""
        a, b = pairs.unbind(-1)  # without a hole its size is −1
        return (a if self.hole == "strip" else torch.maximum(a, b)) <= self.hole_size


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
