"""Streams of random numbers that a seed stands for, each independent of the others."""

from typing import Literal

import numpy as np

_STREAMS = ("split", "order", "label_noise", "table")


def stream(seed: int, name: Literal["split", "order", "label_noise", "table"], epoch: int = 0) -> np.random.Generator:
    """The generator of one purpose: two purposes, two seeds or two epochs never share a number.

    That of ``numpy.random.SeedSequence(seed, spawn_key=(purpose, epoch))``, as its ``spawn`` makes them.

    Args:
        seed: A whole number, 0 or more.
        name: What it is for.
        epoch: For the order, which is new in every epoch.

    Example:
        >>> [int(stream(0, name).integers(1000)) for name in ("split", "order", "label_noise")]
        [17, 484, 109]
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS.index(name), epoch)))
