import numpy as np
import pytest
import torch
from torch import nn

from callbacks import WeightStatisticsCallback


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
    assert values["weights/norm"] == pytest.approx(np.sqrt(9 + 16 + 1 + 4))
    assert values["weights/0/norm"] == pytest.approx(5)
    assert values["weights/0/gini"] == pytest.approx((0 * 3 + 2 * 4) / (3 * 7))
    assert values["weights/zero_share"] == pytest.approx(1 / 6)
    assert values["weights/2/zero_share"] == 0
    assert values["weights/negligible_share"] == pytest.approx(2 / 6)
    assert values["weights/0/dead"] == values["weights/dead"] == 2
    assert "weights/2/dead" not in values  # the last layer gives the classes


def test_the_network_is_left_alone(network):
    before = [p.clone() for p in network.parameters()]
    WeightStatisticsCallback().measure(network, None)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_network_of_zeros_has_no_inequality(network):
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    values = WeightStatisticsCallback().measure(network, None)
    assert values["weights/zero_share"] == 1
    assert values["weights/0/dead"] == 3
    assert np.isnan(values["weights/gini"])
