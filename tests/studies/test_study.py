"""Summaries: what they keep, that they come back, and that they add up."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import studies
from lit_grok.files import ReadError
from studies.claims import Results, judge
from studies.open_questions import sweeps as open_sweeps
from studies.study import merge, pack, read_summary, results_of, summarise, unpack, write_summary
from tests.lit_grok.synthetic import plausible
from tests.studies import worlds

STUDY, GROKKING = studies.find("fig4"), studies.find("fig2")


def test_studies_have_names_and_figures_of_their_own():
    keys = [key for study in studies.all_studies() for key in (study.name, *study.figures)]
    assert len(keys) == len(set(keys))
    numbers = {int(key[3:]) for key in keys if key.startswith("fig")}
    assert numbers == {*range(2, 13), *range(13, 17), *range(18, 35)}
    assert "table1" in keys
    with pytest.raises(ValueError, match="did you mean fig5"):
        studies.find("figg5")


def test_names_of_claims_are_unique_and_sentences_end():
    for study in studies.all_studies():
        names = [claim.name for claim in study.claims]
        assert len(names) == len(set(names)) > 0
        for claim in study.claims:
            assert claim.says.endswith(".")
            assert " ising" not in claim.says
            assert claim.source
            assert claim.statistic


def test_results_come_back_from_a_summary():
    run = plausible("mod_add", seeds=2)
    draws = {"ipr/mean_ipr": None, "pruning/accuracy": (10.0,), "ipr/neuron_frequency": None}
    back = unpack(json.loads(json.dumps(pack(run, draws))))
    assert back.status.values.tolist() == run.status.values.tolist()
    assert back.t_test.values.tolist() == run.t_test.values.tolist()
    kept = back.pruning.accuracy.sel(init_scale=10, seed=1).values
    assert kept == pytest.approx(run.pruning.accuracy.sel(init_scale=10, seed=1).values, rel=1e-3)
    assert np.isnan(back.pruning.accuracy.sel(init_scale=0.1).values).all()
    curve = back.ipr.mean_ipr
    assert curve.sizes["epoch"] <= 61 < run.ipr.mean_ipr.sizes["epoch"]
    assert {0, 1000} <= set(curve.epoch.values.tolist())
    same = run.ipr.mean_ipr.sel(epoch=curve.epoch)
    assert curve.values == pytest.approx(same.values, rel=1e-3)
    assert back.ipr.attrs == run.ipr.attrs


@pytest.mark.parametrize("name", [study.name for study in studies.all_studies() if not study.sweeps])
def test_studies_without_training(name, tmp_path):
    study = studies.find(name)
    results = Results({name: study.sample([0, 1, 2])})
    summary = summarise(study, results)
    assert {claim["verdict"] for claim in summary["claims"]} == {"reproduced"}
    write_summary(summary, tmp_path)
    drawn = study.draw(results_of(read_summary(name, tmp_path)))
    assert drawn
    assert all(isinstance(figure, Figure) for figure in drawn.values())


def test_summaries_add_up():
    both = [worlds.results([True] * 5), worlds.results([True, True])]
    claims = {claim.name for claim in STUDY.claims}
    old, new = (summarise(STUDY, Results({"mod_add": results["mod_add"]})) for results in both)
    joined = merge(STUDY, new, old)
    assert {claim["name"] for claim in joined["claims"]} == claims
    assert [claim["n"] for claim in joined["claims"]] == [5] * len(claims)
    assert [claim["verdict"] for claim in joined["claims"]] == [claim["verdict"] for claim in old["claims"]]
    assert {claim["verdict"] for claim in new["claims"]} == {"too few seeds"}
    assert joined["runs"][0]["seeds"] == [0, 1, 2, 3, 4]
    assert "seed=[0,1,2,3,4]" in joined["runs"][0]["command"]
    tree = results_of(joined)["mod_add"]
    assert sorted(set(tree.seed.values.tolist())) == [0, 1, 2, 3, 4]
    assert tree.sizes["replica"] == 40


@pytest.mark.parametrize(
    "study",
    [study for study in studies.all_studies() if any(claim.of_ends for claim in study.claims)],
    ids=lambda study: study.name,
)
def test_sweeps_that_are_compared_may_come_from_two_machines(study):
    results = worlds.results([True, False, True, False, True])
    joined = summarise(study, Results())
    for sweep in study.sweeps:
        joined = merge(study, summarise(study, Results({sweep.name: results[sweep.name]})), joined)
    for claim in (claim for claim in study.claims if claim.of_ends):
        whole = judge(claim, Results({sweep.name: results[sweep.name] for sweep in study.sweeps}))
        told = next(one for one in joined["claims"] if one["name"] == claim.name)
        assert told["verdict"] == whole.verdict
        assert told["values"].keys() == {str(seed) for seed in whole.values}
        assert list(told["values"].values()) == pytest.approx(list(whole.values.values()), rel=2e-3, abs=2e-3)


def test_values_of_another_statistic_are_not_added():
    old = summarise(STUDY, Results({"mod_add": worlds.results([True] * 5)["mod_add"]}))
    old["claims"][0]["statistic"] = "something else"
    joined = merge(STUDY, summarise(STUDY, Results()), old)
    assert [claim["n"] for claim in joined["claims"]] == [0, 5, 5]


def test_a_damaged_summary_is_said_to_be_one(tmp_path):
    (tmp_path / "fourier.json").write_text("{")
    with pytest.raises(ReadError, match=r"fourier.json: cannot be read as the summary of a study"):
        read_summary("fourier", tmp_path)


def test_what_a_new_reading_says_of_a_seed_holds_even_where_it_is_nothing():
    claims = [claim.name for claim in studies.find("fig2").claims]
    old = summarise(GROKKING, Results({"mod_add": worlds.results([True] * 5)["mod_add"]}))
    tree = worlds.results([True] * 5)["mod_add"]
    root = tree.to_dataset().assign(status=("replica", ["memorised"] * 40))
    branches = {name: branch.to_dataset(inherit=False) for name, branch in tree.children.items()}
    new = summarise(GROKKING, Results({"mod_add": xr.DataTree.from_dict({"/": root, **branches})}))
    onset = claims.index("mod_add_onset")
    assert old["claims"][onset]["n"] == 5
    assert merge(GROKKING, new, old)["claims"][onset]["n"] == 0


def test_what_another_configuration_has_found_is_left_out():
    old = summarise(STUDY, Results({"mod_add": worlds.results([True] * 5)["mod_add"]}))
    old["runs"][0]["names"]["3"] = "mod_add-seed3-of_before"
    joined = merge(STUDY, summarise(STUDY, Results({"mod_add": worlds.results([True] * 2)["mod_add"]})), old)
    assert [claim["n"] for claim in joined["claims"]] == [4, 4, 4]
    assert joined["runs"][0]["seeds"] == [0, 1, 2, 4]
    assert sorted(set(joined["results"]["mod_add"]["replicas"]["seed"])) == [0, 1, 2, 4]


def everything(sweep):
    """Results with every branch that a study draws, for the look of it."""
    if sweep.name.startswith("forecast"):
        return worlds.forecast(sweep, 0, [True, True])
    if sweep.name.startswith("encodings"):
        return worlds.encodings(float(sweep.name.partition("_")[2]), sweep, [True, True])
    if sweep in open_sweeps.ABLATIONS.values():
        return worlds.ablation(sweep.task, sweep, [True, True])
    if "phases" in sweep.name:
        return worlds.phases(float(sweep.name.rpartition("_")[2]), sweep, [True, True])
    if sweep.name.startswith("modulus"):
        return worlds.modulus(int(sweep.name.rpartition("_")[2]), sweep, [True, True])
    if sweep.task == "prime":
        return worlds.prime(sweep, [True, True])
    tree = plausible(sweep.task, scales=sweep.init_scales, seeds=2)
    root, branches = tree.to_dataset(), {n: b.to_dataset(inherit=False) for n, b in tree.children.items()}
    pruning = branches["pruning"]
    for name in ("global", "normalised", "fisher"):
        branches[f"pruning_{name}"] = pruning
    curves = {name: pruning[name] for name in ("accuracy", "loss", "final_kept_share", "final_area")}
    layers = {f"layer_{n}": xr.concat([v, v], xr.Variable("layer", ["fc1", "conv1"])) for n, v in curves.items()}
    branches["pruning_single_layer"] = xr.Dataset(layers).transpose("replica", ...)
    branches["llc"] = branches["llc"].assign(coefficient=("replica", np.arange(float(root.sizes["replica"]))))
    return xr.DataTree.from_dict({"/": root, **branches})


@pytest.mark.parametrize("study", [s for s in studies.all_studies() if s.sweeps], ids=lambda study: study.name)
def test_studies_are_drawn_from_their_summaries(study):
    results = Results({sweep.name: everything(sweep) for sweep in study.sweeps})
    packed = {name: json.loads(json.dumps(pack(tree, study.draws))) for name, tree in results.items()}
    drawn = study.draw(Results({name: unpack(one) for name, one in packed.items()}))
    assert drawn.keys() == study.draw(results).keys() != set()
    numbers = {number for name in drawn for number in re.findall(r"\d+", name)}
    for figure in study.figures:
        if figure in drawn or any(name.startswith(f"{figure}_") for name in drawn):
            continue
        number = int(figure.removeprefix("fig"))
        spans = [tuple(map(int, re.findall(r"\d+", name))) for name in drawn]
        assert str(number) in numbers or any(len(s) == 2 and s[0] <= number <= s[1] for s in spans), figure


def test_moduli_are_drawn_as_far_as_they_are_there():
    study = studies.find("moduli")
    results = {sweep.name: everything(sweep) for sweep in study.sweeps}
    some = Results({name: results[name] for name in ("modulus_31", "modulus_113")})
    assert [len(study.draw(part)) for part in (Results(), some, Results(results))] == [0, 1, 2]


def test_of_some_cells_nothing_is_least_or_most():
    study = studies.find("phases")
    whole = worlds.results([True] * 5)
    results = Results({sweep.name: whole[sweep.name] for sweep in study.sweeps})
    for decay in (3e-5, 1e-3):
        name = open_sweeps.PHASES[decay].name
        results[name] = worlds.phases(decay, open_sweeps.PHASES[decay], [True] * 4)
    for claim in (claim for claim in study.claims if claim.name.startswith("mod_add") or "corner" in claim.name):
        assert judge(claim, results).values.keys() == {0, 1, 2, 3}
    results[open_sweeps.PHASES[3e-4].name] = chosen_seed(results[open_sweeps.PHASES[3e-4].name], 4)
    assert judge(study.claims[1], results).values == {}


def chosen_seed(tree, seed):
    kept = np.flatnonzero(tree.seed.values == seed)
    branches = {name: branch.to_dataset(inherit=False).isel(replica=kept) for name, branch in tree.children.items()}
    return xr.DataTree.from_dict({"/": tree.to_dataset().isel(replica=kept), **branches})


@pytest.mark.parametrize("content", ["{}", "[]", '{"study": 1}', '{"study": "a", "versions": [], "runs": []}'])
def test_what_is_no_summary_is_said_to_be_none(content, tmp_path):
    (tmp_path / "fourier.json").write_text(content)
    with pytest.raises(ReadError, match=r"fourier.json: cannot be read as the summary of a study"):
        read_summary("fourier", tmp_path)


def test_a_sweep_that_has_changed_takes_only_its_own_claims_with_it():
    """Seeds of the one are trained anew, what the others have found stays."""
    study = studies.find("weight_decay")
    results = worlds.results([True] * 5)
    old = summarise(study, Results({sweep.name: results[sweep.name] for sweep in study.sweeps}))
    more = next(run for run in old["runs"] if run["sweep"] == "more_decay")
    more["names"] = dict.fromkeys(more["names"], "mod_add-of-before")
    joined = {claim["name"]: claim["n"] for claim in merge(study, summarise(study, Results()), old)["claims"]}
    assert joined.pop("breakdown_beyond") == 0
    assert set(joined.values()) == {5}
