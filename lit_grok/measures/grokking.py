"""Grokking time and what became of a run, from its accuracy curves."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Status = Literal["collapsed", "undertrained", "memorised", "grokked", "steady"]


class GrokkingTime(NamedTuple):
    """Epochs of Definition 1 and the verdict of Definition 2; None where an accuracy was never measured."""

    t_train: int | None
    t_test: int | None
    t_grok: int | None
    grokked: bool


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


def status(
    grokked: bool,
    train_accuracy: ArrayLike,
    test_accuracy: ArrayLike,
    chance: float,
    generalisation: float,
) -> Status:
    """What became of a run: Definition 2 alone misreads runs that learn nothing or never generalise.

    - ``collapsed``: at its end the train accuracy is at chance, no higher than chance + 0.1 (1 − chance).
    - ``grokked`` or ``steady``: the test accuracy reached the task's generalisation level.
    - ``memorised``: it did not, though the train accuracy did.
    - ``undertrained``: neither did.

    Args:
        grokked: The verdict of `grokking_time`.
        train_accuracy: Curve, shape (n,).
        test_accuracy: Curve, shape (n,).
        chance: Accuracy of a guess, 1 / classes.
        generalisation: Test accuracy from which a run of this task counts as having generalised.

    Returns:
        The status.

    Example:
        >>> status(False, [0.5, 0.9, 1.0], [0.5, 0.8, 0.81], chance=0.5, generalisation=0.9)
        'memorised'
    """
    train, test = np.asarray(train_accuracy, float), np.asarray(test_accuracy, float)
    if train[~np.isnan(train)][-1] <= chance + 0.1 * (1 - chance):
        return "collapsed"
    if np.nanmax(test) >= generalisation:
        return "grokked" if grokked else "steady"
    return "memorised" if np.nanmax(train) >= generalisation else "undertrained"


def _reaches_maximum(epochs: ArrayLike, accuracy: ArrayLike) -> int | None:
    values = np.asarray(accuracy, float)
    if values.size == 0 or np.isnan(values).all():
        return None
    return int(np.asarray(epochs)[np.argmax(values >= 0.95 * np.nanmax(values))])
