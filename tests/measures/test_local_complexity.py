import pytest
import torch
from torch import nn

from lit_grok.measures.local_complexity import VERTICES_AT_ONCE, local_complexity


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def recording(preactivations):
    """The same function, and the list of the points that it was called with."""
    seen = []

    def recorded(points):
        seen.append(points)
        return preactivations(points)

    return recorded, seen


def two_layers(D, units, seed=0):
    torch.manual_seed(seed)
    first, second = nn.Linear(D, units).double(), nn.Linear(units, units).double()
    return lambda x: torch.cat([first(x), second(first(x).relu())], dim=1)


@pytest.mark.parametrize(("D", "n_dirs"), [(1, 1), (2, 1), (5, 3), (5, 5), (300, 4)])
def test_vertices_are_a_cross_polytope_and_the_count_is_of_units_that_switch(D, n_dirs):
    network, seen = recording(two_layers(D, 20))
    points = torch.randn(7, D, generator=generator(1)).double()
    counts = local_complexity(network, points, 0.3, n_dirs, generator())
    assert sum(map(len, seen)) == 7 * 2 * n_dirs
    slow = []
    for x, vertices in zip(points, torch.cat(seen).split(2 * n_dirs), strict=True):
        arms = (vertices - x) / 0.3
        gram = torch.eye(n_dirs).double()
        torch.testing.assert_close(arms @ arms.T, torch.cat([torch.cat([gram, -gram]), torch.cat([-gram, gram])], 1))
        units = two_layers(D, 20)(vertices).T
        slow.append(sum(1 for unit in units.tolist() if 0 < sum(value > 0 for value in unit) < 2 * n_dirs))
    assert counts.tolist() == slow


def test_on_a_line_exactly_the_kinks_within_the_radius_count():
    kinks = torch.linspace(-1, 1, 21).double() + 0.003
    points = torch.tensor([[-1.0], [0.0], [0.55], [9.0]]).double()
    counts = local_complexity(lambda x: x - kinks, points, 0.22, 1, generator())
    assert counts.tolist() == [sum(abs(x - k) < 0.22 for k in kinks.tolist()) for x in points.flatten().tolist()]


@pytest.mark.parametrize("D", [3, 10])
def test_a_full_cross_polytope_lies_between_two_balls(D):
    w, b = torch.randn(400, D, generator=generator()).double(), torch.randn(400, generator=generator(1)).double()
    points = torch.randn(30, D, generator=generator(2)).double()
    distance = (points @ w.T + b).abs() / w.norm(dim=1)
    counts = local_complexity(lambda x: x @ w.T + b, points, 0.5, D, generator(3))
    assert ((distance < 0.5 / D**0.5).sum(1) <= counts).all()
    assert (counts <= (distance < 0.5).sum(1)).all()


def test_scales_with_the_points():
    network, points = two_layers(4, 30), torch.randn(9, 4, generator=generator(5)).double()
    counts = local_complexity(network, points, 0.25, 4, generator())
    scaled = local_complexity(lambda x: network(x / 8), 8 * points, 2.0, 4, generator())
    assert counts.tolist() == scaled.tolist()
    assert 0 < counts.sum() < 9 * 60


def test_units_that_never_switch_do_not_count():
    def preactivations(x):
        constant = torch.tensor([0.0, -1.0, 1.0]).expand(len(x), 3)
        return torch.cat([constant, x.clamp(max=0)], dim=1)  # which is 0 at some vertices and below at others

    counts = local_complexity(preactivations, torch.zeros(2, 3), 1.0, 3, generator())
    assert counts.tolist() == [0, 0]


def test_points_may_have_any_shape_and_keep_their_type():
    def preactivations(x):
        assert x.shape[1:] == (3, 2)
        assert x.dtype == torch.float32
        return x.flatten(1)

    assert local_complexity(preactivations, torch.zeros(5, 3, 2), 0.1, 6, generator()).tolist() == [6] * 5


def test_many_samples_go_through_in_pieces():
    network, seen = recording(lambda x: x - 0.1)
    n = VERTICES_AT_ONCE // 2
    counts = local_complexity(network, torch.zeros(n, 2), 1.0, 2, generator())
    assert [len(points) for points in seen] == [VERTICES_AT_ONCE] * 2
    assert counts.shape == (n,)


def test_the_generator_decides():
    network, points = two_layers(6, 40), torch.randn(20, 6, generator=generator(1)).double()
    first, again, other = (local_complexity(network, points, 0.5, 2, generator(seed)) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(("radius", "n_dirs", "message"), [(0.0, 1, "radius"), (1.0, 0, "1 to 3"), (1.0, 4, "1 to 3")])
def test_impossible_polytopes_are_refused(radius, n_dirs, message):
    with pytest.raises(ValueError, match=message):
        local_complexity(lambda x: x, torch.zeros(2, 3), radius, n_dirs, generator())
