"""What the training pairs (a, b) of residues say about the pairs that are not among them."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor


class GroupAccuracy(NamedTuple):
    """Accuracy in each group, float64, NaN where it is empty, and how many inputs it holds."""

    accuracy: Tensor
    size: Tensor


def nearest_in_class(
    train_pairs: Tensor, train_classes: Tensor, pairs: Tensor, classes: Tensor, P: int, cyclic: bool = True
) -> Tensor:
    """Smallest distance of each pair to a training pair of its own class, on the grid of all pairs.

    min over the training pairs (a', b') of the class of (a, b) of δ(a, a') + δ(b, b'), where δ(x, y) is
    |x − y|, or on the torus (``cyclic``) min(|x − y|, P − |x − y|).

    Source: the Manhattan distance of arXiv 2504.03162, Theorem 3.10, which needs a training pair of the class nearby.

    Args:
        train_pairs: Integers from 0 to P − 1, shape (m, 2).
        train_classes: Their classes, any integers, shape (m,).
        pairs: Integers from 0 to P − 1, shape (N, 2).
        classes: Their classes, shape (N,).
        P: Number of residues.
        cyclic: Whether P − 1 and 0 are neighbours, as residues are; otherwise the grid has edges.

    Returns:
        Shape (N,), float64: integers, 0 for a training pair; infinite where nothing was trained in the class.

    Raises:
        ValueError: An operand is not between 0 and P − 1.

    Example:
        >>> train, test = torch.tensor([[0, 4], [2, 2]]), torch.tensor([[4, 0], [3, 1], [1, 1]])
        >>> nearest_in_class(train, train.sum(1) % 5, test, test.sum(1) % 5, P=5)
        tensor([2., 2., inf], dtype=torch.float64)
        >>> nearest_in_class(train, train.sum(1) % 5, test, test.sum(1) % 5, P=5, cyclic=False)
        tensor([4., 2., inf], dtype=torch.float64)
    """
    train, query = _checked(train_pairs, P), _checked(pairs, P)
    train_of, query_of = _array(train_classes), _array(classes)
    # The tree splits points just beside a coordinate. Beside 0 that is a denormal number, which is 0 again in a process
    # that flushes them, as a training does: it would split for ever.
    train, query = train + 0.5, query + 0.5
    distances = np.full(len(query), np.inf)
    for c in np.intersect1d(train_of, query_of):
        tree = KDTree(train[train_of == c], boxsize=P if cyclic else None)
        distances[query_of == c] = tree.query(query[query_of == c], p=1)[0]
    return torch.from_numpy(distances).to(torch.as_tensor(pairs).device)


def transpose_trained(train_pairs: Tensor, pairs: Tensor, P: int) -> Tensor:
    """Whether the transpose (b, a) of each pair (a, b) was trained.

    A network that knows only that an operation commutes is right on exactly these. A pair (a, a) is its own
    transpose: false for one that was not trained itself.

    Args:
        train_pairs: Integers from 0 to P − 1, shape (m, 2).
        pairs: Integers from 0 to P − 1, shape (N, 2).
        P: Number of residues.

    Returns:
        Booleans of shape (N,).

    Raises:
        ValueError: An operand is not between 0 and P − 1.

    Example:
        >>> transpose_trained(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1, 0], [0, 2], [1, 2], [1, 1]]), P=3)
        tensor([ True,  True, False, False])
    """
    train, query = _checked(train_pairs, P), _checked(pairs, P)
    return torch.from_numpy(np.isin(query @ [1, P], train @ [P, 1])).to(torch.as_tensor(pairs).device)


def accuracy_by(correct: Tensor, groups: Tensor, n_groups: int) -> GroupAccuracy:
    """Accuracy in each group of inputs, as at each distance from the training pairs.

    accuracy_g = Σ_{x: g(x) = g} correct(x) / #{x: g(x) = g}.

    Args:
        correct: Booleans, or the share of networks that are right, shape (..., N).
        groups: Whole numbers, shape (N,); the inputs of those outside 0 … n_groups − 1 are left out, as are those
            at an infinite distance.
        n_groups: How many groups.

    Returns:
        Accuracies (..., n_groups), float64, NaN in an empty group, and sizes (n_groups,).

    Raises:
        ValueError: A group is not a whole number.

    Example:
        >>> correct, distance = torch.tensor([True, True, False, False]), torch.tensor([1, 1, 1, torch.inf])
        >>> accuracy_by(correct, distance, n_groups=3)
        GroupAccuracy(accuracy=tensor([   nan, 0.6667,    nan], dtype=torch.float64), size=tensor([0, 3, 0]))
    """
    groups, correct = torch.as_tensor(groups), torch.as_tensor(correct).double()
    kept = (groups >= 0) & (groups < n_groups)
    group = groups[kept].long()
    if (group != groups[kept]).any():
        raise ValueError("a group is not a whole number")
    size = group.bincount(minlength=n_groups)
    right = correct.new_zeros(*correct.shape[:-1], n_groups).index_add(-1, group, correct[..., kept])
    return GroupAccuracy(right / size, size)


def coverage_lower_bound(P: int, C: int, fraction: float) -> float:
    """Lower bound of the probability that random training pairs cover all pairs, if each covers C.

    1 − N (1 − C/N)^m with N = P² pairs, of which m = ⌊αN⌋ are trained, α = ``fraction``: (1 − C/N)^m is the
    probability that a given pair stays uncovered by m independent draws (it is smaller without replacement), and no
    more than the sum over the N pairs is that of any. Not cut off at 0: where it is negative it says nothing.

    Source: arXiv 2504.03162, Theorem 3.12.

    Args:
        P: Number of residues.
        C: Pairs that a training pair covers, itself included; 1 + 2r(r + 1) in a Manhattan distance r < P/2.
        fraction: Share of the pairs that are trained.

    Returns:
        At most 1.

    Raises:
        ValueError: C is not between 1 and P², or the fraction not between 0 and 1.

    Example:
        >>> round(coverage_lower_bound(P=97, C=61, fraction=0.3), 4), coverage_lower_bound(P=97, C=1, fraction=0)
        (0.9999, -9408.0)
    """
    N = P**2
    if not 1 <= C <= N:
        raise ValueError(f"C={C}: a training pair covers between 1 and {N} pairs")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction}: a share is between 0 and 1")
    return 1 - N * (1 - C / N) ** int(fraction * N)


def sufficient_fraction(P: int, C: int) -> float:
    """Share of the pairs to train for the bound of :func:`coverage_lower_bound` to be positive.

    α = 2 ln P / C, from N (1 − C/N)^{αN} < N e^{−αC} = 1.

    Source: arXiv 2504.03162, Theorem 3.12.

    Args:
        P: Number of residues.
        C: Pairs that a training pair covers, itself included.

    Returns:
        Positive; above 1 where no share suffices.

    Example:
        >>> round(sufficient_fraction(P=97, C=25), 3)
        0.366
    """
    return 2 * math.log(P) / C


def _checked(pairs: Tensor, P: int) -> np.ndarray:
    array = _array(pairs)
    if array.size and not 0 <= array.min() <= array.max() < P:
        raise ValueError(f"an operand is not between 0 and {P - 1}")
    return array


def _array(values: Tensor) -> np.ndarray:
    return torch.as_tensor(values).numpy(force=True)
