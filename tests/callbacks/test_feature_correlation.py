import numpy as np
import pytest
import torch
from torch import nn

from callbacks import FeatureCorrelationCallback
from lit_grok.networks import IsingCNN
from lit_grok.results import open_run

PAPER = ("energy", "magnetisation", "abs_magnetisation")


class Probes(nn.Module):
    """One layer whose neurons are, in this order: 2x, 1 − 3x, y, 5 and 5 + 1e-9 x, with x and y the observables."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def observables(self, inputs):
        return {"x": inputs[:, 0], "y": inputs[:, 1]}

    def preactivations(self, inputs):
        x, y = inputs[:, 0], inputs[:, 1]
        five = torch.full_like(x, 5.0)
        return {"probe": self.scale * torch.stack([2 * x, 1 - 3 * x, y, five, five + 1e-9 * x], dim=1)}


@pytest.fixture
def batch():
    inputs = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    return inputs, torch.zeros(4, dtype=torch.long)


def test_summaries_of_a_layer_by_hand(batch):
    values = FeatureCorrelationCallback().measure(Probes(), batch)
    # Σ|a|: 8 for 2x, 4 + 2 + 4 + 2 = 12 for 1 − 3x, 4 for y; x and y do not correlate.
    assert values["correlation/probe/x"] == pytest.approx(20 / 24)
    assert values["correlation/probe/y"] == pytest.approx(4 / 24)
    assert values["correlation/probe/x/median"] == pytest.approx(1)
    assert values["correlation/probe/y/median"] == pytest.approx(0, abs=1e-9)
    assert values["correlation/probe/x/neurons"] == pytest.approx(2 / 3)
    assert values["correlation/probe/y/activation"] == pytest.approx(4 / 24)
    assert values["correlation/probe/constant"] == 2


def test_neurons_at_the_end(batch):
    arrays = FeatureCorrelationCallback(sample=2).measure_final(Probes(), batch)
    r = arrays["correlation/probe/r"]
    assert r.dims == ("observable", "probe_neuron")
    np.testing.assert_allclose(r.sel(observable="x")[:3], [1, -1, 0], atol=1e-9)
    assert np.isnan(r[:, 3:]).all()
    assert arrays["correlation/observables"].sel(observable="y").values.tolist() == [-1.0, 1.0]
    assert arrays["correlation/probe/sample"].sizes == {"sample": 2, "probe_neuron": 5}


def test_layers_and_observables_of_the_ising_network():
    batch = torch.randn(50, 8, 8).sign(), torch.zeros(50, dtype=torch.long)
    network = IsingCNN(side=8)
    values = FeatureCorrelationCallback().measure(network, batch)
    for layer in ("conv1", "conv2", "fc1"):
        shares = [values[f"correlation/{layer}/{name}/neurons"] for name in PAPER]
        assert sum(shares) == pytest.approx(1)
    arrays = FeatureCorrelationCallback().measure_final(network, batch)
    assert arrays["correlation/conv1/r"].sizes == {"observable": 3, "conv1_neuron": 128}
    activation = network.preactivations(batch[0])["fc1"][:, 7].detach()
    expected = np.corrcoef(activation, network.observables(batch[0])["energy"])[0, 1]
    assert arrays["correlation/fc1/r"].sel(observable="energy")[7] == pytest.approx(expected, abs=1e-6)


def test_a_collapsed_network_has_constant_neurons_and_no_correlation(batch):
    network = Probes()
    nn.init.zeros_(network.scale)
    values = FeatureCorrelationCallback().measure(network, batch)
    assert values["correlation/probe/constant"] == 5
    assert np.isnan(values["correlation/probe/x"])


def test_a_sample_has_at_least_one_example():
    with pytest.raises(ValueError, match=r"FeatureCorrelationCallback\.sample=0"):
        FeatureCorrelationCallback(sample=0)


def test_a_network_without_observables_is_refused_before_the_training(command):
    mine = "+callbacks.mine._target_=callbacks.FeatureCorrelationCallback"
    result = command(*command.MOD_ADD, "run_dir=run", mine)
    assert result.code == 2
    assert result.err.strip() == (
        "error: callbacks.mine: FeatureCorrelationCallback needs a network with the method observables "
        "(lit_grok.networks.HasObservables), "
        "which ModularMLP does not have: add what is missing, or ~callbacks.mine"
    )
    assert not (command.folder / "run").exists()


def test_replicas_have_their_own_test_sets(command):
    features = "+callbacks.features={_target_:callbacks.FeatureCorrelationCallback,every:1}"
    run = open_run(command.ising("seed=[0,1]", features))
    assert run.correlation_observables.dims == ("replica", "observable", "sample")
    assert run.observable.values.tolist() == list(PAPER)
    energies = run.correlation_observables.sel(observable="energy")
    assert not np.array_equal(energies[0], energies[1])
    assert run.correlation_fc1_energy.dropna("epoch").epoch.values.tolist() == [0, 1, 2, 3, 4]
