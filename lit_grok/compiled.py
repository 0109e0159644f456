"""Compiling the hot loops with numba, with or without a place to keep the machine code, and calling them on tensors."""

import pickle
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from torch import Tensor


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call and keep the machine code on disk if possible (it saves seconds).

    numba's own cache fails where no directory may be written to, the disk is full or a kept file is damaged; here
    the function is then compiled anew.

    Args:
        function: A function within numba's nopython mode; it runs without Python's global lock.

    Returns:
        A function that does the same.
    """
    plain = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        cached = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no directory may be written to
        return plain

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
