import numpy as np
import pytest
import torch
from torch import nn

from callbacks import PruningCallback
from datamodules import ModularArithmeticDataModule
from lit_grok.measures.fisher import fisher_scores
from lit_grok.measures.pruning import compressibility, pruning_curve
from lit_grok.results import load_network, open_run


@pytest.fixture
def network():
    """Two classes by two inputs: right until its larger weight goes, at three quarters."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    return network


BATCH = torch.eye(2), torch.tensor([0, 1])


def test_curve_area_compressibility_and_kept_share_by_hand(network):
    callback = PruningCallback(fractions=5, training_fractions=3)
    # At 0, 1/2: all right. At 3/4 the 1 is gone too, and class 1 wins no more often than class 0; at 1 all is 0.
    values = callback.measure(network, BATCH)
    assert values["area"] == pytest.approx(0.875)  # accuracies 1, 1, 0.5
    assert values["compressibility"] == pytest.approx(8)
    assert values["kept_share"] == pytest.approx(0.5)
    final = callback.measure_final(network, BATCH)
    assert final["accuracy"].sel(fraction=0.5) == 1
    assert final["accuracy"].sel(fraction=1) == 0.5
    assert final["loss"].sel(fraction=1) == pytest.approx(np.log(2))
    assert final["final_compressibility"] == compressibility(
        torch.linspace(0, 1, 5), torch.from_numpy(final["accuracy"].values)
    )


def test_kept_share_of_an_untrained_network_is_nan(network):
    swapped = BATCH[0], BATCH[1].flip(0)
    values = PruningCallback(training_fractions=3).measure(network, swapped)
    assert np.isnan(values["kept_share"])
    assert values["area"] == pytest.approx(0.125)  # accuracies 0, 0, 0.5


def test_single_layer_prunes_each_layer_in_turn():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = torch.randn(20, 3), torch.randint(2, (20,))
    callback = PruningCallback(scheme="single_layer", fractions=11)
    final = callback.measure_final(network, batch)
    for layer in ("0", "2"):
        curve = pruning_curve(network, *batch, torch.linspace(0, 1, 11), "single_layer", layer=layer)
        np.testing.assert_array_equal(final["layer_accuracy"].sel(layer=layer), curve.accuracies)
        np.testing.assert_array_equal(final["layer_loss"].sel(layer=layer), curve.losses)
        kept = final["layer_final_compressibility"].sel(layer=layer)
        assert kept == compressibility(torch.linspace(0, 1, 11), curve.accuracies)
    values = callback.measure(network, batch)
    assert set(values) == {f"layer_{name}" for name in ("area", "compressibility", "kept_share")}
    assert all(array.layer.values.tolist() == ["0", "2"] for array in values.values())


def magnitude(network, batch):
    """A stand-in for the Fisher information, in the same form."""
    return {name: parameter.detach().abs() for name, parameter in network.named_parameters()}


def test_fisher_takes_scores_and_prunes_layers_at_the_end():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = torch.randn(20, 3), torch.randint(2, (20,))
    callback = PruningCallback(scheme="fisher", scores=magnitude, fractions=11)
    assert set(callback.measure(network, batch)) == {"area", "compressibility", "kept_share"}
    final = callback.measure_final(network, batch)
    scores = magnitude(network, batch)
    for loss, layer in ((final["loss"], None), (final["layer_loss"].sel(layer="2"), "2")):
        curve = pruning_curve(network, *batch, torch.linspace(0, 1, 11), "fisher", layer=layer, scores=scores)
        np.testing.assert_array_equal(loss, curve.losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "random"}, r"PruningCallback\.scheme=random: unknown; allowed: layerwise, global"),
        ({"scheme": "fisher"}, r"PruningCallback\.scheme=fisher: scores"),
        ({"scores": magnitude}, r"PruningCallback\.scheme=layerwise: scores"),
        ({"scores_from": "all"}, r"PruningCallback\.scores_from=all: unknown; allowed: train, test"),
        ({"fractions": 1}, r"PruningCallback\.fractions=1: must be at least 2"),
        ({"training_fractions": 0}, r"PruningCallback\.training_fractions=0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(**options)


def test_several_schemes_in_one_run_agree_with_the_saved_network(command, monkeypatch):
    monkeypatch.syspath_prepend(command.folder)
    (command.folder / "scoring.py").write_text(
        "def magnitude(network, batch):\n    return {n: p.detach().abs() for n, p in network.named_parameters()}\n"
    )
    target = "{_target_:callbacks.PruningCallback,fractions:11"
    run_dir = command.mod_add(
        f"+callbacks.pruning={target},every:1}}",
        f"+callbacks.fisher={target},scheme:fisher,scores:{{_target_:scoring.magnitude,_partial_:true}}}}",
        f"+callbacks.layers={target},scheme:single_layer,every:2}}",
    )
    run = open_run(run_dir).isel(replica=0)
    assert run.pruning.compressibility.dropna("epoch").epoch.values.tolist() == [0, 1, 2, 3, 4]
    layer = run.layers.layer_area.sel(layer="hidden.0")
    assert layer.dropna("epoch").epoch.values.tolist() == run.layers.epoch.values.tolist() == [0, 2, 4]
    assert run.fisher.area.dims == ()
    assert "epoch" not in run.fisher.coords
    schemes = {name: run[name].attrs["scheme"] for name in ("pruning", "fisher", "layers")}
    assert schemes == {"pruning": "layerwise", "fisher": "fisher", "layers": "single_layer"}
    network = load_network(run_dir)
    data = ModularArithmeticDataModule(P=11, batch_size=64)
    data.setup()
    inputs, targets = (t[0] for t in data.split("test"))
    curve = pruning_curve(network, inputs, targets, torch.linspace(0, 1, 11))
    np.testing.assert_array_equal(run.pruning.accuracy, curve.accuracies)
    assert run.pruning.accuracy.sel(fraction=0) == pytest.approx(float(run.evaluation.test_accuracy.isel(epoch=-1)))
    figures = {path.stem for path in (run_dir / "figures").iterdir()}
    assert {"pruning", "pruning_development", "fisher", "layers", "layers_development"} <= figures
    assert "fisher_development" not in figures  # measured once


@pytest.mark.parametrize("source", [None, "train", "test"])
def test_fisher_ranks_on_the_training_set_and_scores_on_the_test_set(command, source):
    options = "scheme:fisher,fractions:11,scores:{_target_:lit_grok.measures.fisher.fisher_scores,_partial_:true}"
    options += f",scores_from:{source}" if source else ""
    run_dir = command.mod_add(f"+callbacks.fisher={{_target_:callbacks.PruningCallback,{options}}}", "seed=0:2")
    run = open_run(run_dir)
    data = ModularArithmeticDataModule(P=11, batch_size=64, data_seeds=[0, 1])
    data.setup()
    for r in range(2):
        network = load_network(run_dir, seed=r)
        curves = {}
        for name in ("train", "test"):
            examples, unseen = ((inputs[r], targets[r]) for inputs, targets in map(data.split, (name, "test")))
            scores = fisher_scores(network, examples)
            curves[name] = pruning_curve(network, *unseen, torch.linspace(0, 1, 11), "fisher", scores=scores)
        own = source or "train"
        measured = torch.from_numpy(run.fisher.loss.isel(replica=r).values)
        # Not to the bit: on another number of threads F is rounded otherwise, and two neighbours may swap their ranks.
        away = {name: float((measured - curve.losses).abs().max()) for name, curve in curves.items()}
        assert away[own] < 5e-3 < 2e-2 < away["train" if own == "test" else "test"]


def test_a_young_network_is_no_reason_for_a_warning(command):
    run_dir = command.mod_add(
        "+callbacks.pruning={_target_:callbacks.PruningCallback,fractions:11,every:1}", "epochs=1"
    )
    assert open_run(run_dir).pruning.kept_share.isnull().all()
    assert "NaN" not in (run_dir / "train.log").read_text()


def test_fractions_are_the_numbers_they_are_called(network):
    accuracy = PruningCallback(fractions=101).measure_final(network, BATCH)["accuracy"]
    assert all(accuracy.sel(fraction=k / 100).size == 1 for k in range(101))
