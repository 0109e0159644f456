"""Compiling the hot loops with numba, with or without a place to keep the machine code, and calling them on tensors."""

import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import event
from torch import Tensor

log = logging.getLogger("lit_grok")

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}  # with Python's division no loop is vectorised

#: numba keeps machine code by the file of the outermost function: it has to know when an inner one has changed.
_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


class _Announcer(event.Listener):
    """Says, once, that numba compiles: the first steps of a training then seem to hang. Nothing where it loads.

    Attributes:
        kept: The functions whose machine code is kept; another one may be compiled in every run.
        told: Whether it has been said.
    """

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.told = False

    def on_start(self, event: event.Event) -> None:
        """Say it."""
        if not self.told and any(event.data["dispatcher"] is each for each in self.kept):
            self.told = True
            log.info("compiling for this processor, half a minute at most; later runs find it done")

    def on_end(self, event: event.Event) -> None:
        """Nothing more to say."""


announcer = _Announcer()
event.register("numba:compile", announcer)  # numba tells of it after it has looked for kept machine code in vain


class CompiledSteps(NamedTuple):
    """What a network offers to be trained on the CPU without leaving compiled code; all of it for one replica.

    ``theta`` and ``grad`` are the replica's row in the stack, ``update`` what `lit_grok.kernels.updates.update` takes.
    """

    #: Inputs (N, …) as the array that the others take, or None where only PyTorch can run the network on them.
    prepare: Callable[[Tensor], np.ndarray | None]
    #: (theta, grad, inputs, targets) → mean loss; writes its gradient.
    gradient: Callable[..., float]
    #: (theta, grad, *update, inputs, targets, batch_size): a step for every batch, in order.
    train: Callable[..., None]
    #: (theta, inputs, targets) → mean loss and accuracy.
    evaluate: Callable[..., tuple[float, float]]


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that only compiled ones call."""
    return numba.njit(**_OPTIONS)(function)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call and keep the machine code on disk if possible (it saves seconds).

    numba's own cache fails where no directory may be written to, the disk is full or a kept file is damaged; here
    the function is then compiled anew.

    Args:
        function: A function within numba's nopython mode; it runs without Python's global lock.

    Returns:
        A function that does the same.
    """
    plain = numba.njit(**_OPTIONS)(function)
    function.__qualname__ += f"-{_SOURCES.hexdigest()[:16]}"  # under which numba looks for the machine code
    try:
        cached = numba.njit(**_OPTIONS, cache=True)(function)
    except RuntimeError:  # no directory may be written to
        return plain
    announcer.kept.append(cached)

    def run(*arguments: Any) -> Any:
        try:
            return cached(*arguments)
        except (OSError, EOFError, ImportError, pickle.UnpicklingError):  # the disk is full, or the file is damaged
            return plain(*arguments)

    return run


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The tensors as contiguous arrays, what a compiled loop reads fastest.

    They share memory with the tensors that are contiguous on the CPU: write to no other.
    """
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
