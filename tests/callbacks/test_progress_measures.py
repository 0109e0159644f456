import numpy as np
import pytest
import torch
from torch import nn

from callbacks import ProgressMeasuresCallback
from datamodules import ModularArithmeticDataModule
from lit_grok.measures.progress import excluded_loss
from lit_grok.networks import Transformer
from lit_grok.results import open_run

P = 11
PAIRS = torch.cartesian_prod(torch.arange(P), torch.arange(P))


class Adds(nn.Module):
    """logits(c) = 5 Σ_k cos(w_k (a + b − c)) by construction, with neurons cos(w_k a) cos(w_k b)."""

    def __init__(self, keys):
        super().__init__()
        self.keys, self.weight = keys, nn.Parameter(torch.full((4,), 0.5))

    def preactivations(self, pairs):
        turn = 2 * torch.pi * torch.tensor(self.keys).double() / P
        return {"neurons": 2 + (pairs[:, :1] * turn).cos() * (pairs[:, 1:] * turn).cos()}

    def fourier_weights(self):
        return {"a": (2 * torch.pi * self.keys[0] * torch.arange(P) / P).cos()[None]}

    def forward(self, pairs):
        angle = 2 * torch.pi * (pairs.sum(-1, keepdim=True) - torch.arange(P)) / P
        return 5 * sum((k * angle.double()).cos() for k in self.keys)


def callback(operation="add"):
    data = ModularArithmeticDataModule(P=P, operation=operation)
    found = ProgressMeasuresCallback(samples=8, directions=4)
    trainer = type("Trainer", (), {"datamodule": data})
    module = type("Module", (), {"stack": type("Stack", (), {"networks": [Adds([2])]})})
    found.setup(trainer, module, "fit")
    return found, data.dataset()


def test_a_network_that_adds_by_construction():
    measure, table = callback()
    network, train = Adds([2, 5]), (PAIRS[:40], table.targets[:40])
    values = measure.measure(network, (PAIRS[40:], table.targets[40:]), train)
    assert values["key_frequencies"] == 2
    loss = nn.functional.cross_entropy(network(PAIRS[40:]), table.targets[40:])
    assert float(values["restricted_loss"]) == pytest.approx(loss.item(), rel=1e-3)  # all it has are these frequencies
    assert float(values["excluded_loss"]) == pytest.approx(np.log(P), rel=1e-5)  # and without them it guesses
    assert float(values["sum_of_squares"]) == pytest.approx(1)
    assert values["fourier_gini"].sel(set="a").item() == pytest.approx(1 - 1 / P, abs=1e-6)
    assert "local_complexity" not in values  # it embeds nothing


def test_what_has_no_frequencies_has_no_restricted_loss():
    measure, table = callback("x2+y2")
    assert set(measure.measure(Adds([2]), table)) == {"sum_of_squares", "fourier_gini", "key_frequencies"}
    assert callback("subtract")[0]._sign == -1


def test_local_complexity_of_a_transformer_is_that_of_its_neurons():
    measure, table = callback()
    network = Transformer(P=P, d_model=8, heads=2, d_mlp=16)
    found = float(measure.measure(network, table)["local_complexity"])
    assert 0 < found < 16
    with torch.no_grad():
        network.blocks[0].mlp_in.bias.fill_(100.0)  # far on one side of every hyperplane
    assert float(measure.measure(network, table)["local_complexity"]) == 0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert float(measure.measure(network, table)["local_complexity"]) == 0


def test_excluded_loss_is_of_the_labels_that_are_trained_on():
    """As the train loss is: with label noise both are of the noisy ones."""
    measure, (pairs, classes) = callback()
    noisy = (classes + 1) % P
    found = measure.measure(Adds([2]), (pairs, classes), (pairs, noisy))
    clean = measure.measure(Adds([2]), (pairs, classes), (pairs, classes))
    labels = excluded_loss(Adds([2])(pairs), noisy, torch.arange(P * P), [2])
    assert float(found["excluded_loss"]) == pytest.approx(float(labels))
    assert float(found["restricted_loss"]) == float(clean["restricted_loss"])


@pytest.mark.rendered
def test_a_run_and_its_figure(command):
    run = command.prime("callbacks.progress_measures._target_=callbacks.ProgressMeasuresCallback", "seed=0:2")
    found = open_run(run)["progress_measures"]
    assert found.restricted_loss.dims == ("replica", "epoch")
    assert bool(np.isfinite(found.excluded_loss).all())
    assert (run / "figures" / "progress_measures.png").exists()


@pytest.mark.parametrize("option", ["samples=0", "directions=0", "radius=0", "directions=1000"])
def test_options_that_cannot_be(command, option):
    result = command(*command.PRIME, "callbacks=prime", f"callbacks.progress_measures.{option}")
    assert result.code == 2
    assert f"ProgressMeasuresCallback.{option}" in result.err
