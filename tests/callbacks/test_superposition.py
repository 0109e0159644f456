import pytest
import torch

from callbacks import SuperpositionCallback
from lit_grok.measures import superposition
from lit_grok.networks import ModularMLP
from lit_grok.results import open_run

P = 23


@pytest.fixture
def network():
    """Twelve neurons: six carry frequency 3, four 3 and 7, one noise, and one is dead."""
    network = ModularMLP(P=P, hidden=[12])
    angle = 2 * torch.pi * torch.arange(P) / P
    phases = torch.linspace(0, 6, 12)[:, None]
    rows = torch.cos(3 * angle + phases)
    rows[6:10] += torch.cos(7 * angle + 3 * phases[6:10])
    rows[10] = torch.randn(P, generator=torch.Generator().manual_seed(0))
    rows[11] = 1e-34
    with torch.no_grad():
        network.hidden[0].weight[:, :P] = rows
        network.hidden[0].weight[:, P:] = rows[:, torch.randperm(P, generator=torch.Generator().manual_seed(1))]
        network.output.weight.zero_()
    return network


def test_of_live_neurons(network):
    found = SuperpositionCallback(level=0.2).measure(network, None)
    a = {name: array.sel(set="a").item() for name, array in found.items()}
    assert found["features"].set.values.tolist() == ["a", "b", "output"]
    assert a["features_per_neuron"] == pytest.approx((6 + 8) / 11)
    assert a["polysemantic_share"] == pytest.approx(4 / 11)
    assert a["features"] == 2
    assert a["neurons_per_feature"] == pytest.approx((10 + 4) / 2)
    live = network.hidden[0].weight.detach()[:11, :P]
    assert a["interference"] == pytest.approx(superposition.interference(live).item())
    assert a["effective_dimension"] == pytest.approx(superposition.effective_dimension(live).item())
    assert a["null_dimension"] > 1.3 * a["effective_dimension"]
    assert found["interference"].sel(set="output").isnull()
    assert found["features"].sel(set="output") == 0


def test_noise_is_like_its_null_model():
    torch.manual_seed(0)
    found = SuperpositionCallback().measure(ModularMLP(P=P, hidden=[200]), None)
    assert found["features_per_neuron"].max() < 0.1
    assert (found["interference"] / found["null_interference"]).values == pytest.approx([1, 1, 1], abs=0.2)
    assert (found["effective_dimension"] / found["null_dimension"]).values == pytest.approx([1, 1, 1], abs=0.02)


def test_frequencies_at_the_end(network):
    found = SuperpositionCallback(level=0.2).measure_final(network, None)
    neurons = found["frequency_neurons"].sel(set="a")
    assert neurons.frequency.values.tolist() == list(range(1, 12))
    assert neurons.sel(frequency=[3, 7]).values.tolist() == [10, 4]
    assert found["overlap"].sel(set="a", frequency=3, other=3) == pytest.approx(1)


@pytest.mark.rendered
def test_in_a_run_of_replicas_one_of_which_is_dead(command):
    run_dir = command.mod_add(
        "init_scale=[0,1]", "epochs=3", "run_dir=one", "+callbacks/extra@callbacks.superposition=superposition"
    )
    run = open_run(run_dir)
    assert run.superposition.attrs["level"] == "0.01"
    assert run.superposition.interference.dims == ("replica", "epoch", "set")
    assert {path.name for path in (run_dir / "figures").glob("superposition_*.png")} == {
        "superposition_features.png",
        "superposition_development.png",
    }


def test_too_few_residues_are_refused(command):
    refused = command(*command.MOD_ADD, "P=3", "run_dir=few", "+callbacks/extra@callbacks.superposition=superposition")
    assert refused.code != 0
    assert "P=3 has fewer than two frequencies" in refused.err


@pytest.mark.parametrize(("options", "message"), [({"level": 1.0}, "level=1.0"), ({"draws": 0}, "draws=0")])
def test_options_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=f"SuperpositionCallback.{message}"):
        SuperpositionCallback(**options)
