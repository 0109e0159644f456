import numpy as np
import pytest

from lit_grok.measures.grokking import chance_bound, grokking_time, outcome

EPOCHS = [0, 10, 20, 30, 40, 50]


# Definitions 1 and 2, by hand


def test_written_out():
    # 0.95 · 1 = 0.95 is first reached at 20, 0.95 · 0.9 = 0.855 first at 50
    time = grokking_time(EPOCHS, [0.5, 0.94, 0.95, 1, 1, 1], [0.5, 0.5, 0.6, 0.7, 0.85, 0.9])
    assert time == (20, 50, 30, True)


def test_grokking_is_strictly_later():
    train = [0.1, 1, 1, 1, 1, 1]
    assert grokking_time(EPOCHS, train, [0.1, 0.1, 1, 1, 1, 1]) == (10, 20, 10, False)  # 10 > 10 is false
    assert grokking_time(EPOCHS, train, [0.1, 0.1, 0.1, 1, 1, 1]) == (10, 30, 20, True)


def test_the_test_set_may_come_first():
    assert grokking_time([0, 1, 2], [0.1, 0.5, 1], [0.1, 1, 1]) == (2, 1, -1, False)


def test_the_maximum_is_that_of_the_whole_run():
    # the accuracy falls back: what counts is the first time near the maximum, not the end
    assert grokking_time([0, 1, 2, 3], [0.2, 1.0, 0.5, 0.5], [0.2, 0.8, 0.4, 0.4])[:2] == (1, 1)


def test_a_start_at_the_maximum():
    assert grokking_time([0, 1], [0.5, 0.5], [0.5, 0.5]) == (0, 0, 0, False)


def test_uneven_epochs_and_gaps():
    nan = np.nan
    assert grokking_time([0, 1, 100, 1000], [nan, 1, nan, 1], [0.1, nan, 0.2, 1]) == (1, 1000, 999, True)


@pytest.mark.parametrize("curve", [[np.nan, np.nan], []])
def test_nothing_measured_nothing_defined(curve):
    epochs = list(range(len(curve)))
    assert grokking_time(epochs, curve, curve) == (None, None, None, False)
    one = [0.5] * len(curve)
    assert grokking_time(epochs, one, curve)[1:] == (None, None, False)


def test_plain_numbers_come_out():
    time = grokking_time(np.array([0, 1]), np.array([0.1, 1.0]), np.array([0.1, 1.0]))
    assert [type(value) for value in time] == [int, int, int, bool]  # ready for JSON


# What became of the run (ising: chance 0.5, generalised from 0.9 on)


def judged(train, test, norm=(3.0, 2.0), chance=0.5, diverged=False):
    return outcome(range(len(train)), train, test, norm, chance=chance, generalisation=0.9, diverged=diverged)


@pytest.mark.parametrize(
    ("expected", "train", "test"),
    [
        (("grokked", 1, 4, 3), [0.5, 1, 1, 1, 1], [0.5, 0.7, 0.8, 0.8, 0.96]),
        (("steady", 2, 2, 0), [0.5, 0.8, 0.96, 1, 1], [0.5, 0.8, 0.95, 0.96, 0.96]),
        (("memorised", 1, None, None), [0.5, 1, 1, 1, 1], [0.5, 0.7, 0.7, 0.8, 0.85]),
        (("undertrained", 2, None, None), [0.5, 0.6, 0.7, 0.7, 0.7], [0.5, 0.6, 0.6, 0.6, 0.6]),
        (("collapsed", 1, None, None), [0.5, 1, 1, 0.9, 0.5], [0.5, 0.9, 0.95, 0.8, 0.5]),
    ],
)
def test_times_mean_something_where_the_network_generalised(expected, train, test):
    assert judged(train, test) == expected


def test_a_network_that_never_left_chance_is_young_until_its_weights_are_gone():
    flat = [0.5, 0.55, 0.54]  # 0.55 is a tenth of the way from chance to 1: not beyond it
    assert judged(flat, flat, norm=[10, 9, 8]).status == "undertrained"
    assert judged(flat, flat, norm=[10, 1, 0.11]).status == "undertrained"
    assert judged(flat, flat, norm=[10, 1, 0.09]).status == "collapsed"
    assert judged(flat, flat, norm=[0, 0, 0]).status == "collapsed"
    assert judged([0.5, 0.56, 0.5], flat, norm=[10, 9, 8]).status == "collapsed"  # it had left


def test_small_weights_alone_are_no_collapse():
    assert judged([0.5, 1, 1], [0.5, 0.9, 0.95], norm=[1000, 100, 2]).status == "steady"


def test_chance_depends_on_the_task():
    noise = [1 / 113, 0.02, 0.015]
    assert judged(noise, noise, chance=1 / 113).status == "undertrained"
    assert judged([1 / 113, 0.3, 0.5], noise, chance=1 / 113).status == "undertrained"
    assert judged([1 / 113, 0.3, 0.05], noise, chance=1 / 113).status == "collapsed"
    assert chance_bound(0.1) == pytest.approx(0.19)


def test_a_diverged_run_keeps_when_it_learned():
    assert judged([0.5, 1, 1], [0.5, 0.95, 0.95], diverged=True) == ("diverged", 1, None, None)


@pytest.mark.parametrize("curve", [[], [np.nan], [np.nan, np.nan]])
def test_nothing_measured_is_undertrained(curve):
    assert judged(curve, curve, norm=curve) == ("undertrained", None, None, None)
    assert judged([0.5] * len(curve), curve, norm=curve).status == "undertrained"
    assert judged(curve, curve, norm=curve, diverged=True) == ("diverged", None, None, None)


def test_a_memorising_run_is_not_grokked_by_the_letter_of_the_definition():
    train, test = [0.5, 1, 1, 1, 1], [0.5, 0.6, 0.6, 0.6, 0.8]
    assert grokking_time(range(5), train, test).grokked
    assert judged(train, test) == ("memorised", 1, None, None)


def test_the_last_value_may_be_missing():
    assert judged([0.5, 0.9, 0.5, np.nan], [0.5, 0.5, 0.5, np.nan]).status == "collapsed"
    assert judged([0.5, 0.5, np.nan], [0.5, 0.5, np.nan], norm=[5, 0.01, np.nan]).status == "collapsed"
