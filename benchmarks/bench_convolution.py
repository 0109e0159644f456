"""How fast are the compiled convolution blocks? Run as `python -m benchmarks.bench_convolution`."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_grok.networks import IsingCNN
from lit_grok.replicas import ReplicaStack

SIDE, SNAPSHOTS, STEPS, ALTERNATIONS = 16, 300, 20, 10


class PlainStack(ReplicaStack):
    """The replicas one after the other, through the layers of ``torch.nn``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, B, 2) of every replica."""
        return torch.stack([self._run(dict(n.named_parameters()), x) for n, x in zip(self.networks, inputs)])


def main() -> None:
    pass


if __name__ == "__main__":
    main()
