"""Intervals and verdicts from their definitions."""

import math

import numpy as np
import pytest
import xarray as xr

from studies.claims import Claim, Results, decide, judge, student_interval, wilson_interval


def claim(values, side=">", threshold=0.0, kind="mean", seeds=None):
    seeds = range(len(values)) if seeds is None else seeds
    array = xr.DataArray(values, {"seed": list(seeds)}, "seed")
    return Claim("c", "It holds.", "here", "it", lambda results: array, side, threshold, kind)


def verdict(*arguments, **options):
    return judge(claim(*arguments, **options), Results()).verdict


def test_the_interval_of_a_mean_is_students():
    values = [3.0, 5.0, 4.0, 6.0, 2.0]
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)  # t(4) at 97.5 % from a table
    assert student_interval(values) == pytest.approx((4 - half, 4 + half), rel=1e-6)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 5))
    inside = [low <= 1.0 <= high for low, high in map(student_interval, draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 5), (5, 5), (1, 10)])
def test_the_interval_of_a_share_is_wilsons(k, n):
    z, p = 1.959964, k / n
    centre, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert wilson_interval([1] * k + [0] * (n - k)) == pytest.approx(expected, abs=1e-6)


def test_equal_seeds_have_an_interval_without_width():
    assert student_interval([0.4, 0.4, 0.4]) == pytest.approx((0.4, 0.4))
    assert verdict([0.4, 0.4, 0.4], ">", 0.3) == "reproduced"


def test_verdicts_follow_the_interval():
    assert verdict([0.9, 1.0, 1.1, 1.0], ">", 0.5) == "reproduced"
    assert verdict([0.9, 1.0, 1.1, 1.0], "<", 0.5) == "not reproduced"
    assert verdict([0.1, 1.0, 0.2, 1.2], ">", 0.5) == "undecided"
    assert verdict([0.01, -0.02, 0.0, 0.01], "within", (-0.1, 0.1)) == "reproduced"
    assert verdict([0.31, 0.28, 0.3, 0.31], "within", (-0.1, 0.1)) == "not reproduced"
    assert verdict([0.05, 0.15, 0.12, 0.02], "within", (-0.1, 0.1)) == "undecided"


def test_two_seeds_decide_nothing():
    assert verdict([1.0, 1.0001], ">", 0.5) == "too few seeds"
    found = judge(claim([1.0]), Results())
    assert (found.verdict, found.low, found.high) == ("too few seeds", -math.inf, math.inf)


def test_seeds_without_the_statistic_are_left_out():
    found = judge(claim([1.0, math.nan, 1.1, 0.9], seeds=[4, 5, 6, 7]), Results())
    assert list(found.values) == [4, 6, 7]
    assert found.verdict == "reproduced"
    assert verdict([math.nan] * 5) == "too few seeds"


def test_four_of_five_seeds_are_not_enough_for_most():
    assert verdict([1, 1, 1, 1], ">", 0.5, kind="share") == "too few seeds"
    assert verdict([1, 1, 1, 1, 0], ">", 0.5, kind="share") == "undecided"
    assert verdict([1, 1, 1, 1, 1], ">", 0.5, kind="share") == "reproduced"
    assert verdict([0, 0, 0, 0, 0], ">", 0.5, kind="share") == "not reproduced"


def test_a_range_is_what_within_needs():
    with pytest.raises(ValueError, match="within"):
        decide(0, 1, ">", (0, 1))
    with pytest.raises(ValueError, match="within"):
        decide(0, 1, "within", 0.5)


def test_a_mistake_in_a_claim_is_no_missing_run():
    with pytest.raises(KeyError, match="nonsense"):
        judge(Claim("c", "", "", "", lambda results: {}["nonsense"], ">", 0), Results())
