"""Every claim on results in which it is known whether it holds."""

import numpy as np
import pytest
import xarray as xr

import studies
from studies.claims import Results, judge
from studies.open_questions.sweeps import ABLATIONS, DIGIT_PHASES
from tests.studies import worlds

TRAINED = [(study, claim) for study in studies.all_studies() for claim in study.claims if study.sweeps]
#: What is told of all seeds at once, or of something that cannot be so in a world where the others hold.
ELSEWHERE = {"ising_fails", "digits_grok", "epoch_auroc", "epoch_lead", "epoch_rho"}
ELSEWHERE |= {f"{task}_{name}_groks" for task, name in ABLATIONS}
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
    assert judge(claim, Results()).verdict == "too few seeds"


def with_status(tree, status, scale, seeds):
    """The results, with another status for some replicas."""
    chosen = (tree.init_scale.values == scale) & np.isin(tree.seed.values, seeds)
    values = np.where(chosen, status, tree.status.values.astype(object)).astype(str)
    return chosen_status(tree, values)


def chosen_status(tree, values):
    root = tree.to_dataset()
    root = root.assign(status=("replica", values))
    branches = {name: branch.to_dataset(inherit=False) for name, branch in tree.children.items()}
    return xr.DataTree.from_dict({"/": root, **branches})


def verdict(name, results):
    claim = next(claim for _, claim in TRAINED if claim.name == name)
    found = judge(claim, results)
    return found.verdict, len(found.values)


def test_seeds_that_fail_to_grok(true):
    def failing(seeds):
        return verdict("ising_fails", Results(ising=with_status(true["ising"], "memorised", 10, seeds)))[0]

    assert failing([]) == "undecided"  # of five seeds none may fail where one in ten does
    assert failing([1]) == "undecided"
    assert failing([0, 1, 2, 3, 4]) == "not reproduced"


def test_an_ablation_that_stops_grokking(true):
    name, claim = "ising_no_decay", "ising_no_decay_groks"
    assert verdict(claim, true) == ("reproduced", 5)
    some = with_status(true[name], "memorised", 10, [0, 1])
    assert verdict(claim, Results(true, **{name: some})) == ("undecided", 5)
    assert verdict("ising_no_decay_straight", Results(true, **{name: some}))[1] == 3
    none = with_status(true[name], "memorised", 10, range(5))
    assert verdict(claim, Results(true, **{name: none})) == ("not reproduced", 5)


@pytest.mark.parametrize("name", ["grokked_energy", "leading_fc1", "ising_straight", "ising_bump", "ising_crossing"])
def test_what_has_not_grokked_does_not_speak_of_grokking(name, true):
    results = Results(true, ising=with_status(true["ising"], "memorised", 10, [0, 1]))
    assert verdict(name, results)[1] == 3


def test_a_training_that_ends_on_its_plateau_has_one(true):
    name = DIGIT_PHASES[0.03].name  # where all learn steadily
    assert verdict("mnist_only_learns", true) == ("reproduced", 5)
    ended = with_status(with_status(true[name], "memorised", 8.0, range(5)), "memorised", 5.0, range(5))
    assert verdict("mnist_only_learns", Results(true, **{name: ended})) == ("not reproduced", 5)


def test_one_weight_decay_is_to_do_for_all_seeds():
    results = Results()
    for lucky, sweep in enumerate(DIGIT_PHASES.values()):  # of five, at which one seed each learns steadily alone
        steady = worlds.phases(0.03, sweep, [True] * 5)
        results[sweep.name] = with_status(steady, "grokked", 8.0, [seed for seed in range(5) if seed != lucky])
    assert verdict("mnist_only_learns", results) == ("undecided", 5)


def test_networks_that_collapsed_are_no_trade_off(true):
    tree = true["decay"]
    for scale in (0.1, 0.2, 0.3, 0.4, 0.6, 1.0):
        tree = with_status(tree, "collapsed", scale, range(5))
    assert verdict("losses_fall", Results(true, decay=tree)) == ("too few seeds", 0)  # two scales are no trend


def test_a_network_that_diverged_is_not_perfect(true):
    tree = with_status(true["mod_add"], "diverged", 1.0, [0, 1, 2, 3, 4])
    assert verdict("mod_add_robust", Results(true, mod_add=tree))[0] == "not reproduced"
