import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from callbacks import IPRCallback
from lit_grok.networks import ModularMLP
from lit_grok.results import open_run

P = 11


@pytest.fixture
def network():
    """Four neurons: a cosine, a constant, noise, and one that weight decay has taken to 1e-34."""
    network = ModularMLP(P=P, hidden=[4])
    angle = 2 * torch.pi * torch.arange(P) / P
    rows = torch.stack([torch.cos(3 * angle + 0.4), torch.ones(P), torch.randn(P), 1e-34 * torch.randn(P)])
    with torch.no_grad():
        network.hidden[0].weight[:, :P] = rows
        network.hidden[0].weight[:, P:] = rows
        network.output.weight.copy_(rows.t())
    return network


@pytest.fixture
def batch():
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    return pairs, pairs.sum(1) % P


def ratio(weights, r=2):
    power = np.abs(np.fft.fft(weights.double().numpy())) ** 2
    return (power**r).sum() / power.sum() ** r


def test_means_are_over_live_neurons_and_the_mean_ipr_is_that_of_the_sets(network, batch):
    with torch.no_grad():
        network.output.weight[:, 1] = 0.0
    values = IPRCallback().measure(network, batch)
    noise = ratio(network.hidden[0].weight[2, :P].detach())
    of_inputs = (0.5 + 1 + noise) / 3
    assert values["set_ipr"].set.values.tolist() == ["a", "b", "output"]
    assert values["set_ipr"].values.tolist() == pytest.approx([of_inputs, of_inputs, (0.5 + noise) / 2])
    assert values["mean_ipr"] == pytest.approx(values["set_ipr"].values.mean())
    assert values["dead_neurons"].set.values.tolist() == ["a", "b", "output"]
    assert values["dead_neurons"].values.tolist() == [1, 1, 2]


@pytest.mark.parametrize("r", [4, 0.5])
def test_another_order(network, batch, r):
    callback = IPRCallback(r=r)
    weights = network.hidden[0].weight[:3, :P].detach()
    expected = np.mean([ratio(row, r) for row in weights])
    assert callback.measure(network, batch)["set_ipr"].sel(set="a") == pytest.approx(expected)
    assert callback.describe() == {"r": f"{r:g}"}


def test_neurons_at_the_end(network, batch):
    arrays = IPRCallback().measure_final(network, batch)
    assert arrays["neuron_ipr"].dims == ("set", "neuron")
    np.testing.assert_allclose(arrays["neuron_ipr"].sel(set="a")[:2], [0.5, 1.0], atol=1e-6)
    assert np.isnan(arrays["neuron_ipr"].sel(set="output")[3])
    assert arrays["neuron_frequency"].sel(set="b").values[[0, 1, 3]].tolist() == [3, 0, -1]
    activation = F.relu(network.preactivations(batch[0])["hidden.0"]).mean(0)
    np.testing.assert_allclose(arrays["neuron_activation"].sel(set="a"), activation.detach(), rtol=1e-6)


def test_sets_of_different_width_are_nan_beyond_their_last_neuron(batch):
    arrays = IPRCallback().measure_final(ModularMLP(P=P, hidden=[4, 6]), batch)
    for name in ("neuron_ipr", "neuron_frequency", "neuron_activation"):
        assert arrays[name].sizes == {"set": 3, "neuron": 6}
        assert arrays[name].notnull().sum("neuron").values.tolist() == [4, 4, 6]
        assert arrays[name].sel(set="a")[4:].isnull().all()


def test_activation_is_nan_where_it_is_not_clear_which_layer_is_meant(batch):
    arrays = IPRCallback().measure_final(ModularMLP(P=P, hidden=[4, 4]), batch)
    assert arrays["neuron_activation"].isnull().all()
    assert arrays["neuron_ipr"].notnull().all()


class OnlyFourier(nn.Linear):
    """Offers Fourier weights and nothing else."""

    def fourier_weights(self):
        return {"rows": self.weight}


def test_any_network_with_fourier_weights_will_do(batch):
    network = OnlyFourier(P, 3)
    values = IPRCallback().measure(network, batch) | IPRCallback().measure_final(network, batch)
    expected = np.mean([ratio(row) for row in network.weight.detach()])
    assert values["set_ipr"].sel(set="rows") == values["mean_ipr"] == pytest.approx(expected)
    assert values["neuron_activation"].isnull().all()


def test_a_dead_network_has_no_mean(network, batch):
    nn.init.zeros_(network.output.weight)
    values = IPRCallback().measure(network, batch)
    assert np.isnan(values["set_ipr"].sel(set="output"))
    assert np.isnan(values["mean_ipr"])
    assert values["dead_neurons"].sel(set="output") == 4


def test_orders_are_positive():
    with pytest.raises(ValueError, match=r"IPRCallback\.r=0: the order is positive"):
        IPRCallback(r=0)


def test_several_orders_in_one_run(command):
    second = "+callbacks.ipr={_target_:callbacks.IPRCallback,every:1}"
    fourth = "+callbacks.ipr_r4={_target_:callbacks.IPRCallback,r:4,every:2}"
    run = open_run(command.mod_add("init_scale=[1,2]", second, fourth))
    assert run.ipr.mean_ipr.dims == ("replica", "epoch")
    assert run.ipr.epoch.values.tolist() == [0, 1, 2, 3, 4]
    assert run.ipr_r4.mean_ipr.sel(init_scale=2).epoch.values.tolist() == [0, 2, 4]
    assert run.ipr_r4.mean_ipr.notnull().all()
    assert run.ipr.neuron_ipr.sizes == {"replica": 2, "set": 3, "neuron": 16}
    assert (run.ipr_r4.set_ipr.isel(epoch=-1) < run.ipr.set_ipr.isel(epoch=-1)).all()
    assert (run.ipr.attrs["r"], run.ipr_r4.attrs["r"]) == ("2", "4")
    figures = {path.stem for path in (command.folder / "run/figures").iterdir()}
    assert {"ipr_distribution", "ipr_development", "ipr_r4_distribution", "ipr_r4_development"} <= figures
