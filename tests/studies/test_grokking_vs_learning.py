"""Every claim of the first paper on results in which it is known whether it holds."""

import pytest

import studies
from studies.claims import Results, judge
from tests.studies import worlds

TRAINED = [(study, claim) for study in studies.all_studies() for claim in study.claims if study.sweeps]
#: What is told of all seeds at once, or of something that cannot be so in a world where the others hold.
ELSEWHERE = {"ising_fails", "ising_losses_vary"}
CLAIMS = [
    pytest.param(claim, id=f"{study.name}-{claim.name}") for study, claim in TRAINED if claim.name not in ELSEWHERE
]


@pytest.fixture(scope="module")
def true():
    return worlds.results([True] * 5)


@pytest.fixture(scope="module")
def false():
    return worlds.results([False] * 5)


@pytest.fixture(scope="module")
def mixed():
    return worlds.results([True, False, True, False, True])


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_holds_is_reproduced(claim, true):
    found = judge(claim, true)
    assert found.verdict == "reproduced", found
    assert len(found.values) == 5


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_does_not_hold_is_not(claim, false):
    found = judge(claim, false)
    assert found.verdict == "not reproduced" or not found.values, found  # where no seed has grokked, say


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_holds_for_some_seeds_only_is_undecided(claim, mixed):
    assert judge(claim, mixed).verdict == "undecided", judge(claim, mixed)


@pytest.mark.parametrize("claim", CLAIMS)
def test_without_runs_nothing_is_decided(claim):
    assert judge(claim, Results()).verdict == "undecided"
