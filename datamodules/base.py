"""What the DataModules of all tasks share: a split per replica, and batches of all replicas."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor

from datamodules.loader import ReplicaLoader
from datamodules.streams import stream

Split = Literal["train", "test"]


class Dataset(NamedTuple):
    """All examples of a task, before they are split."""

    inputs: Tensor  # (N, …)
    targets: Tensor  # (N,)


@runtime_checkable
class HasResiduePairs(Protocol):
    """Data that are pairs of residues modulo ``P`` and the results of an ``operation``, some of them in a hole."""

    def in_hole(self, pairs: Tensor) -> Tensor:
        """Whether each pair, shape (…, 2), is kept out of the training set; shape (…,)."""
        ...


@runtime_checkable
class HasGrid(Protocol):
    """Data whose examples have a fixed number of places, each with one of ``symbols`` symbols."""

    def grid(self) -> tuple[Tensor, Tensor]:
        """All symbols^places examples, in lexicographic order, as the network is given them, and their targets."""
        ...


class ReplicaDataModule(L.LightningDataModule, ABC):
    """Train and test sets of R replicas, each drawn by its own data seed, each ordered by its own order seed.

    A task says what its examples are (`dataset`) and how a generator splits them (`split_indices`).

    Args:
        batch_size: Examples per step and replica.
        data_seeds: One seed per replica for its split.
        order_seeds: One seed per replica for the order of its training examples.
        shuffle: A new order of the training examples in every epoch; otherwise the same batches in each.
        label_noise: Probability that a training label is replaced by one of the other classes, all equally
            likely. The data seed decides which, without touching the split; test labels stay.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        data_seeds: Sequence[int] = (0,),
        order_seeds: Sequence[int] = (0,),
        shuffle: bool = False,
        label_noise: float = 0.0,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not isinstance(label_noise, int | float) or not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise={label_noise}: must be a number between 0 and 1")
        self.batch_size, self.shuffle, self.label_noise = batch_size, shuffle, label_noise
        self.data_seeds, self.order_seeds = list(data_seeds), list(order_seeds)
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def dataset(self) -> Dataset:
        """All examples."""

    @abstractmethod
    def split_indices(self, generator: np.random.Generator) -> dict[Split, np.ndarray]:
        """Indices of the train and of the test examples of one replica."""

    def setup(self, stage: str | None = None) -> None:
        """Make every replica's split. A replica's split depends on its own seed alone."""
        if self._splits:
            return
        inputs, targets = self.dataset()
        classes = int(targets.max()) + 1
        indices = {seed: self.split_indices(stream(seed, "split")) for seed in set(self.data_seeds)}
        for name in ("train", "test"):
            shared = len(indices) == 1  # then one copy serves all replicas
            seeds = self.data_seeds[:1] if shared else self.data_seeds
            chosen = torch.from_numpy(np.stack([indices[seed][name] for seed in seeds]))
            labels = targets[chosen]
            if name == "train" and self.label_noise:
                labels = torch.stack([self._noisy(row, classes, seed) for row, seed in zip(labels, seeds, strict=True)])
            examples = self.encode(inputs[chosen]), labels
            inputs_r, targets_r = (t.expand(len(self.data_seeds), *t.shape[1:]) for t in examples)
            self._splits[name] = inputs_r, targets_r

    def encode(self, inputs: Tensor) -> Tensor:
        """What the network is given; by default the examples as they are."""
        return inputs

    def layout(self, inputs: Tensor) -> Tensor:
        """A batch of inputs in the memory order that the network reads fastest; by default as it is."""
        return inputs

    def split(self, name: Split) -> tuple[Tensor, Tensor]:
        """Inputs (R, N, …) and targets (R, N) of one split, on the device that trains."""
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            inputs, targets = self._splits[name]
            self._splits[name] = inputs.to(device), targets.to(device)  # no copy where they are there already
        return self._splits[name]

    def train_dataloader(self) -> ReplicaLoader:
        """Batches of all replicas."""
        return ReplicaLoader(
            *self.split("train"),
            batch_size=self.batch_size,
            seeds=self.order_seeds,
            shuffle=self.shuffle,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
            layout=self.layout,
        )

    def _noisy(self, labels: Tensor, classes: int, seed: int) -> Tensor:
        """Labels of which each is wrong with the probability label_noise."""
        generator = stream(seed, "label_noise")
        wrong = torch.from_numpy(generator.random(len(labels)) < self.label_noise)
        shift = torch.from_numpy(generator.integers(1, classes, len(labels)))
        return torch.where(wrong, (labels + shift) % classes, labels)
