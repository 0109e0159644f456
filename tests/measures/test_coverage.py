import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.coverage import (
    accuracy_by,
    coverage_lower_bound,
    nearest_in_class,
    sufficient_fraction,
    transpose_trained,
)


def grid(P):
    return torch.cartesian_prod(torch.arange(P), torch.arange(P))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_nearest(train_pairs, train_classes, pairs, classes, P, cyclic):
    def along(x, y):
        return min(abs(x - y), P - abs(x - y)) if cyclic else abs(x - y)

    train = list(zip(train_pairs.tolist(), train_classes.tolist(), strict=True))
    return [
        min((along(a, i) + along(b, j) for (i, j), k in train if k == c), default=math.inf)
        for (a, b), c in zip(pairs.tolist(), classes.tolist(), strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(
    P=st.sampled_from([2, 3, 8, 11]), n_classes=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 10**6)
)
@pytest.mark.parametrize("cyclic", [True, False])
def test_equals_the_search_through_all_training_pairs(cyclic, P, n_classes, share, seed):
    g, pairs = generator(seed), grid(P)
    classes = torch.randint(-1, n_classes - 1, (P * P,), generator=g)
    train = torch.randperm(P * P, generator=g)[: int(share * P * P)]
    distances = nearest_in_class(pairs[train], classes[train], pairs, classes, P, cyclic)
    assert distances.dtype == torch.float64
    assert distances.tolist() == slow_nearest(pairs[train], classes[train], pairs, classes, P, cyclic)
    assert (distances[train] == 0).all()


def test_neighbours_round_the_torus():
    corner, one_class = torch.tensor([[0, 0]]), torch.zeros(1)
    other = torch.tensor([[6, 6]])
    assert nearest_in_class(corner, one_class, other, one_class, 7).item() == 2
    assert nearest_in_class(corner, one_class, other, one_class, 7, cyclic=False).item() == 12


def test_a_ball_of_the_torus_has_the_cells_of_the_manhattan_distance():
    pairs, one_class = grid(11), torch.zeros(121)
    distances = nearest_in_class(pairs[60:61], one_class[:1], pairs, one_class, 11)
    for r in range(6):
        assert (distances <= r).sum() == 1 + 2 * r * (r + 1)


def test_addition_has_its_class_on_antidiagonals():
    # Two cells of an antidiagonal are an even number of steps apart, and one row trained is every class once.
    P, pairs = 13, grid(13)
    classes = pairs.sum(1) % P
    distances = nearest_in_class(pairs[:P], classes[:P], pairs, classes, P)
    expected = [2 * min(a, P - a) for a, _ in pairs.tolist()]
    assert distances.tolist() == expected


def test_a_large_grid_is_no_problem():
    P, pairs = 211, grid(211)
    classes = (pairs[:, 0] ** 2 + pairs.prod(1) + pairs[:, 1] ** 2) % P
    train = torch.randperm(P * P, generator=generator())[: int(0.3 * P * P)]
    distances = nearest_in_class(pairs[train], classes[train], pairs, classes, P)
    sample = torch.randperm(P * P, generator=generator(1))[:20]
    slow = slow_nearest(pairs[train], classes[train], pairs[sample], classes[sample], P, True)
    assert distances[sample].tolist() == slow


@pytest.mark.parametrize("bad", [[[0, 5]], [[-1, 0]]])
def test_operands_that_are_no_residues_are_refused(bad):
    good, bad = torch.tensor([[0, 1]]), torch.tensor(bad)
    for train, test in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="between 0 and 4"):
            nearest_in_class(train, torch.zeros(1), test, torch.zeros(1), 5)
        with pytest.raises(ValueError, match="between 0 and 4"):
            transpose_trained(train, test, 5)


@pytest.mark.parametrize("P", [2, 3, 10])
def test_transposes_written_out(P):
    pairs = grid(P)
    order = torch.randperm(P * P, generator=generator(P))
    train, test = pairs[order[: P * P // 3]], pairs[order[P * P // 3 :]]
    trained = {tuple(pair) for pair in train.tolist()}
    found = transpose_trained(train, test, P)
    assert found.dtype == torch.bool
    assert found.tolist() == [(b, a) in trained for a, b in test.tolist()]
    assert not found[test[:, 0] == test[:, 1]].any()


def test_nothing_trained_has_no_transposes_and_no_neighbours():
    none, pairs = torch.empty(0, 2, dtype=torch.long), grid(3)
    assert not transpose_trained(none, pairs, 3).any()
    assert nearest_in_class(none, torch.empty(0), pairs, torch.zeros(9), 3).isinf().all()
    assert nearest_in_class(pairs, torch.zeros(9), none, torch.empty(0), 3).shape == (0,)


def test_accuracy_by_group_written_out():
    g = generator()
    correct = torch.rand(2, 3, 50, generator=g) < 0.6
    groups = torch.randint(-1, 6, (50,), generator=g).double()
    groups[:3] = torch.tensor([math.inf, math.nan, 5.0])
    accuracy, size = accuracy_by(correct, groups, 5)
    assert accuracy.shape == (2, 3, 5)
    for k in range(5):
        members = [i for i in range(50) if groups[i] == k]
        assert size[k] == len(members)
        torch.testing.assert_close(accuracy[..., k], correct[..., members].double().mean(-1))


def test_empty_groups_have_no_accuracy():
    accuracy, size = accuracy_by(torch.tensor([True]), torch.tensor([1]), 3)
    torch.testing.assert_close(accuracy, torch.tensor([math.nan, 1, math.nan]).double(), equal_nan=True)
    assert size.tolist() == [0, 1, 0]


def test_groups_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="whole"):
        accuracy_by(torch.ones(2), torch.tensor([0.0, 0.5]), 3)


@pytest.mark.parametrize(("r", "m"), [(1, 110), (2, 45), (3, 24)])
def test_random_training_pairs_leave_as_many_cells_uncovered_as_the_bound_says(r, m):
    # The bound is 1 − E(uncovered cells) of independent draws; full coverage is at least as likely.
    P, N, C, trials = 11, 121, 1 + 2 * r * (r + 1), 400
    pairs, g, zeros = grid(P), generator(r), torch.zeros(121)
    draws = [pairs[torch.randint(N, (m,), generator=g)] for _ in range(trials)]
    far = torch.stack([nearest_in_class(train, torch.zeros(m), pairs, zeros, P) > r for train in draws])
    uncovered = far.sum(1).double()
    bound = coverage_lower_bound(P, C, (m + 0.5) / N)
    error = uncovered.std().item() / math.sqrt(trials)
    assert 1 - bound == pytest.approx(uncovered.mean().item(), abs=4 * error)
    assert (uncovered == 0).double().mean().item() >= bound - 4 * error


@pytest.mark.parametrize(("C", "fraction"), [(13, 0.70), (25, 0.37), (61, 0.15), (30.5, 0.3)])
def test_sufficient_fractions_of_97(C, fraction):
    assert sufficient_fraction(97, C) == pytest.approx(fraction, abs=0.005)


@pytest.mark.parametrize("P", [11, 47, 97])
@pytest.mark.parametrize("C", [13, 25, 61])
def test_a_sufficient_fraction_makes_the_bound_positive(P, C):
    alpha = sufficient_fraction(P, C) + 1 / P**2  # one pair more than the floor takes away
    if alpha <= 1:
        assert 0 < coverage_lower_bound(P, C, alpha) < 1


def test_limits_of_the_bound():
    assert coverage_lower_bound(5, 25, 1 / 25) == 1
    assert coverage_lower_bound(5, 25, 0) == -24
    assert coverage_lower_bound(5, 10, 1.9 / 25) == coverage_lower_bound(5, 10, 1.1 / 25) == 1 - 25 * 0.6
    assert coverage_lower_bound(97, 25, 0.2) < 0 < coverage_lower_bound(97, 25, 0.4)


@pytest.mark.parametrize(("C", "fraction", "message"), [(0, 0.5, "C=0"), (26, 0.5, "C=26"), (5, 1.1, "fraction")])
def test_impossible_coverage_is_refused(C, fraction, message):
    with pytest.raises(ValueError, match=message):
        coverage_lower_bound(5, C, fraction)


def test_a_class_on_the_axes_where_denormal_numbers_are_flushed():
    """As those of a b = 0 in a training: a tree that splits beside the coordinate 0 never ends."""
    a = torch.arange(31)
    train = torch.cat([torch.stack([0 * a, a], 1), torch.stack([a[1:], 0 * a[1:]], 1)])
    classes = torch.zeros(len(train))
    torch.set_flush_denormal(True)
    try:
        found = nearest_in_class(train, classes, torch.tensor([[3, 4], [58, 0]]), torch.zeros(2), 59)
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == [3, 1]
