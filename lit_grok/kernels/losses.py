"""Mean loss of a batch of logits, its gradient and the hits, compiled, for one replica."""

from typing import Any

import numba
import numpy as np

from lit_grok.kernels.compiled import inlined

_FAST: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}


@inlined
def loss_gradient(logits, targets, squared):
    """Mean loss of logits (B, classes), which become its gradient.

    Cross entropy −log softmax(z)_y, or with ``squared`` the squared error to one-hot targets, averaged over classes.
    """
    B, classes = logits.shape
    total = 0.0
    for n in range(B):
        row = logits[n]
        if squared:
            total += _squared_error(row, targets[n], np.float32(2 / (B * classes)))
        else:
            own = row[targets[n]]
            top, mass = _exponentials(row)
            total += np.log(mass) + top - own
            _scale(row, np.float32(1) / (np.float32(B) * mass))
            row[targets[n]] -= np.float32(1 / B)
    return total / B


@inlined
def loss_and_hits(logits, targets, squared):
    """Sum of the losses of logits (B, classes), which are overwritten, and how many are largest at the target.

    Of several largest logits the first counts, as in PyTorch; where one is not a number there is no hit.
    """
    total, hits = 0.0, 0
    for n in range(len(targets)):
        row, target = logits[n], targets[n]
        own = row[target]
        hit = own == _largest(row)
        for j in range(target):
            hit = hit and row[j] != own
        if squared:
            loss = np.float64(_squared_error(row, target, np.float32(1)))
        else:
            top, mass = _exponentials(row)
            loss = np.log(mass) + top - own
        total += loss
        hits += hit and loss == loss
    return total, hits


@numba.njit(**_FAST)
def _exponentials(row):
    """Replace z by exp(z − max z); returns the maximum and the sum."""
    top = _largest(row)
    mass = np.float32(0)
    for j in range(len(row)):
        e = _exp(row[j] - top)
        row[j] = e
        mass += e
    return top, mass


@numba.njit(**_FAST)
def _squared_error(row, target, factor):
    """Mean over classes of (z − one-hot)²; the row becomes factor · (z − one-hot)."""
    row[target] -= np.float32(1)
    total = np.float32(0)
    for j in range(len(row)):
        total += row[j] * row[j]
        row[j] *= factor
    return total / np.float32(len(row))


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})  # a NaN comes back out of _exp
def _largest(row):
    largest = np.float32(-np.inf)
    for j in range(len(row)):
        largest = max(largest, row[j])
    return largest


@numba.njit(nogil=True, error_model="numpy")
def _scale(row, factor):
    for j in range(len(row)):
        row[j] *= factor


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _exp(x):
    """exp(x) for x ≤ 0, to 1e-7 of its value, without a call, so that loops over it become vector instructions.

    exp(x) = 2^k exp(r) with k = round(x / ln 2) and a polynomial of degree 7 in r (Cephes). Below −87 it is 1.6e-38.
    """
    x = np.float32(-87) if x < np.float32(-87) else x  # a NaN stays one
    k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)  # ln 2 in two parts
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1)
    return y * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
