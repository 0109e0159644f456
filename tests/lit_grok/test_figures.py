"""What is drawn is what was measured, once for all replicas, and legible."""

import pickle
import re
from functools import cache
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lit_grok.figures import (
    chains,
    coverage,
    embedding,
    features,
    fourier,
    geometry,
    grokking,
    progress,
    pruning,
    similarity,
    superposition,
    weights,
)
from lit_grok.figures.common import count_axis, draw_group, epoch_axis, groups, heading, log_axis, rows, title
from lit_grok.figures.phases import COLOURS, has_phases, phase_diagram
from tests.lit_grok.synthetic import plausible, residues, tree

FIGURES = {
    "curves": grokking.curves,
    "ipr_distribution": lambda run: fourier.ipr_distribution(run, "ipr"),
    "ipr_development": lambda run: fourier.ipr_development(run, "ipr"),
    "correlation_scatter": lambda run: features.correlation_scatter(run, "features"),
    "correlation_layers": lambda run: features.correlation_layers(run, "features"),
    "correlation_development": lambda run: features.correlation_development(run, "features"),
    "pruning_curves": lambda run: pruning.pruning_curves(run, "pruning"),
    "compressibility_development": lambda run: pruning.compressibility_development(run, "pruning"),
    "weights_development": lambda run: weights.weights_development(run, "weights"),
    "cka_matrix": lambda run: similarity.cka_matrix(run, "similarity"),
    "cka_development": lambda run: similarity.cka_development(run, "similarity"),
    "trajectory": lambda run: geometry.trajectory(run, "fim_trajectory", "classif_logits"),
    "chain_traces": lambda run: chains.chain_traces(run, "llc"),
}
OF_RESIDUES = {
    "coverage_development": lambda run: coverage.coverage_development(run, "coverage"),
    "coverage_by_distance": lambda run: coverage.coverage_by_distance(run, "coverage"),
    "progress_development": lambda run: progress.progress_development(run, "progress"),
    "uniformity_development": lambda run: embedding.uniformity_development(run, "uniformity"),
    "embedding_picture": lambda run: embedding.embedding_picture(run, "uniformity"),
    "feature_maps": lambda run: superposition.feature_maps(run, "superposition"),
    "superposition_development": lambda run: superposition.superposition_development(run, "superposition"),
    "phase_diagram": phase_diagram,
}
PRINTED = {
    "one replica": {"scales": (10.0,), "seeds": 1},
    "two init_scales": {"scales": (0.5, 1.0)},
    "six cells": {"scales": (0.1, 1.0, 10.0), "seeds": 1, "decays": (3e-5, 3e-4)},
}
RUNS = {
    "one replica": {"scales": (10.0,), "seeds": 1},
    "nine": {"scales": (0.1, 1.0, 10.0), "seeds": 3},
    "two weight decays": {"decays": (3e-5, 3e-4)},
    "one diverged": {"diverged": (0,)},
    "all diverged": {"diverged": (0, 1, 2, 3)},
    "one epoch": {"epochs": [0, 1]},
}


def rendered(figure):
    """Laid out as it is when it is drawn; no test looks at a pixel."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    return figure


def titled(name, run):
    """A figure with a long title."""
    said = "prime, P = 97, operation = x2+xy+y2, train_fraction = 0.3, hole = square, hole_size = 45"
    return (FIGURES | OF_RESIDUES)[name](residues(tree(**PRINTED[run]), said))


@cache
def printed(name, run):
    """The same as it is in the PNG: with the layout of the PDF, which has 72 dots in an inch."""
    figure = titled(name, run)
    figure.set_dpi(72)
    rendered(figure)
    figure.set_layout_engine("none")
    figure.set_dpi(150)
    return rendered(figure)


def ticks(axis):
    """The labels of an axis that are to be seen."""
    low, high = sorted(axis.get_view_interval())
    both = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    shown = [tick.label1 for tick in both if low <= tick.get_loc() <= high]
    other = [tick.label2 for tick in both if low <= tick.get_loc() <= high]
    return [label for label in shown + other if label.get_visible() and label.get_text()]


def looks(handle):
    """What tells an entry of a legend from others."""
    if isinstance(handle, Line2D):
        dashes = str(handle._unscaled_dash_pattern)
        return (to_hex(handle.get_color()), dashes, handle.get_linewidth(), handle.get_alpha(), handle.get_marker())
    return to_hex(handle.get_facecolor()), handle.get_alpha()


every_figure = pytest.mark.parametrize("name", FIGURES | OF_RESIDUES)
twice = pytest.mark.parametrize("run", list(PRINTED)[:2])  # drawing takes long


@every_figure
@twice
def test_every_text_lies_on_the_page(name, run):
    figure = printed(name, run)
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    drawn = {id(label) for axis in axes for label in ticks(axis)}
    hidden = {id(label) for axis in axes for label in axis.get_ticklabels(which="both")} - drawn
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and id(text) not in hidden:
            box = text.get_window_extent()
            assert figure.bbox.padded(1).count_contains([[box.x0, box.y0], [box.x1, box.y1]]) == 2, text.get_text()


@every_figure
@twice
def test_ticks_do_not_run_into_each_other(name, run):
    for axes in printed(name, run).axes:
        for axis in (axes.xaxis, axes.yaxis):
            for a, b in combinations(ticks(axis), 2):
                apart = not a.get_window_extent().overlaps(b.get_window_extent())
                assert apart, f"{axes.get_ylabel()}: {a.get_text()} and {b.get_text()}"


@every_figure
@pytest.mark.parametrize("run", PRINTED)
def test_a_legend_says_one_thing_of_a_style(name, run):
    figure = titled(name, run)
    below = [entry for legend in figure.legends for entry in legend.legend_handles]
    for axes in figure.axes:
        own = axes.get_legend().legend_handles if axes.get_legend() else []
        found = [looks(handle) for handle in [*own, *below]]
        assert len(found) == len(set(found))


def test_lines_of_a_legend_are_in_the_panel():
    """Each style of the legend beside a panel is that of a line in it."""
    for name in ("coverage_development", "progress_development"):
        figure = OF_RESIDUES[name](residues(tree(scales=(10.0,), seeds=1)))
        for axes in figure.axes:
            dashes = {str(line._unscaled_dash_pattern) for line in axes.lines}
            if axes.get_legend():
                assert {looks(handle)[1] for handle in axes.get_legend().legend_handles} == dashes


def test_layers_are_told_apart_by_colour_where_there_are_more_than_dashes():
    figure = FIGURES["weights_development"](residues(tree(scales=(10.0,), seeds=1)))
    norms = figure.axes[1].lines
    assert len({(to_hex(line.get_color()), str(line._unscaled_dash_pattern)) for line in norms}) == 10
    assert legend_texts(figure)[-10:-8] == ["all layers", "token_embedding"]


@pytest.mark.parametrize("width", [2.5, 4.0, 9.0])
def test_a_title_has_as_many_lines_as_the_figure_is_too_narrow_for(width):
    figure = Figure(figsize=(width, 2), layout="constrained")
    said = "prime, P = 97, operation = x2+xy+y2, a part that is longer than the whole of a line is"
    title(figure, said)
    rendered(figure)
    assert figure.get_suptitle().replace("\n", " ") == said
    assert figure._suptitle.get_window_extent().width <= figure.bbox.width
    lines = figure.get_suptitle().splitlines()
    assert figure.get_figheight() == pytest.approx(2 + 0.17 * (len(lines) - 1))
    assert any("operation = x2+xy+y2," in line for line in lines)


def test_a_letter_means_one_thing():
    figure = OF_RESIDUES["embedding_picture"](residues(tree(scales=(10.0,), seeds=1)))
    picture, last = figure.axes
    assert re.search(r"\nfrequency \d$", picture.get_title())
    assert last.get_xlabel() == "step s"


def test_things_are_counted_in_whole_numbers():
    axes = Figure(figsize=(6, 3)).subplots()
    axes.plot([0, 1], [0, 0])
    count_axis(axes)
    rendered(axes.figure)
    assert all(float(tick).is_integer() for tick in axes.get_yticks())


@cache
def sweep_of(task, scales, seeds):
    return plausible(task, scales=scales, seeds=seeds)


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_every_run(name, run, recwarn):
    figure = rendered(FIGURES[name](tree(**RUNS[run])))
    assert figure.get_suptitle().find("toy, P = 7") >= 0
    assert not [str(w.message) for w in recwarn if "layout" in str(w.message)]
    inside = figure.bbox
    for axes in figure.axes:  # labels, ticks and legends lie on the page
        box = axes.get_tightbbox(figure.canvas.get_renderer())
        if box is not None:
            assert box.x0 >= inside.x0 - 1, axes.get_ylabel()
            assert box.y0 >= inside.y0 - 1
            assert box.x1 <= inside.x1 + 1
            assert box.y1 <= inside.y1 + 1
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert inside.x0 - 1 <= box.x0
        assert box.x1 <= inside.x1 + 1


def test_a_group_is_the_seeds_of_one_init_scale():
    run = tree(scales=(0.1, 1.0, 10.0), seeds=3)
    found = groups(run)
    assert [group.label for group in found] == ["init_scale 0.1", "init_scale 1", "init_scale 10"]
    assert [group.replicas.tolist() for group in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len({to_hex(group.colour) for group in found}) == 3
    assert groups(tree(scales=(10.0,)))[0].label == ""
    decays = groups(tree(scales=(10.0,), decays=(3e-5, 3e-4)))
    assert [group.label for group in decays] == ["weight decay 3e-05", "weight decay 0.0003"]
    assert decays[0].colour == decays[1].colour
    assert decays[0].style != decays[1].style


def test_the_heading_says_what_all_have_in_common():
    assert heading(tree()) == "toy, P = 7, weight decay 3e-05, 2 seeds: mean and range"
    run = tree()
    twice = xr.DataTree(run.to_dataset().isel(replica=[0, 1, 2, 3, 0, 1, 2, 3]))  # the same two seeds again
    assert heading(twice) == heading(run)
    assert heading(tree(scales=(10.0,), seeds=1)) == "toy, P = 7, init_scale 10, weight decay 3e-05, seed 0"


def test_line_and_band_are_mean_and_range():
    axes = plt.Figure().subplots()
    (group,) = groups(tree(scales=(1.0,)))
    draw_group(axes, np.arange(3), np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]]), group)
    assert axes.lines[0].get_xdata().tolist() == [0, 1]
    assert axes.lines[0].get_ydata().tolist() == [2, 5]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band.tolist()} >= {(0, 1), (0, 3), (1, 5)}


def test_curves_show_the_accuracies_the_plateau_and_epoch_0():
    run = tree(scales=(1.0, 10.0))
    top, bottom = grokking.curves(run).axes
    test = [line for line in top.lines if line.get_linestyle() == "-"]
    for line, group in zip(test, groups(run), strict=True):
        assert line.get_xdata()[0] == 0
        np.testing.assert_allclose(line.get_ydata(), rows(run.evaluation.test_accuracy, group).mean(0))
        assert line.get_color() == group.colour
    for axes in (top, bottom):
        (plateau,) = axes.patches  # init_scale 1 learns steadily
        assert (plateau.get_x(), plateau.get_x() + plateau.get_width()) == (2, 50)
        assert axes.get_xlim()[0] == 0
    assert legend_texts(grokking.curves(run)) == ["init_scale 1", "init_scale 10", "test", "train", "grokking plateau"]


def test_a_legend_names_only_what_is_drawn():
    assert legend_texts(grokking.curves(tree(scales=(1.0,)))) == ["test", "train", r"$t_{\rm train}$, $t_{\rm test}$"]
    run = tree()
    whole = legend_texts(FIGURES["trajectory"](run))
    assert {"stiff", "sloppy", "bump of the step length, each seed's", "grokking plateau"} <= set(whole)
    steps = [run.fim_trajectory[name] for name in ("step_magnitude", "step_cosine")]
    for step in steps:
        step.loc[{"subspace": "stiff"}] = np.nan
    run.fim_trajectory.bump_start[:] = np.nan
    run.fim_trajectory.bump_end[:] = np.nan
    without = legend_texts(FIGURES["trajectory"](run))
    assert set(whole) - set(without) == {"stiff", "bump of the step length, each seed's"}


def test_the_plateau_is_in_the_cosine_panels_too():
    figure = FIGURES["trajectory"](tree())
    shaded = [len(axes.patches) for axes in figure.axes]
    assert shaded == [1] * 7 + [0]  # but for the spectrum
    assert "classifier" in figure.get_suptitle()


def test_ipr_distribution_counts_live_neurons_of_every_frequency_but_zero():
    run = tree(scales=(1.0,), seeds=1)
    *sets, last = FIGURES["ipr_distribution"](run).axes
    assert [axes.get_title() for axes in sets] == ["weights a", "weights b", "weights output"]
    bars = last.patches
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([1, 2, 3])
    shares = [2 / 5, 0, 2 / 5]  # five live neurons, one of frequency 0
    np.testing.assert_allclose([bar.get_height() for bar in bars], shares)
    for axes in sets:
        assert axes.patches[0].get_data().values.sum() == pytest.approx(1)


def test_ipr_distribution_of_many_is_a_map():
    run = plausible(scales=tuple(range(1, 11)), seeds=2)
    figure = FIGURES["ipr_distribution"](run)
    (first, *_, frequencies), _ = figure.axes[:4], figure.axes[4]
    shares = first.collections[0].get_array()
    np.testing.assert_allclose(shares.sum(1), 1)  # a row for each group
    assert shares.shape[0] == 10
    found = run.ipr.neuron_frequency.sel(set="a").values
    expected = [[(one == k).sum() / (one >= 0).sum() for k in range(1, 53)] for one in found]
    np.testing.assert_allclose(frequencies.collections[0].get_array(), expected)  # a row for each replica


def test_many_plateaus_are_bars_above_the_panels():
    few, many = tree(scales=(1.0, 10.0)), plausible(scales=(1, 2, 3, 5, 10), seeds=1)
    assert "grokking plateau" in legend_texts(grokking.curves(few))
    figure = grokking.curves(many)
    grokked = many.status.values == "grokked"
    assert grokked.sum() > 3
    for axes in figure.axes:
        assert not axes.patches
        bars = [line for line in axes.lines if line.get_transform() != axes.transData]
        np.testing.assert_array_equal(
            [bar.get_xdata() for bar in bars], np.stack([many.t_train.values, many.t_test.values], 1)[grokked]
        )


def test_dashes_are_the_weight_decay_where_it_differs():
    figure = grokking.curves(tree(scales=(10.0,), decays=(3e-5, 3e-4)))
    drawn = [(line.get_linestyle(), line.get_linewidth()) for line in figure.axes[0].lines]
    assert [dash for dash, _ in drawn] == ["-", "--", "-", "--"]
    assert drawn[0][1] == drawn[1][1] > drawn[2][1] == drawn[3][1]  # the training set is thinner


@pytest.mark.parametrize("name", FIGURES)
def test_a_sweep_is_drawn_in_as_few_panels_as_one_init_scale(name):
    task = "ising" if "correlation" in name else "mod_add"
    one, many = (FIGURES[name](sweep_of(task, *size)) for size in (((10.0,), 6), (tuple(range(1, 11)), 5)))
    assert len(many.axes) == len(one.axes)
    rendered(many)
    for axes in many.axes:
        box = axes.get_tightbbox(many.canvas.get_renderer())
        assert many.bbox.padded(1).count_contains([[box.x0, box.y0], [box.x1, box.y1]]) == 2


@pytest.mark.parametrize("epochs", [[0, 1], [0, 1, 10, 100], [0, 100, 1000, 100_000], [0, 300, 600], [0]])
@pytest.mark.parametrize("width", [2.5, 6.5])
def test_ticks_of_the_epoch_axis_do_not_collide(epochs, width):
    figure = Figure(figsize=(width, 2))
    axes = figure.subplots()
    epoch_axis([axes], np.array(epochs))
    rendered(figure)
    boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks() if tick.label1.get_text()]
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_the_scatter_aligns_the_neurons():
    run = tree(scales=(1.0,), seeds=1)
    results = run.features
    observable = results.sample_observable.values
    signs = np.array([1.0, -1.0, 1.0, -1.0, np.nan])
    results.neuron_correlation.loc[{"layer": "fc1", "observable": "energy"}] = signs[None]
    slope = np.array([2.0, -3.0, 0.5, -1.0, 0.0])
    results.sample_preactivation.values[0] = observable[0, 0][:, None] * slope + 7
    axes = FIGURES["correlation_scatter"](run).axes[0]
    y = axes.lines[0].get_ydata()
    assert (np.diff(y) > 0).all()  # all on one rising line, whatever their sign and slope; the constant one left out
    low, high = axes.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert low < y[0] < y[-1] < high or np.allclose([low, high], [y[0], y[-1]], atol=0.5)


def test_layers_have_a_mark_for_every_observable_and_group():
    run = tree()
    figure = FIGURES["correlation_layers"](run)
    assert len(figure.axes[0].lines) >= 4
    assert legend_texts(figure) == ["init_scale 1", "init_scale 10", "energy", "|magnetisation|"]


def test_pruning_curves_say_c_and_mark_what_is_kept():
    run = tree()
    top = FIGURES["pruning_curves"](run).axes[0]
    c = [rows(run.pruning.final_compressibility, group).mean() for group in groups(run)]
    kept = [rows(run.pruning.final_kept_share, group).mean() for group in groups(run)]
    texts = legend_texts(FIGURES["pruning_curves"](run))
    assert texts[1:] == [f"init_scale 1: $C$ = {c[0]:.3g}", f"init_scale 10: $C$ = {c[1]:.3g}"] or {
        f"init_scale 1: $C$ = {c[0]:.3g}",
        f"init_scale 10: $C$ = {c[1]:.3g}",
    } <= set(texts)
    dotted = [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted, 1 - np.array(kept))


def test_the_cka_matrix_is_ordered_by_init_scale():
    run = tree(scales=(1.0, 10.0), seeds=2)
    figure = FIGURES["cka_matrix"](run)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), run.similarity.cka.sel(layer="conv1").values)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["conv1", "fc1"]
    falling = tree(scales=(10.0, 1.0), seeds=2)
    expected = falling.similarity.cka.sel(layer="conv1").values[np.ix_([2, 3, 0, 1], [2, 3, 0, 1])]
    np.testing.assert_array_equal(FIGURES["cka_matrix"](falling).axes[0].images[0].get_array(), expected)


def test_a_running_median_hides_noise_and_keeps_the_beginning():
    epochs = np.arange(1, 1001)
    noisy = 1 / epochs + np.where(epochs > 500, np.random.default_rng(0).normal(0, 0.1, 1000), 0)
    smooth = geometry.running_median(epochs, noisy)
    np.testing.assert_array_equal(smooth[:18], noisy[:18])
    assert smooth[700:].std() < 0.25 * noisy[700:].std()


def test_chains_of_at_most_six_replicas():
    assert len(FIGURES["chain_traces"](tree(scales=(1.0,), seeds=2)).axes) == 4
    many = FIGURES["chain_traces"](tree(scales=(1.0,), seeds=9))
    assert len(many.axes) == 12
    assert many.get_suptitle().endswith("6 of 9 replicas")


def test_figures_do_not_pile_up_in_pyplot():
    before = plt.get_fignums()
    FIGURES["curves"](tree())
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("low", "high"), [(2, 60), (0.04, 0.09), (1e-9, 1e3), (1, 95), (1e-5, 9e-5)])
@pytest.mark.parametrize("height", [0.6, 1.0, 3.0])
def test_numbers_of_a_logarithmic_axis_have_room(low, high, height):
    axes = Figure(figsize=(6, height)).subplots()
    axes.plot([0, 1], [low, high])
    log_axis(axes)
    rendered(axes.figure)
    boxes = [label.get_window_extent() for label in ticks(axes.yaxis)]
    assert boxes
    assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))


def test_axes_that_run_backwards_have_their_numbers_as_well():
    axes = Figure(figsize=(6, 3)).subplots()
    axes.plot([0, 10_000], [0.01, 60])
    log_axis(axes)
    epoch_axis([axes], np.array([0, 1, 10_000]))
    rendered(axes.figure)
    before = [{label.get_text() for label in ticks(axis)} for axis in (axes.xaxis, axes.yaxis)]
    axes.invert_xaxis()
    axes.invert_yaxis()
    rendered(axes.figure)
    assert [{label.get_text() for label in ticks(axis)} for axis in (axes.xaxis, axes.yaxis)] == before
    assert min(map(len, before)) > 2


def test_figures_are_pickled():
    axes = Figure(figsize=(6, 3)).subplots()
    axes.plot([0, 10_000], [0.01, 60])
    log_axis(axes)
    epoch_axis([axes], np.array([0, 1, 10_000]))
    again = rendered(pickle.loads(pickle.dumps(rendered(axes.figure)))).axes[0]
    assert [text.get_text() for text in ticks(again.yaxis)] == [text.get_text() for text in ticks(axes.yaxis)]


@pytest.mark.parametrize(("low", "high"), [(2, 60), (0.04, 0.09), (1e-9, 1e3), (1e-4, 0.9)])
def test_a_logarithmic_axis_has_few_numbers_but_some(low, high):
    axes = Figure(figsize=(6, 1.2)).subplots()
    axes.plot([0, 1], [low, high])
    log_axis(axes)
    rendered(axes.figure)
    first, last = axes.get_ylim()
    texts = [t.label1.get_text() for t in axes.yaxis.get_major_ticks() if first <= t.get_loc() <= last]
    assert 2 <= len([text for text in texts if text]) <= 7
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))


def test_replicas_that_collapsed_are_left_out_of_the_trajectory():
    run = tree(scales=(0.1, 10.0), seeds=2)
    run["status"] = run.status.copy(data=np.array(["collapsed", "collapsed", "grokked", "grokked"]))
    figure = FIGURES["trajectory"](run)
    dead, alive = (group.colour for group in groups(run))
    colours = {line.get_color() for axes in figure.axes for line in axes.lines}
    assert alive in colours
    assert dead not in colours
    assert "init_scale 0.1: collapsed, not shown" in legend_texts(figure)
    run["status"] = run.status.copy(data=np.array(["collapsed"] * 4))
    assert dead in {line.get_color() for axes in FIGURES["trajectory"](run).axes for line in axes.lines}


def test_a_layer_without_a_live_neuron_has_no_mark(recwarn):
    run = tree(scales=(1.0,))
    for name in ("correlation", "neuron_share", "activation_share"):
        run.features[name].loc[{"layer": "fc1"}] = np.nan
    FIGURES["correlation_layers"](run)
    assert not [warning for warning in recwarn if "slice" in str(warning.message)]


def test_a_replica_that_diverged_has_no_number_of_dead_neurons():
    run = tree(scales=(1.0,), seeds=2, diverged=(0,))
    dead = FIGURES["ipr_development"](run).axes[2]
    np.testing.assert_allclose(dead.lines[0].get_ydata(), run.ipr.dead_neurons.sum("set").values[1])


def test_what_several_runs_vary_is_told_apart():
    run = tree(scales=(1.0,), seeds=2, decays=(1e-4, 1.0000001e-4))
    assert [group.label for group in groups(run)] == ["weight decay 0.0001", "weight decay 0.00010000001"]


def test_phases_are_the_majority_of_the_seeds():
    run = tree(scales=(0.1, 1.0, 10.0), seeds=3, decays=(1e-5, 1e-3))
    assert has_phases(run)
    status = np.where(run.init_scale == 10, "grokked", "steady").astype(object)
    cell = np.flatnonzero((run.init_scale == 0.1) & (run.weight_decay == 1e-3))
    status[cell[:2]] = "collapsed"
    run["status"] = run.status.copy(data=status.astype(str))
    figure = phase_diagram(run)
    axes = figure.axes[0]
    (image,) = axes.images
    seen = [[to_hex(colour) for colour in row] for row in image.get_array()]  # from the smallest weight decay up
    assert seen == [
        [COLOURS["steady"], COLOURS["steady"], COLOURS["grokked"]],
        [COLOURS["collapsed"], COLOURS["steady"], COLOURS["grokked"]],
    ]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((0, 1), "2/3")]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "1", "10"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1e-05", "0.001"]
    delay = figure.axes[1].images[0].get_array()
    assert delay[:, 1:].tolist() == [[2.5, 25.0], [2.5, 25.0]]  # t_train 2, t_test 5 and 50
    for panel in figure.axes[:2]:  # between grokked and steady, around the cell that collapsed
        edges = {tuple(map(tuple, edge.tolist())) for edge in panel.collections[0].get_segments()}
        upright = {((1.5, -0.5), (1.5, 0.5)), ((1.5, 0.5), (1.5, 1.5)), ((0.5, 0.5), (0.5, 1.5))}
        assert edges == upright | {((-0.5, 0.5), (0.5, 0.5))}


def test_a_tie_is_hatched_and_only_what_has_learned_has_a_compressibility():
    run = tree(scales=(0.1, 1.0, 10.0), seeds=2, decays=(1e-5, 1e-3))
    status = np.full(run.sizes["replica"], "steady", dtype=object)
    status[np.flatnonzero((run.init_scale == 10) & (run.weight_decay == 1e-3))[0]] = "grokked"
    status[np.flatnonzero((run.init_scale == 1) & (run.weight_decay == 1e-3))] = "collapsed"
    run["status"] = run.status.copy(data=status.astype(str))
    panels = {axes.get_title(): axes for axes in phase_diagram(run).axes}
    (hatched,) = panels["status"].patches
    assert hatched.get_xy() == (1.5, 0.5)
    missing = np.ma.getmaskarray(panels["compressibility $C$"].images[0].get_array())
    assert missing.tolist() == [[False, False, False], [False, True, False]]
    assert not np.ma.getmaskarray(panels["test accuracy"].images[0].get_array()).any()


def test_a_map_of_nothing_has_no_colour_bar():
    run = tree(scales=(0.1, 1.0, 10.0), seeds=1, decays=(1e-5, 1e-3))
    bars = len(phase_diagram(run).axes)
    run["t_test"] = run.t_test.copy(data=np.full(run.sizes["replica"], np.nan))
    assert len(phase_diagram(run).axes) == bars - 1


def test_phases_over_another_key():
    run = tree(scales=(0.1, 1.0, 10.0), seeds=1, decays=(1e-5, 1e-3))
    assert not has_phases(run, "seed")
    run.dataset = run.to_dataset().assign_coords(P=("replica", np.where(run.weight_decay == 1e-5, 31, 59)))
    assert has_phases(run, "P")
    axes = phase_diagram(run, "P").axes[0]
    assert axes.get_ylabel() == "P"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["31", "59"]


def test_no_phases_without_a_grid():
    assert not has_phases(tree(scales=(0.1, 1.0, 10.0)))
    assert not has_phases(tree(scales=(1.0, 10.0), decays=(1e-5, 1e-3)))
    run = tree(scales=(0.1, 1.0, 10.0), seeds=1, decays=(1e-5, 1e-3))
    assert has_phases(run)
    part = xr.DataTree(run.to_dataset().isel(replica=[0, 1, 2, 3, 4]))
    assert not has_phases(part)  # a cell is empty
