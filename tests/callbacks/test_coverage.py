import numpy as np
import pytest
import torch
from torch import nn

from callbacks import AnalysisError, CoverageCallback
from datamodules import IsingDataModule, ModularArithmeticDataModule
from lit_grok.results import open_run

P = 11


class Knows(nn.Module):
    """Answers some pairs of a table rightly, and the others wrongly."""

    def __init__(self, known):
        super().__init__()
        self.known, self.weight = known, nn.Parameter(torch.zeros(1))

    def forward(self, pairs):
        right = (pairs.sum(-1)) % P
        answers = torch.where(self.known[pairs[..., 0], pairs[..., 1]], right, (right + 1) % P)
        return nn.functional.one_hot(answers, P).float() + self.weight


class Module:
    """As much of a LightningModule as the callback asks for."""

    def __init__(self, networks, data):
        self.networks = networks
        self.trainer = type("Trainer", (), {"datamodule": data})

    def predictions(self, pairs):
        return torch.stack([net(own).argmax(-1) for net, own in zip(self.networks, pairs, strict=True)])


def measured(known, **options):
    data = ModularArithmeticDataModule(P=P, batch_size=None, data_seeds=[0, 1], order_seeds=[0, 1], **options)
    data.setup()
    module, callback = Module([Knows(each) for each in known], data), CoverageCallback()
    batch = data.split("test")
    return data, {**callback.measure_replicas(module, batch), **callback.measure_final_replicas(module, batch)}


def test_a_network_that_knows_what_commutes_and_nothing_else():
    data = ModularArithmeticDataModule(P=P, train_fraction=0.5, batch_size=None, data_seeds=[0, 1], order_seeds=[0, 1])
    data.setup()
    known = torch.zeros(2, P, P, dtype=torch.bool)
    for r, pairs in enumerate(data.split("train")[0]):
        known[r, pairs[:, 0], pairs[:, 1]] = known[r, pairs[:, 1], pairs[:, 0]] = True
    _, values = measured(known, train_fraction=0.5)
    by_group = values["accuracy"].sel(group=["transpose trained", "transpose not trained"])
    np.testing.assert_array_equal(by_group, [[1, 0], [1, 0]])
    assert values["accuracy"].sel(group="hole").isnull().all()  # there is none
    np.testing.assert_array_equal(values["pairs"].sel(group="hole"), 0)
    for r, (trained, tested) in enumerate(zip(data.split("train")[0], data.split("test")[0], strict=True)):
        there = {tuple(pair) for pair in trained.tolist()}
        expected = sum((b, a) in there for a, b in tested.tolist())
        assert values["pairs"].sel(group="transpose trained")[r] == expected
        share = values["accuracy"].sel(group="outside")[r].item()
        assert share == pytest.approx(expected / len(tested))


def test_inside_and_outside_a_hole():
    known = torch.ones(2, P, P, dtype=torch.bool)
    known[0, :4, :4] = False
    known[1, 4:] = False
    _, values = measured(known, train_fraction=0.3, hole="square", hole_size=3)
    found = values["accuracy"].sel(group=["hole", "outside"]).values
    assert found[0].tolist() == [0, 1]
    assert found[1, 0] == 1
    assert 0 < found[1, 1] < 0.7  # what is left outside are the first rows
    np.testing.assert_array_equal(values["pairs"].sel(group="hole"), 16)


def test_by_distance_to_the_nearest_training_pair_of_the_class():
    known = torch.rand(2, P, P, generator=torch.Generator().manual_seed(0)) < 0.5
    data, values = measured(known, train_fraction=0.2)
    for r in range(2):
        trained = data.split("train")[0][r].tolist()
        hits, count = {}, {}
        for (a, b), c in zip(*(part[r].tolist() for part in data.split("test")), strict=True):
            steps = [
                sum(min((x - y) % P, (y - x) % P) for x, y in ((a, i), (b, j))) for i, j in trained if (i + j) % P == c
            ]
            if steps:
                count[min(steps)] = count.get(min(steps), 0) + 1
                hits[min(steps)] = hits.get(min(steps), 0) + bool(known[r, a, b])
        for distance in range(P):
            assert values["distance_pairs"].sel(distance=distance)[r] == count.get(distance, 0)
            accuracy = values["distance_accuracy"].sel(distance=distance)[r].item()
            if distance in count:
                assert accuracy == pytest.approx(hits[distance] / count[distance])
            else:
                assert np.isnan(accuracy)


@pytest.mark.rendered
def test_a_run_and_its_figures(command):
    coverage = "callbacks.coverage._target_=callbacks.CoverageCallback"
    run = command.prime(coverage, "hole=strip", "hole_size=3", "seed=0:2")
    found = open_run(run)
    shares = found["coverage"].pairs.isel(epoch=-1)
    whole = found["coverage"].accuracy.isel(epoch=-1).sel(group=["hole", "outside"])
    total = (whole * shares.sel(group=["hole", "outside"])).sum("group") / shares.sel(group=["hole", "outside"]).sum(
        "group"
    )
    np.testing.assert_allclose(total, found.evaluation.test_accuracy.isel(epoch=-1), rtol=1e-6)
    assert {path.name for path in (run / "figures").glob("coverage*.png")} == {
        "coverage_development.png",
        "coverage_distance.png",
    }


def test_other_data_are_refused(command):
    result = command(*command.ISING, "+callbacks.coverage._target_=callbacks.CoverageCallback")
    assert result.code == 2
    assert "callbacks.coverage: CoverageCallback needs data that are datamodules.HasResiduePairs" in result.err
    assert not (command.folder / "data").exists()  # before any are made
    with pytest.raises(AnalysisError, match="which those of IsingDataModule are not"):
        CoverageCallback().check_data(IsingDataModule)
