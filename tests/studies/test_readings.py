import numpy as np
import pytest
import xarray as xr

from studies.readings import at, between, determination, end, grid, onset, over_scales, rank_correlation, slope
from tests.lit_grok.synthetic import tree
from tests.studies import worlds


def test_a_grid_has_the_values_of_the_replicas():
    run = tree(scales=(1.0, 10.0), seeds=3)
    found = grid(run, "evaluation/test_loss")
    assert found.dims == ("init_scale", "seed", "epoch")
    for r, (scale, seed) in enumerate(zip(run.init_scale.values, run.seed.values, strict=True)):
        expected = run.evaluation.test_loss.values[r]
        assert np.array_equal(found.sel(init_scale=scale, seed=seed).values, expected)
    layer = grid(run, "features/correlation", layer="fc1", observable="energy")
    assert np.array_equal(layer.values[1, 2], run.features.correlation.values[5, :, 1, 0])


def test_the_end_is_the_last_number():
    run = tree(diverged=())
    curve = run.evaluation.test_loss.copy()
    curve.values[0, -2:] = np.nan
    run["evaluation"]["test_loss"] = curve
    found = end(run, "evaluation/test_loss")
    assert found.values[0, 0] == curve.values[0, -3]
    assert found.values[1, 0] == curve.values[2, -1]
    assert np.array_equal(end(run, "pruning/final_area").values.ravel(), run.pruning.final_area.values)


def test_a_curve_at_an_epoch_of_ones_own_is_linear_between_measurements():
    run = tree()  # measured at 0, 1, 2, 5, …
    values = grid(run, "evaluation/test_loss")
    when = xr.full_like(values.isel(epoch=0, drop=True), 3.0)
    when[0, 0] = np.nan
    found = at(run, "evaluation/test_loss", when)
    expected = values.sel(epoch=2) * 2 / 3 + values.sel(epoch=5) / 3
    assert np.isnan(found.values[0, 0])
    assert found.values[1:] == pytest.approx(expected.values[1:])


def test_between_two_epochs_both_ends_count():
    run = tree()
    values = grid(run, "evaluation/test_loss")
    first = xr.full_like(values.isel(epoch=0, drop=True), 1.0)
    found = between(run, "evaluation/test_loss", first, 5, lambda curve: curve.max("epoch"), {})
    assert np.array_equal(found.values, values.sel(epoch=[1, 2, 5]).max("epoch").values)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("ssgg", np.sqrt(2 * 3)),
        ("sgsg", np.sqrt(3 * 10)),  # beyond which nothing is steady
        ("ssmg", np.sqrt(2 * 10)),  # what only memorised says nothing
        ("sggm", np.sqrt(1 * 2)),
        ("cggg", np.nan),  # nothing learns steadily
        ("sggs", np.nan),
    ],
)
def test_the_onset_lies_between_two_scales(status, expected):
    names = {"s": "steady", "g": "grokked", "m": "memorised", "c": "collapsed"}
    run = tree(scales=(1.0, 2.0, 3.0, 10.0), seeds=1)
    root = run.to_dataset().assign(status=("replica", [names[letter] for letter in status]))
    found = onset(xr.DataTree.from_dict({"/": root}))
    assert found.values == pytest.approx([expected], nan_ok=True)


def test_statistics_over_scales():
    scales = xr.DataArray([1.0, 2.0, 3.0, 4.0], {"init_scale": [1, 2, 3, 4]}, "init_scale")
    x = scales.expand_dims(seed=[0, 1]).T
    y = x.copy(data=np.stack([[2, 4, 6, 8.0], [1, 3, np.nan, 2]], 1))
    assert over_scales(slope, x, y).values == pytest.approx([2.0, 3 / 14])
    assert over_scales(determination, x, y).values[0] == pytest.approx(1)
    assert over_scales(rank_correlation, x, y).values == pytest.approx([1.0, 0.5])
    assert np.isnan(over_scales(slope, x, y, scales=[1, 2]).values).all()  # two points are a line whatever they are
    constant = x.copy(data=np.ones((4, 2)))
    assert np.isnan(over_scales(rank_correlation, constant, x).values).all()
    assert np.isnan(over_scales(slope, constant, x).values).all()


def test_the_worlds_have_what_they_say():
    run = worlds.ising([True, False])
    assert onset(run).values == pytest.approx([np.sqrt(12), np.sqrt(70)])
