import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules import PolygonsDataModule
from datamodules.polygons import draw_polygon


def data(symbols=4, side=16, **options):
    module = PolygonsDataModule(symbols=symbols, side=side, **options)
    module.setup()
    return module


# Labels


def test_the_labels_of_the_paper():
    """The sums of four numbers from 0, 3, 4, … 12, counted here one by one."""
    quadruples, targets = PolygonsDataModule(symbols=11).dataset()
    expected = [sum(sides) for sides in itertools.product([0, *range(3, 13)], repeat=4)]
    assert targets.tolist() == expected
    assert quadruples.tolist() == [list(q) for q in itertools.product(range(11), repeat=4)]
    found = Counter(targets.tolist())
    assert len(targets) == 14_641
    assert sorted(found) == [0, *range(3, 49)]
    assert len(found) == 47
    assert found.most_common(1) == [(28, 813)]


def test_the_split_of_the_paper():
    split = PolygonsDataModule(symbols=11).split_indices(np.random.default_rng(0))
    assert {name: len(indices) for name, indices in split.items()} == {"train": 3660, "test": 10_981}
    assert sorted(np.concatenate([split["train"], split["test"]])) == list(range(14_641))


@pytest.mark.parametrize("symbols", [2, 3, 5, 11])
def test_as_many_classes_as_the_largest_sum_needs(symbols):
    targets = PolygonsDataModule(symbols=symbols, classes=4 * symbols + 5).dataset().targets
    assert targets.max() + 1 == 4 * symbols + 5
    with pytest.raises(ValueError, match=rf"network\.classes={4 * symbols + 5} or more"):
        PolygonsDataModule(symbols=symbols, classes=4 * symbols + 4)


# Images


def test_every_image_has_its_four_symbols_in_their_places_and_the_sum_of_their_sides():
    module = PolygonsDataModule(symbols=4, side=20)
    images, labels = module.grid()
    assert images.shape == (256, 20, 20)
    assert images.dtype == torch.uint8
    pictures = [torch.from_numpy(draw_polygon(sides, 10)) for sides in (0, 3, 4, 5)]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4
    everything = zip(itertools.product(range(4), repeat=4), images, labels, strict=True)
    for (top_left, top_right, bottom_left, bottom_right), image, label in everything:
        top = torch.cat([pictures[top_left], pictures[top_right]], 1)
        bottom = torch.cat([pictures[bottom_left], pictures[bottom_right]], 1)
        assert torch.equal(image, torch.cat([top, bottom]))
        assert label == sum((0, 3, 4, 5)[s] for s in (top_left, top_right, bottom_left, bottom_right))


def test_splits_hold_the_images_of_the_grid_once_each():
    module = data()
    images, labels = module.grid()
    examples = [module.split(name) for name in ("train", "test")]
    assert [inputs.shape for inputs, _ in examples] == [(1, 64, 16, 16), (1, 192, 16, 16)]
    there = {(i.numpy().tobytes(), int(t)) for x, y in examples for i, t in zip(x[0], y[0], strict=True)}
    assert there == {(i.numpy().tobytes(), int(t)) for i, t in zip(images, labels, strict=True)}
    assert len(there) == 256  # all of them can be told apart


def test_images_are_the_same_every_time_and_the_seed_moves_the_split_alone():
    one, again, other = data(), data(), data(data_seeds=[1])
    assert torch.equal(one.split("train")[0], again.split("train")[0])
    assert not torch.equal(one.split("train")[0], other.split("train")[0])
    assert all(map(torch.equal, one.grid(), other.grid()))
    among = data(data_seeds=[0, 1], order_seeds=[0, 0])
    assert torch.equal(among.split("train")[0][1], other.split("train")[0][0])


def test_batches_are_shuffled_anew_unless_told_otherwise():
    module = data(batch_size=20)
    loader = module.train_dataloader()
    assert [x.shape for x, _ in loader] == [(1, 20, 16, 16)] * 3 + [(1, 4, 16, 16)]
    assert module.shuffle
    assert not data(shuffle=False).shuffle


@pytest.mark.parametrize("sides", range(3, 13))
def test_a_polygon_is_its_own_mirror_image(sides):
    picture = draw_polygon(sides, 56)
    np.testing.assert_array_equal(picture, picture[::-1])  # the first vertex lies on the axis
    assert np.array_equal(picture, picture[:, ::-1]) == (sides % 2 == 0)
    assert np.array_equal(picture, np.rot90(picture)) == (sides % 4 == 0)
    assert (picture[[0, -1]] == 255).all()
    assert (picture[:, [0, -1]] == 255).all()


@pytest.mark.parametrize("sides", range(3, 13))
def test_the_area_inside_is_that_of_the_polygon_and_grows_to_that_of_a_disc(sides):
    size, radius = 224, 92.0
    inside = ndimage.binary_fill_holes(draw_polygon(sides, size) < 128)
    area = sides / 2 * radius**2 * np.sin(2 * np.pi / sides)
    perimeter = 2 * sides * radius * np.sin(np.pi / sides)
    # Half of a line of two pixels lies outside the polygon.
    assert inside.sum() == pytest.approx(area + perimeter, rel=0.01)
    assert area < np.pi * radius**2
    if sides == 12:
        assert area > 0.95 * np.pi * radius**2


@pytest.mark.parametrize("sides", range(3, 13))
def test_as_many_spokes_as_sides_the_first_to_the_right(sides):
    level = draw_polygon(sides, 224).astype(float)
    angles = 2 * np.pi * np.arange(720) / 720
    radius = 46 * np.cos(np.pi / sides)  # half of the way to the outline where that is nearest
    circle = [111.5 - radius * np.sin(angles), 111.5 + radius * np.cos(angles)]
    around = ndimage.map_coordinates(level, circle, order=1) < 128
    regions = ndimage.label(around)[1] - int(around[0] and around[-1])  # the one at angle 0 begins and ends the list
    assert regions == sides
    assert around[0]
    cells, _ = ndimage.label(level == 255)
    large = np.bincount(cells.flatten())[1:] > 50  # where spokes meet, pixels between them may stand alone
    assert large.sum() == sides + 1  # the triangles between spokes, and the outside


def test_pictures_of_other_sizes_show_the_same():
    """The mean grey of blocks of a large picture, with lines as thick as those of the small one."""
    for sides in (3, 5, 12):
        small, large = draw_polygon(sides, 112) / 255, draw_polygon(sides, 224) / 255
        blocks = large.reshape(112, 2, 112, 2).mean((1, 3))
        assert np.abs(small - blocks).mean() < 0.01


# Bad input


@pytest.mark.parametrize("symbols", [1, 0, -2])
def test_symbols(symbols):
    with pytest.raises(ValueError, match=f"symbols={symbols}: must be at least 2"):
        PolygonsDataModule(symbols=symbols)


@pytest.mark.parametrize("side", [0, 14, 17, -16])
def test_sides(side):
    with pytest.raises(ValueError, match=f"side={side}: must be an even number"):
        PolygonsDataModule(side=side)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), 1e-9])
def test_fractions_that_leave_nothing(fraction):
    with pytest.raises(ValueError, match="train_fraction="):
        PolygonsDataModule(symbols=3, train_fraction=fraction)


@pytest.mark.parametrize("sides", [-1, 1, 2])
def test_no_polygon(sides):
    with pytest.raises(ValueError, match=f"sides={sides}: a polygon has 3 or more"):
        draw_polygon(sides, 16)
