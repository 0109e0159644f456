import numpy as np
import pytest
import torch
import xarray as xr
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
    probe = xr.Dataset(values).sel(layer="probe")
    assert probe.correlation.sel(observable=["x", "y"]).values.tolist() == pytest.approx([20 / 24, 4 / 24])
    assert probe.median_correlation.sel(observable=["x", "y"]).values.tolist() == pytest.approx([1, 0], abs=1e-7)
    assert probe.neuron_share.sel(observable=["x", "y"]).values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert probe.activation_share.sel(observable=["x", "y"]).values.tolist() == pytest.approx([20 / 24, 4 / 24])
    assert probe.constant_neurons == 2


def test_a_class_is_an_observable_too(batch):
    class Knows(Probes):
        """Its neuron x follows class 1, which is where x is 1, exactly, and class 0 with the other sign."""

        def forward(self, inputs):
            return torch.zeros(len(inputs), 3)

    inputs, targets = batch[0], (batch[0][:, 0] > 0).long()
    arrays = FeatureCorrelationCallback(classes=True).measure_final(Knows(), (inputs, targets))
    r = arrays["neuron_correlation"].sel(layer="probe")
    assert r.observable.values.tolist() == ["x", "y", "class_0", "class_1", "class_2"]
    np.testing.assert_allclose(r.sel(observable="class_1")[:3], [1, -1, 0], atol=1e-6)
    np.testing.assert_allclose(r.sel(observable="class_0")[:3], [-1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(np.nan_to_num(r.sel(observable="class_2")), 0)


def test_neurons_at_the_end(batch):
    arrays = FeatureCorrelationCallback(sample=2).measure_final(Probes(), batch)
    assert arrays["neuron_correlation"].dims == ("layer", "observable", "neuron")
    r = arrays["neuron_correlation"].sel(layer="probe")
    np.testing.assert_allclose(r.sel(observable="x")[:3], [1, -1, 0], atol=1e-9)
    assert np.isnan(r[:, 3:]).all()
    assert arrays["sample_observable"].sel(observable="y").values.tolist() == [-1.0, 1.0]
    assert arrays["sample_preactivation"].sizes == {"sample": 2, "sample_neuron": 5}
    sample = arrays["sample_preactivation"][:, :3]
    np.testing.assert_allclose(sample, [[-2, 4, -1], [2, -2, 1]])  # of the first example and the last


def test_layers_and_observables_of_the_ising_network():
    batch = torch.randn(50, 8, 8).sign(), torch.zeros(50, dtype=torch.long)
    network = IsingCNN(side=8)
    values = FeatureCorrelationCallback().measure(network, batch)
    for layer in ("conv1", "conv2", "fc1"):
        shares = values["neuron_share"].sel(layer=layer, observable=list(PAPER))
        assert shares.sum().item() == pytest.approx(1)
    arrays = FeatureCorrelationCallback().measure_final(network, batch)
    r = arrays["neuron_correlation"]
    assert r.sel(layer="conv1").dropna("neuron").sizes == {"observable": 3, "neuron": 128}
    widths = {name: values.shape[1] for name, values in network.preactivations(batch[0]).items()}
    assert r.sizes["neuron"] == max(widths.values())
    for layer, width in widths.items():  # NaN beyond the last neuron of a smaller layer
        assert r.sel(layer=layer)[:, width:].isnull().all()
    activation = network.preactivations(batch[0])["fc1"][:, 7].detach()
    expected = np.corrcoef(activation, network.observables(batch[0])["energy"])[0, 1]
    assert r.sel(layer="fc1", observable="energy")[7] == pytest.approx(expected, abs=1e-6)


def test_a_collapsed_network_has_constant_neurons_and_no_correlation(batch):
    network = Probes()
    nn.init.zeros_(network.scale)
    values = FeatureCorrelationCallback().measure(network, batch)
    assert values["constant_neurons"].sel(layer="probe") == 5
    assert np.isnan(values["correlation"].sel(layer="probe", observable="x"))


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
    assert run.features.sample_observable.dims == ("replica", "observable", "sample")
    assert run.features.observable.values.tolist() == list(PAPER)
    energies = run.features.sample_observable.sel(observable="energy")
    assert not np.array_equal(energies[0], energies[1])
    energy = run.features.correlation.sel(layer="fc1", observable="energy")
    assert energy.dropna("epoch").epoch.values.tolist() == [0, 1, 2, 3, 4]


def test_the_median_of_two_neurons_lies_between_them():
    class Two(Probes):
        def preactivations(self, inputs):
            return {"probe": super().preactivations(inputs)["probe"][:, [0, 2]]}

    inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    values = FeatureCorrelationCallback().measure(Two(), (inputs, torch.zeros(40)))
    r = abs(np.corrcoef(inputs[:, 0], inputs[:, 1])[0, 1])
    assert values["median_correlation"].sel(observable="x").item() == pytest.approx((1 + r) / 2, abs=1e-6)
