"""Which measure announces understanding: on trainings whose future is known."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from studies.beyond_progress_measures import forecast as studied
from studies.beyond_progress_measures.forecast import HORIZON, Watch, auroc, forecast, threshold

EPOCHS = np.arange(100.0, 6001, 100)
UNDERSTOOD = {"a": 2000, "b": 3000, "c": 4500, "never": np.inf}


def watched(value, seeds=5, understood=UNDERSTOOD):
    """A measure that is ``value(epochs, epoch of understanding, rng)``, in every setting and seed."""
    found = {}
    for i, (setting, start) in enumerate(understood.items()):
        found[setting] = {}
        for seed in range(seeds):
            at = start + 100 * seed
            epochs = EPOCHS[at > EPOCHS]
            rng = np.random.default_rng([i, seed])
            losses = 5 - epochs / 2000 + 0.1 * rng.normal(size=len(epochs))
            found[setting][seed] = Watch(epochs, value(epochs, at, rng), losses, at)
    return found


def told(value, **options):
    watches = watched(value, **options)
    return {key: np.array([forecast(watches, seed)[key] for seed in range(5)]) for key in forecast(watches, 0)}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_measure_that_knows_when(sign):
    def knows(epochs, at, rng):
        return sign * np.minimum(at - epochs, 1e4)

    found = told(knows)
    assert found["auroc"].tolist() == [1] * 5
    assert found["lead"].tolist() == [HORIZON] * 5
    assert found["false_alarms"].tolist() == [0] * 5


def test_noise_knows_nothing():
    found = told(lambda epochs, at, rng: rng.normal(size=len(epochs)))
    assert abs(found["auroc"].mean() - 0.5) < 0.1
    assert found["false_alarms"].mean() > 0.4
    assert found["lead"].mean() < HORIZON / 4
    assert found["rho"].max() < 0.4


def test_the_clock_does_not_suffice():
    """It is monotone in every run, and yet understanding comes at another time in each."""
    found = told(lambda epochs, at, rng: epochs)
    assert found["auroc"].max() < 0.75
    assert found["rho"].min() > 0.9


def test_direction_and_threshold_are_not_the_seeds_own():
    """What rises before understanding in one seed and falls in all others ranks that seed the wrong way."""
    watches = watched(lambda epochs, at, rng: -np.minimum(at - epochs, 1e4))
    for by_seed in watches.values():
        one = by_seed[0]
        by_seed[0] = Watch(one.epochs, -one.values, one.losses, one.understood)
    assert forecast(watches, 0)["auroc"] == 0
    assert forecast(watches, 1)["auroc"] == 1


def test_an_alarm_that_never_comes_leads_by_nothing():
    watches = watched(lambda epochs, at, rng: (at - epochs <= HORIZON).astype(float))
    for by_seed in watches.values():
        one = by_seed[0]
        by_seed[0] = Watch(one.epochs, 0 * one.values, one.losses, one.understood)
    found = forecast(watches, 0)
    assert (found["lead"], found["false_alarms"], found["auroc"]) == (0, 0, 0.5)


def test_without_other_seeds_there_is_no_threshold():
    found = forecast(watched(lambda epochs, at, rng: epochs, seeds=1), 0)
    assert np.isfinite(found.pop("rho"))
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_statistic_of_mann_and_whitney(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    expected = mannwhitneyu(scores[positive], scores[~positive]).statistic / (positive.sum() * (~positive).sum())
    assert auroc(scores, positive) == pytest.approx(expected)
    j = [(scores[positive] >= t).mean() - (scores[~positive] >= t).mean() for t in np.unique(scores)]
    assert threshold(scores, positive) == np.unique(scores)[np.argmax(j)]


def test_auroc_without_both_is_none():
    assert np.isnan(auroc(np.arange(3.0), np.ones(3, bool)))


def test_every_measure_is_drawn():
    paths = {measure.path for measure in studied.MEASURES.values()} - {None}
    assert paths <= studied.STUDY.draws.keys()
    assert set(studied.BASELINES) <= studied.MEASURES.keys()
