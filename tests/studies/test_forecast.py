"""Which measure announces understanding: on trainings whose future is known."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import mannwhitneyu

from studies.beyond_progress_measures import forecast as studied
from studies.beyond_progress_measures.forecast import HORIZON, Watch, auroc, forecast, threshold
from studies.beyond_progress_measures.initial_embedding import STUDY as INITIAL
from studies.beyond_progress_measures.sweeps import FORECASTS, INITS
from studies.claims import Results, judge
from tests.studies import worlds

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


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_where_understanding_follows_soon_an_alarm_that_is_always_on_leads_by_nothing(noise):
    soon = {"a": 700, "b": 900, "c": 1100, "never": np.inf}
    found = told(lambda epochs, at, rng: noise * rng.normal(size=len(epochs)), understood=soon)
    assert found["lead"].mean() < HORIZON / 8


def test_what_some_settings_lack_is_compared_on_the_others():
    """A measure that is the norm does not beat it, though it is not there where the norm fails."""
    trees = {name: worlds.forecast(sweep, i, [True] * 5) for i, (name, sweep) in enumerate(FORECASTS.items())}
    results = Results()
    for name, sweep in FORECASTS.items():
        tree = trees[name].copy()
        norm = ("replica", "epoch"), tree["uniformity"].to_dataset().mean_norm.sel(operand="both").values
        measures = tree["progress_measures"].to_dataset().assign(restricted_loss=norm)
        tree["progress_measures"] = xr.DataTree(
            measures if name in ("x + y", "x - y") else measures.drop_vars("restricted_loss")
        )
        results[sweep.name] = tree
    claim = next(claim for claim in studied.STUDY.claims if claim.name == "restricted_loss_beats_the_norm")
    assert judge(claim, results).estimate == pytest.approx(0, abs=1e-12)


def test_a_seed_that_never_understands_does_not_halve_the_time():
    """Seven of ten that never do are not left out beside three that take half as long."""
    names = [sweep.name for sweep in INITS[0.3]]
    epochs = np.arange(0, 20_001, 500)
    results = Results()
    for name, times in zip(names, ([8000] * 10, [4000] * 3 + [np.inf] * 7), strict=True):
        accuracy = (epochs >= np.array(times)[:, None]).astype(float)
        keys = {"init_scale": ("replica", [1.0] * 10), "seed": ("replica", list(range(10)))}
        branch = xr.Dataset({"test_accuracy": (("replica", "epoch"), accuracy)}, {"epoch": epochs})
        root = xr.Dataset(coords=keys).set_index(replica=["init_scale", "seed"])
        results[name] = xr.DataTree.from_dict({"/": root, "evaluation": branch})
    claim = next(claim for claim in INITIAL.claims if claim.name == "toeplitz_halves_the_time_0.3")
    found = judge(claim, results)
    assert len(found.values) == 10
    assert found.verdict == "not reproduced"


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
