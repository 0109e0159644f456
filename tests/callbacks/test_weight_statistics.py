import numpy as np
import pytest
import torch
from torch import nn

from callbacks import WeightStatisticsCallback
from lit_grok.results import open_run


@pytest.fixture
def network():
    """Three hidden neurons: one whole, one without input, one whose output has decayed to 1e-34."""
    network = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0], [0.0], [4.0]]))
        network[2].weight.copy_(torch.tensor([[1.0, 2.0, 1e-34]]))
    return network


def test_statistics_by_hand(network):
    values = WeightStatisticsCallback().measure(network, None)
    layers = {name: values[f"layer_{name}"] for name in ("norm", "gini", "zero_share", "negligible_share")}
    assert layers["norm"].layer.values.tolist() == ["0", "2"]
    assert layers["norm"].values.tolist() == pytest.approx([5, np.sqrt(1 + 4)])
    assert layers["gini"].sel(layer="0") == pytest.approx((0 * 3 + 2 * 4) / (3 * 7))
    # Σ (2i − n − 1) |w|_i / (n Σ |w|) with |w| = 0, 0, 1, 2, 3, 4
    assert values["gini"] == pytest.approx((-1 * 1 + 1 * 2 + 3 * 3 + 5 * 4) / (6 * 10))
    assert values["zero_share"] == pytest.approx(1 / 6)
    assert layers["zero_share"].values.tolist() == pytest.approx([1 / 3, 0])
    assert values["negligible_share"] == pytest.approx(2 / 6)
    assert layers["negligible_share"].values.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert values["dead_neurons"] == values["layer_dead_neurons"].sel(layer="0") == 2
    assert values["layer_dead_neurons"].sel(layer="2").isnull()  # the last layer gives the classes


def test_the_network_is_left_alone(network):
    before = [p.clone() for p in network.parameters()]
    WeightStatisticsCallback().measure(network, None)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_of_zeros_has_no_inequality(network):
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    values = WeightStatisticsCallback().measure(network, None)
    assert values["zero_share"] == 1
    assert values["layer_dead_neurons"].sel(layer="0") == 3
    assert np.isnan(values["gini"])


def test_in_a_run(command):
    statistics = "+callbacks.weights={_target_:callbacks.WeightStatisticsCallback,every:2}"
    run = open_run(command.mod_add("seed=0:2", statistics))
    assert run.weights.epoch.values.tolist() == [0, 2, 4]
    assert run.weights.layer_norm.dims == ("replica", "epoch", "layer")
    norm = np.sqrt((run.weights.layer_norm.astype(float) ** 2).sum("layer"))
    np.testing.assert_allclose(norm, run.evaluation.weight_norm.sel(epoch=[0, 2, 4]), rtol=1e-5)
    np.testing.assert_array_equal(run.weights.layer_dead_neurons.sel(layer="hidden.0"), run.weights.dead_neurons)
    assert run.weights.layer_gini.long_name == "Gini coefficient of |w|"
    assert "NaN" not in (command.folder / "run" / "train.log").read_text()  # an output layer has none that could die
