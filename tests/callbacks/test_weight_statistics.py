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
    assert values["layer_norm"].values == pytest.approx([5, np.sqrt(1 + 4)])
    assert values["layer_norm"].layer.values.tolist() == ["0", "2"]
    assert values["layer_gini"][0] == pytest.approx((0 * 3 + 2 * 4) / (3 * 7))
    assert values["zero_share"] == pytest.approx(1 / 6)
    assert values["layer_zero_share"].values.tolist() == [pytest.approx(1 / 3), 0]
    assert values["negligible_share"] == pytest.approx(2 / 6)
    assert values["layer_dead_neurons"][0] == values["dead_neurons"] == 2
    assert np.isnan(values["layer_dead_neurons"][1])  # the last layer gives the classes


def test_the_network_is_left_alone(network):
    before = [p.clone() for p in network.parameters()]
    WeightStatisticsCallback().measure(network, None)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_of_zeros_has_no_inequality(network):
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    values = WeightStatisticsCallback().measure(network, None)
    assert values["zero_share"] == 1
    assert values["layer_dead_neurons"][0] == 3
    assert np.isnan(values["gini"])
