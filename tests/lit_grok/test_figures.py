import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from lit_grok.figures.chains import chain_traces
from lit_grok.figures.development import development, last, line
from lit_grok.figures.features import correlation_bars, correlation_development, correlation_scatter
from lit_grok.figures.fourier import ipr_development, ipr_distribution
from lit_grok.figures.pruning import compressibility_development, pruning_curves

EPOCHS = np.array([0, 1, 2, 5, 10, 20])
OBSERVABLES = ["energy", "abs_magnetisation"]


def curve(values=0.5):
    return "epoch", np.broadcast_to(values, len(EPOCHS)).astype(float)


@pytest.fixture
def replica():
    generator = np.random.default_rng(0)
    variables = {f"{split}_accuracy": curve() for split in ("train", "test")}
    variables |= {"t_train": 2.0, "t_test": 10.0}
    for name in ("a", "output"):
        variables |= {f"ipr_{name}": curve(0.3), f"ipr_{name}_dead": curve(1)}
        variables[f"ipr_{name}_per_neuron"] = "neuron", [0.5, np.nan, 0.2]
        variables[f"ipr_{name}_frequency"] = "neuron", [3.0, -1.0, 5.0]
        variables[f"ipr_{name}_activation"] = "neuron", [3.0, 0.0, 1.0]
    variables["ipr_mean"] = curve(0.3)
    for name in OBSERVABLES:
        for suffix in ("", "_neurons", "_activation"):
            variables[f"correlation_fc1_{name}{suffix}"] = curve(0.9)
    variables["correlation_fc1_r"] = ("observable", "fc1_neuron"), [[1.0, -0.5, np.nan], [0.2, 0.1, np.nan]]
    variables["correlation_fc1_sample"] = ("sample", "fc1_neuron"), generator.normal(size=(8, 3))
    variables["correlation_observables"] = ("observable", "sample"), generator.normal(size=(2, 8))
    for path in ("pruning", "pruning_other"):
        variables |= {f"{path}_{name}": ("fraction", [1.0, 0.9, 0.1]) for name in ("accuracy", "loss")}
        variables |= {f"{path}_final_compressibility": 4.0, f"{path}_final_kept_share": 0.5}
        variables |= {f"{path}_compressibility": curve(3), f"{path}_kept_share": curve()}
    return xr.Dataset(variables, {"epoch": EPOCHS, "observable": OBSERVABLES, "fraction": [0, 0.5, 1]})


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_development_has_the_accuracy_on_top_and_the_plateau_in_every_panel(replica):
    figure, axes = development(replica, "title", rows=2, columns=2)
    assert axes.shape == (2, 2)
    assert labels(figure.axes[1]) == ["train", "test"]
    for panel in figure.axes:
        (plateau,) = panel.patches
        assert (plateau.get_x(), plateau.get_x() + plateau.get_width()) == (2, 10)
    assert figure.axes[0].get_xscale() == "log"


def test_a_steady_run_has_no_plateau(replica):
    figure, _ = development(replica.assign(t_test=3.0), "", rows=1)
    assert not figure.axes[0].patches


def test_a_line_is_drawn_where_it_was_measured(replica):
    values = replica.ipr_mean.values.copy()
    values[2] = np.nan
    _, ((axes,),) = development(replica, "", rows=1)
    line(axes, replica.assign(ipr_mean=("epoch", values)), "ipr_mean")
    assert axes.lines[0].get_xdata().tolist() == [1, 5, 10, 20]


def test_last_is_the_last_measured(replica):
    assert last(replica.assign(x=("epoch", [0.0, 1.0, 2.0, np.nan, 4.0, np.nan])), "x") == 4
    assert last(replica, "t_test") == 10
    assert np.isnan(last(replica.assign(x=curve(np.nan)), "x"))


def test_ipr_distribution_counts_the_dead_and_weighs_the_frequencies(replica):
    left, right = ipr_distribution(replica, ["a", "output"]).axes
    assert labels(left) == ["a: mean 0.35, 1 dead", "output: mean 0.35, 1 dead"]
    heights = [bar.get_height() for bar in right.patches]
    assert heights == [0, 0, 0, 0.75, 0, 0.25]
    assert right.lines[0].get_ydata().tolist() == [0, 0, 0, 0.5, 0, 0.5]


def test_ipr_distribution_of_a_dead_network(replica):
    dead = {name: replica[name] * np.nan for name in ("ipr_a_per_neuron", "ipr_output_per_neuron")}
    left, _ = ipr_distribution(replica.assign(dead), ["a", "output"]).axes
    assert labels(left)[0] == "a: none live, 3 dead"


def test_ipr_development(replica):
    assert labels(ipr_development(replica, ["a", "output"]).axes[1]) == ["a", "output", "mean"]


def test_scatter_has_a_panel_for_each_observable_and_leaves_constant_neurons_out(replica):
    energy, magnetisation = correlation_scatter(replica, "fc1").axes
    assert labels(energy) == ["r > 0 (1 neurons)", "r < 0 (1 neurons)"]
    assert magnetisation.get_xlabel() == "|magnetisation|"
    assert magnetisation.get_title() == "median |r| = 0.15"
    assert sum(len(points.get_offsets()) for points in energy.collections) == 16


def test_bars_and_development_of_the_layers(replica):
    bars = correlation_bars(replica, ["fc1"])
    assert [bar.get_height() for bar in bars.axes[0].patches] == [0.9, 0.9]
    figure = correlation_development(replica, ["fc1"])
    assert len(figure.axes) == 6
    assert labels(figure.axes[-1]) == ["energy", "|magnetisation|"]


def test_pruning_curves_mark_what_is_kept_of_a_single_one(replica):
    single = pruning_curves(replica, {"layerwise": "pruning"}).axes[0]
    assert labels(single) == ["layerwise\n$C$ = 4.00", "50 % kept:\n95 % of accuracy"]
    both = pruning_curves(replica, {"layerwise": "pruning", "fc1": "pruning_other"}).axes[0]
    assert labels(both) == ["layerwise\n$C$ = 4.00", "fc1\n$C$ = 4.00"]
    assert len(compressibility_development(replica, {"layerwise": "pruning"}).axes) == 3
    young = pruning_curves(replica.assign(pruning_final_kept_share=np.nan), {"layerwise": "pruning"}).axes[0]
    assert labels(young) == ["layerwise\n$C$ = 4.00"]


@pytest.mark.parametrize("burn_in", [0, 2])
def test_chain_traces_show_every_chain_and_the_estimate(burn_in):
    values = np.array([[0.0, 9.0, 1.0, 3.0, 5.0], [0.0, 9.0, 3.0, 5.0, np.inf]])[:, 2 - burn_in :]
    coordinates = {"chain_step": np.arange(-burn_in, 3)}
    top, bottom = chain_traces(xr.DataArray(values, coordinates, dims=("chain", "chain_step"))).axes
    np.testing.assert_array_equal([line.get_ydata() for line in top.lines[:2]], values)
    means = [line.get_ydata().tolist() for line in bottom.lines[:3]]
    assert means == [[1, 2, 3], [3, 4, np.inf], [2, 3, np.inf]]
    assert labels(bottom) == [r"$\hat\lambda$ = inf", *["burn-in"] * (burn_in > 0)]
    assert np.isfinite(top.get_ylim()).all()


def test_figures_do_not_pile_up_in_pyplot(replica):
    before = plt.get_fignums()
    ipr_development(replica, ["a"])
    assert plt.get_fignums() == before
