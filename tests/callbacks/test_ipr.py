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
    assert values["ipr/a"] == pytest.approx((0.5 + 1 + noise) / 3)
    assert values["ipr/b"] == pytest.approx((0.5 + 1 + noise) / 3)
    assert values["ipr/output"] == pytest.approx((0.5 + noise) / 2)
    assert values["ipr/mean"] == pytest.approx(np.mean([values[f"ipr/{s}"] for s in ("a", "b", "output")]))
    assert [values[f"ipr/{s}/dead"] for s in ("a", "b", "output")] == [1, 1, 2]
    assert values["ipr/dead"] == 2


@pytest.mark.parametrize("r", [4, 0.5])
def test_another_order_has_another_name(network, batch, r):
    callback = IPRCallback(r=r)
    weights = network.hidden[0].weight[:3, :P].detach()
    expected = np.mean([ratio(row, r) for row in weights])
    assert callback.measure(network, batch)[f"ipr/r{r:g}/a"] == pytest.approx(expected)
    assert callback.state_key != IPRCallback().state_key


def test_neurons_at_the_end(network, batch):
    arrays = IPRCallback().measure_final(network, batch)
    assert arrays["ipr/a/per_neuron"].dims == ("neuron",)
    np.testing.assert_allclose(arrays["ipr/a/per_neuron"][:2], [0.5, 1.0], atol=1e-6)
    assert np.isnan(arrays["ipr/output/per_neuron"][3])
    assert arrays["ipr/b/frequency"].values[[0, 1, 3]].tolist() == [3, 0, -1]
    activation = F.relu(network.preactivations(batch[0])["hidden.0"]).mean(0)
    np.testing.assert_allclose(arrays["ipr/a/activation"], activation.detach(), rtol=1e-6)


def test_sets_of_different_width_have_dimensions_of_their_own(batch):
    arrays = IPRCallback().measure_final(ModularMLP(P=P, hidden=[4, 6]), batch)
    assert arrays["ipr/a/per_neuron"].sizes == {"a_neuron": 4}
    assert arrays["ipr/output/per_neuron"].sizes == {"output_neuron": 6}
    assert arrays["ipr/output/activation"].sizes == {"output_neuron": 6}


def test_activation_is_left_out_where_it_is_not_clear_which_layer_is_meant(batch):
    assert "ipr/a/activation" not in IPRCallback().measure_final(ModularMLP(P=P, hidden=[4, 4]), batch)


class OnlyFourier(nn.Linear):
    """Offers Fourier weights and nothing else."""

    def fourier_weights(self):
        return {"rows": self.weight}


def test_any_network_with_fourier_weights_will_do(batch):
    network = OnlyFourier(P, 3)
    values = IPRCallback().measure(network, batch) | IPRCallback().measure_final(network, batch)
    expected = np.mean([ratio(row) for row in network.weight.detach()])
    assert values["ipr/rows"] == values["ipr/mean"] == pytest.approx(expected)
    assert "ipr/rows/activation" not in values


def test_a_dead_network_has_no_mean(network, batch):
    nn.init.zeros_(network.output.weight)
    values = IPRCallback().measure(network, batch)
    assert np.isnan(values["ipr/output"])
    assert values["ipr/dead"] == 4


def test_orders_are_positive():
    with pytest.raises(ValueError, match=r"IPRCallback\.r=0: the order is positive"):
        IPRCallback(r=0)


def test_several_orders_in_one_run(command):
    second = "+callbacks.ipr={_target_:callbacks.IPRCallback,every:1}"
    fourth = "+callbacks.fourth={_target_:callbacks.IPRCallback,r:4,every:2}"
    run = open_run(command.mod_add("init_scale=[1,2]", second, fourth))
    assert run.ipr_mean.dims == ("replica", "epoch")
    assert run.ipr_r4_mean.sel(init_scale=2).dropna("epoch").epoch.values.tolist() == [0, 2, 4]
    assert run.ipr_a_per_neuron.sizes == {"replica": 2, "neuron": 16}
    assert float(run.ipr_r4_a.isel(epoch=-1, replica=0)) < float(run.ipr_a.isel(epoch=-1, replica=0))
    figures = {path.name.partition("_init_scale")[0] for path in (command.folder / "run/figures").iterdir()}
    assert {"ipr_distribution", "ipr_development", "ipr_r4_distribution", "ipr_r4_development"} <= figures
