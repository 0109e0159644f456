"""An epoch of training steps on a CUDA device, recorded once and replayed.

A step of a small network is some twenty kernels of a few microseconds, and launching one from Python takes longer than
it runs. A CUDA graph holds the launches of all steps of an epoch; replaying it is one call.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class EpochGraph:
    """Makes the steps of an epoch: one by one the first time, which readies all libraries, and as a graph from then on.

    Example:
        >>> graph = EpochGraph()
        >>> graph.run(lambda x, y: print(x.tolist(), y.tolist()), torch.arange(3.0)[None], torch.arange(3)[None], 2, 0)
        [[0.0, 1.0]] [[0, 1]]
        [[2.0]] [[2]]
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._examples: tuple[Tensor, ...] = ()
        self._copied: list[tuple[int, int]] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return EpochGraph, ()  # a copy belongs to copies of the tensors, so it has nothing recorded

    def run(
        self,
        step: Callable[[Tensor, Tensor], None],
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        key: Hashable,
    ) -> None:
        """Make a step for every batch, in order.

        Args:
            step: Called with a batch of inputs and of targets; must not read a number back from the device.
            inputs: Shape (R, N, …).
            targets: Shape (R, N).
            batch_size: Examples of each replica in a step.
            key: All numbers that a recorded step holds as constants; it is recorded anew when they change.
        """
        key = key, batch_size, inputs.shape, targets.shape
        if key != self._key:
            self._key, self._graph = key, None
            self._steps(step, inputs, targets, batch_size)
            return
        source = [(t.data_ptr(), t._version) for t in (inputs, targets)]
        if self._graph is None:
            self._examples, self._copied = (inputs.clone(), targets.clone()), source
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._steps(step, *self._examples, batch_size)
            self._graph = graph
        if source != self._copied:  # another order of the examples
            for own, new in zip(self._examples, (inputs, targets), strict=True):
                own.copy_(new)
            self._copied = source
        self._graph.replay()

    @staticmethod
    def _steps(step: Callable[[Tensor, Tensor], None], inputs: Tensor, targets: Tensor, batch_size: int) -> None:
        for batch in zip(inputs.split(batch_size, 1), targets.split(batch_size, 1), strict=True):
            step(*batch)
