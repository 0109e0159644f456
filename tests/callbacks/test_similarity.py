from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from callbacks import SimilarityCallback
from lit_grok.measures.similarity import linear_cka, pairwise_linear_cka
from lit_grok.networks import ModularMLP
from lit_grok.results import open_run


def module(networks, diverged=None):
    return SimpleNamespace(
        stack=SimpleNamespace(networks=networks, each=map),
        replicas=networks,
        sound=[r for r in range(len(networks)) if not diverged or diverged[r] is None],
        label=lambda r: f"seed={r}",
    )


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [ModularMLP(P=11, hidden=[8, 6]) for _ in range(3)]


@pytest.fixture
def batch():
    return torch.randint(11, (3, 50, 2)), torch.zeros(3, 50, dtype=torch.long)


def test_every_two_replicas_on_the_inputs_of_the_first(networks, batch):
    cka = SimilarityCallback().measure_final_replicas(module(networks), batch)["cka"]
    assert cka.dims == ("replica", "other", "layer")
    assert cka.other.values.tolist() == ["seed=0", "seed=1", "seed=2"]
    hidden = [F.relu(n.preactivations(batch[0][0])["hidden.1"].detach()) for n in networks]
    expected = [[linear_cka(x, y) for y in hidden] for x in hidden]
    np.testing.assert_allclose(cka.sel(layer="hidden.1"), expected, atol=1e-5)
    means = SimilarityCallback().measure_replicas(module(networks), batch)["mean_cka"]
    assert means.dims == ("replica", "layer")
    assert means.sel(layer="hidden.1")[1] == pytest.approx(float(expected[1][0] + expected[1][2]) / 2, abs=1e-5)


def test_chance_is_a_layer_with_itself_in_another_order(networks):
    torch.manual_seed(1)
    inputs = torch.randint(11, (3, 4000, 2))
    chance = SimilarityCallback().measure_final_replicas(module(networks), (inputs, inputs))["shuffled_cka"]
    assert chance.dims == ("replica", "layer")
    hidden = [F.relu(n.preactivations(inputs[0])["hidden.0"].detach()).double() for n in networks]
    for found, x in zip(chance.sel(layer="hidden.0").values, hidden, strict=True):
        # Of n inputs in random order the mean of ‖XᵀΠX‖² is (tr XᵀX)² / (n − 1), with X centred.
        x = x - x.mean(0)
        gram = x.T @ x
        expected = float(gram.trace() ** 2 / 3999 / gram.square().sum())
        assert 0.2 * expected < found < 5 * expected < 0.02
    spoiled = SimilarityCallback().measure_final_replicas(module(networks, [None, 3, None]), (inputs, inputs))
    np.testing.assert_array_equal(np.isnan(spoiled["shuffled_cka"].sel(layer="hidden.0")), [False, True, False])


def test_a_replica_that_diverged_is_left_out(networks, batch):
    torch.nn.init.constant_(networks[1].hidden[0].weight, torch.nan)
    found = SimilarityCallback().measure_replicas(module(networks, [None, 4, None]), batch)
    means = found["mean_cka"].sel(layer="hidden.0")
    assert means[0].item() == pytest.approx(means[2].item())
    assert np.isnan(means[1])


def test_one_replica_is_like_no_other(networks, batch):
    for alone in (module(networks[:1]), module(networks[:2], [None, 7])):
        assert SimilarityCallback().measure_replicas(alone, batch) == {}
        assert SimilarityCallback().measure_final_replicas(alone, batch) == {}


def test_a_dead_replica_is_like_none_and_spoils_no_other(networks):
    activations = torch.stack([F.relu(torch.randn(20, 4)) for _ in range(3)])
    activations[1] = 0
    cka = pairwise_linear_cka(activations)
    assert cka[1].isnan().all()
    assert cka[0, 2] == pytest.approx(float(linear_cka(activations[0], activations[2])), abs=1e-6)


def test_in_a_run(command):
    similarity = "+callbacks.similarity={_target_:callbacks.SimilarityCallback,every:2}"
    run = open_run(command.mod_add("init_scale=[1,2]", "seed=[0,1]", similarity))
    matrix = run.similarity.cka.sel(layer="hidden.0").values
    assert run.similarity.other.values.tolist() == [f"init_scale={s} seed={n}" for s in (1, 2) for n in (0, 1)]
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T)
    assert run.similarity.epoch.values.tolist() == [0, 2, 4]
    end = run.similarity.mean_cka.sel(layer="hidden.0").isel(epoch=-1)
    np.testing.assert_allclose(end, (matrix.sum(1) - 1) / 3)


def test_a_run_of_one_replica_has_no_such_branch(command):
    run_dir = command.mod_add("+callbacks.similarity={_target_:callbacks.SimilarityCallback,every:2}")
    assert "similarity" not in open_run(run_dir).children
    assert not list((run_dir / "figures").glob("similarity*"))


def test_it_is_silent_where_there_is_nothing_to_compare(command, batch):
    mine = "+callbacks.similarity={_target_:callbacks.SimilarityCallback,every:1}"
    result = command(*command.MOD_ADD, "run_dir=run", mine)
    assert (result.code, result.err) == (0, "")
    nameless = [torch.nn.Linear(2, 2) for _ in range(2)]
    assert SimilarityCallback().measure_replicas(module(nameless), batch) == {}
