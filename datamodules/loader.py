"""Batches of all replicas at once, from tensors that are already in memory."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from datamodules.streams import stream


class ReplicaLoader:
    """Batches (inputs (R, B, …), targets (R, B)) from tensors that live on the device.

    Every replica's examples are put in an order of its own, drawn from its own seed on the CPU, so that neither
    its neighbours nor the device change it. Without shuffling that order, and so the batches, stay the same in
    every epoch; with it, each epoch has an order of its own, derived from the seed and the epoch alone.

    Args:
        inputs: Shape (R, N, …).
        targets: Shape (R, N).
        batch_size: B; the last batch of an epoch has what is left.
        seeds: One order seed per replica.
        shuffle: A new order every epoch.
        epoch: Tells the number of completed epochs.
        layout: Puts the inputs into the memory order that the network reads fastest.

    Example:
        >>> inputs, targets = torch.arange(6).view(1, 6, 1), torch.zeros(1, 6)
        >>> loader = ReplicaLoader(inputs, targets, batch_size=4, seeds=[0])
        >>> [tuple(x.shape) for x, _ in loader]
        [(1, 4, 1), (1, 2, 1)]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        seeds: Sequence[int],
        shuffle: bool = False,
        epoch: Callable[[], int] = lambda: 0,
        layout: Callable[[Tensor], Tensor] = lambda inputs: inputs,
    ):
        self._inputs, self._targets = inputs, targets
        self.batch_size, self._seeds, self._shuffle = batch_size, list(seeds), shuffle
        self._epoch, self._layout = epoch, layout
        self._arranged, self._examples = 0, self._arrange(0)

    def __len__(self) -> int:
        return -(-self._targets.shape[1] // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, so that the epoch is asked for at the first batch: when a run is resumed, Lightning makes the
        # iterator before it has counted the epoch that the checkpoint was saved after.
        inputs, targets = self.examples()
        yield from zip(inputs.split(self.batch_size, 1), targets.split(self.batch_size, 1), strict=True)

    def examples(self) -> tuple[Tensor, Tensor]:
        """All inputs (R, N, …) and targets (R, N) in the order of this epoch, which batches cut into pieces."""
        if self._shuffle and self._epoch() != self._arranged:
            self._arranged = self._epoch()
            self._examples = self._arrange(self._arranged)
        return self._examples

    def _arrange(self, epoch: int) -> tuple[Tensor, Tensor]:
        size = self._targets.shape[1]
        order = torch.stack([_permutation(size, seed, epoch) for seed in self._seeds]).to(self._targets.device)
        replica = torch.arange(len(order), device=order.device).unsqueeze(1)
        return self._layout(self._inputs[replica, order]), self._targets[replica, order]


def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(stream(seed, "order", epoch).permutation(size))
