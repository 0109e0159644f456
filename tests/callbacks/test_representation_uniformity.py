import json

import numpy as np
import pytest
import torch

from callbacks import AnalysisError, RepresentationUniformityCallback
from datamodules import ModularArithmeticDataModule, PolygonsDataModule
from lit_grok.measures.representation import representation_uniformity
from lit_grok.networks import ModularMLP
from lit_grok.results import load_network, open_run

TINY = (
    *("task=polygons", "threads=1", "symbols=3", "network.classes=17", "side=16", "network.width=2", "batch_size=20"),
    *("logger=none", "epochs=3", "log_every=1", "callbacks.uniformity.per_decade=null", "callbacks.uniformity.every=1"),
)


@pytest.mark.rendered
def test_the_run_has_the_steps_of_its_networks_over_the_whole_grid(command):
    result = command(*TINY, "run_dir=run", "network.normalisation=group", "seed=0:2", "callbacks.uniformity.chunk=7")
    assert result.code == 0, result.err
    assert "was not drawn" not in result.err
    branch = open_run("run").uniformity
    assert branch.step.dims == ("replica", "epoch")
    assert branch.epoch.values.tolist() == [0, 1, 2, 3]
    images, _ = PolygonsDataModule(symbols=3, side=16).grid()
    for seed in range(2):
        with torch.no_grad():
            features = load_network("run", seed=seed).eval().penultimate(images)
        expected = representation_uniformity(features, 3)
        for name, value in expected._asdict().items():
            last = branch[name].sel(init_scale=1.0, seed=seed).isel(epoch=-1)
            np.testing.assert_allclose(last, value, rtol=1e-4)
    assert (command.folder / "run/figures/uniformity.png").exists()


def test_running_statistics_are_read_and_not_touched(command):
    for name, more in (("with", ()), ("without", ("~callbacks.uniformity",))):
        overrides = [o for o in TINY if "uniformity" not in o] if more else TINY
        assert command(*overrides, *more, f"run_dir={name}").code == 0
    one, other = (load_network(name).state_dict() for name in ("with", "without"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    losses = [
        json.loads((command.folder / name / "summary.json").read_text())[0]["test_loss"] for name in ("with", "without")
    ]
    assert losses[0] == losses[1]


def test_a_network_without_features_is_refused():
    with pytest.raises(
        AnalysisError, match=r"method penultimate \(lit_grok.networks.HasPenultimate\), which ModularMLP"
    ):
        RepresentationUniformityCallback().check(ModularMLP(7, [4]))


def test_data_without_a_grid_are_refused():
    RepresentationUniformityCallback().check_data(PolygonsDataModule)
    with pytest.raises(AnalysisError, match=r"datamodules.HasGrid, which those of ModularArithmeticDataModule are not"):
        RepresentationUniformityCallback().check_data(ModularArithmeticDataModule)


def test_chunks():
    with pytest.raises(ValueError, match=r"RepresentationUniformityCallback\.chunk=0: must be at least 1"):
        RepresentationUniformityCallback(chunk=0)
