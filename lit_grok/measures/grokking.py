"""Grokking time and what became of a run, from its curves."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Status = Literal["diverged", "collapsed", "undertrained", "memorised", "grokked", "steady"]

_GONE = 0.01  # of the initial weight norm: with no more than this left, the weights are gone


class GrokkingTime(NamedTuple):
    """Epochs of Definition 1 and the verdict of Definition 2; None where an accuracy was never measured."""

    t_train: int | None
    t_test: int | None
    t_grok: int | None
    grokked: bool


class Outcome(NamedTuple):
    """What became of a run, and its grokking time as far as it means anything."""

    status: Status
    t_train: int | None
    t_test: int | None
    t_grok: int | None


def grokking_time(epochs: ArrayLike, train_accuracy: ArrayLike, test_accuracy: ArrayLike) -> GrokkingTime:
    """Grokking time of one run (arXiv 2502.01739, Definitions 1 and 2).

    t_train is the first epoch with train accuracy ≥ 0.95 · max train accuracy, t_test likewise on the test set;
    t_grok = t_test − t_train, and the run groks if and only if t_grok > t_train.

    Args:
        epochs: Increasing epochs at which the accuracies were measured, shape (n,); 0 is before the first step.
        train_accuracy: Shape (n,), between 0 and 1; NaN where not measured.
        test_accuracy: Likewise.

    Returns:
        t_train, t_test and t_grok in epochs, and whether the run grokked.

    Example:
        >>> grokking_time([0, 10, 20, 30, 40], [0.5, 1, 1, 1, 1], [0.5, 0.6, 0.6, 0.9, 0.95])
        GrokkingTime(t_train=10, t_test=40, t_grok=30, grokked=True)
    """
    t_train = _reaches_maximum(epochs, train_accuracy)
    t_test = _reaches_maximum(epochs, test_accuracy)
    if t_train is None or t_test is None:
        return GrokkingTime(t_train, t_test, None, False)
    return GrokkingTime(t_train, t_test, t_test - t_train, t_test - t_train > t_train)


def chance_bound(chance: float) -> float:
    """Highest accuracy that still counts as at chance, a tenth of the way to 1: chance + 0.1 (1 − chance).

    Args:
        chance: Accuracy of a guess, 1 / classes.

    Example:
        >>> chance_bound(0.5)
        0.55
    """
    return chance + 0.1 * (1 - chance)


def outcome(
    epochs: ArrayLike,
    train_accuracy: ArrayLike,
    test_accuracy: ArrayLike,
    weight_norm: ArrayLike,
    *,
    chance: float,
    generalisation: float,
    diverged: bool = False,
) -> Outcome:
    """What became of a run: Definitions 1 and 2 alone misread runs that learn nothing or never generalise.

    - ``diverged``: its loss is not finite any more.
    - ``collapsed``: at its end the train accuracy is at chance (`chance_bound`), and it had left chance before or
      the weights are gone, with a norm of 0.01 of the initial one or less.
    - ``grokked`` or ``steady``: the test accuracy reached the task's generalisation level.
    - ``memorised``: it did not, though the train accuracy did.
    - ``undertrained``: neither did, or nothing was measured.

    Args:
        epochs: Increasing epochs at which the accuracies were measured, shape (n,).
        train_accuracy: Curve, shape (n,), NaN where not measured; up to the divergence where there was one.
        test_accuracy: Likewise.
        weight_norm: Euclidean norm of all parameters from the first to the last epoch, shape (m,).
        chance: Accuracy of a guess, 1 / classes.
        generalisation: Test accuracy from which a run of this task counts as having generalised.
        diverged: Whether the loss stopped being finite.

    Returns:
        The status, and the epochs of `grokking_time`: t_test and t_grok only where the network generalised,
        ``grokked`` or ``steady``, since the maximum that they refer to is no generalisation otherwise.

    Example:
        >>> options = {"weight_norm": [60, 8, 2], "chance": 0.5, "generalisation": 0.9}
        >>> outcome([0, 10, 20], [0.5, 1.0, 1.0], [0.5, 0.8, 0.81], **options)
        Outcome(status='memorised', t_train=10, t_test=None, t_grok=None)
        >>> outcome([0, 10, 30], [0.5, 1.0, 1.0], [0.5, 0.8, 0.95], **options)
        Outcome(status='grokked', t_train=10, t_test=30, t_grok=20)
    """
    time = grokking_time(epochs, train_accuracy, test_accuracy)
    bound = chance_bound(chance)
    train, test, norm = (_measured(curve) for curve in (train_accuracy, test_accuracy, weight_norm))
    status: Status
    if diverged:
        status = "diverged"
    elif not train.size:
        status = "undertrained"
    elif train[-1] <= bound and (train.max() > bound or _gone(norm)):
        status = "collapsed"
    elif test.size and test.max() >= generalisation:
        status = "grokked" if time.grokked else "steady"
    else:
        status = "memorised" if train.max() >= generalisation else "undertrained"
    if status in ("grokked", "steady"):
        return Outcome(status, *time[:3])
    return Outcome(status, time.t_train, None, None)


def _gone(norm: np.ndarray) -> bool:
    return norm.size > 0 and norm[-1] <= _GONE * norm[0]


def _measured(curve: ArrayLike) -> np.ndarray:
    values = np.asarray(curve, float)
    return values[~np.isnan(values)]


def _reaches_maximum(epochs: ArrayLike, accuracy: ArrayLike) -> int | None:
    values = np.asarray(accuracy, float)
    if values.size == 0 or np.isnan(values).all():
        return None
    return int(np.asarray(epochs)[np.argmax(values >= 0.95 * np.nanmax(values))])


def most_frequent(statuses: Iterable[str]) -> tuple[str, int]:
    """The status that most have, of several the first in the alphabet, and how many have it.

    Example:
        >>> most_frequent(["steady", "grokked", "steady"]), most_frequent(["steady", "grokked"])
        (('steady', 2), ('grokked', 1))
    """
    counts = Counter(statuses)
    name = min(counts, key=lambda status: (-counts[status], status))
    return name, counts[name]
