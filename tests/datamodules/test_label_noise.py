import numpy as np
import pytest
import torch

from datamodules import IsingDataModule, ModularArithmeticDataModule
from lit_grok.results import open_run


def mod_add(noise, seeds=(0,)):
    data = ModularArithmeticDataModule(P=53, data_seeds=list(seeds), label_noise=noise)
    data.setup()
    return data


def test_only_training_labels_change_and_the_split_stays():
    clean, noisy = mod_add(0.0), mod_add(0.1)
    assert torch.equal(clean.split("train")[0], noisy.split("train")[0])
    for clean_part, noisy_part in zip(clean.split("test"), noisy.split("test"), strict=True):
        assert torch.equal(clean_part, noisy_part)
    assert not torch.equal(clean.split("train")[1], noisy.split("train")[1])


def test_share_and_distribution_of_wrong_labels():
    clean, noisy = mod_add(0.0, range(20)).split("train")[1], mod_add(0.1, range(20)).split("train")[1]
    shift = (noisy - clean) % 53
    share = (shift > 0).double().mean().item()
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / clean.numel()) ** 0.5
    counts = np.bincount(shift[shift > 0], minlength=53)[1:]
    assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 90  # chi-squared, 51 degrees of freedom: p = 0.001


def test_every_label_is_wrong_at_one():
    clean, noisy = mod_add(0.0).split("train")[1], mod_add(1.0).split("train")[1]
    assert (clean != noisy).all()
    assert noisy.min() >= 0
    assert noisy.max() < 53


def test_the_data_seed_decides_and_neighbours_do_not():
    both = mod_add(0.2, [3, 4]).split("train")[1]
    assert torch.equal(both[1], mod_add(0.2, [4]).split("train")[1][0])
    assert torch.equal(both[0], mod_add(0.2, [3, 3]).split("train")[1][1])
    clean = mod_add(0.0, [3, 4]).split("train")[1]
    assert not torch.equal((both != clean)[0], (both != clean)[1])


def test_two_classes(tmp_path):
    options = {"side": 8, "train_size": 40, "test_size": 20, "snapshots": 4, "steps": 0, "data_dir": str(tmp_path)}
    labels = []
    for noise in (0.0, 1.0):
        data = IsingDataModule(**options, label_noise=noise)
        data.setup()
        labels.append(data.split("train")[1])
    assert torch.equal(labels[0], 1 - labels[1])


def test_command_line(command):
    noisy = open_run(command.mod_add("callbacks=base", "~callbacks.grok_time", "label_noise=0.5", "run_dir=noisy"))
    clean = open_run(command.mod_add("callbacks=base", "~callbacks.grok_time", "run_dir=clean"))
    assert noisy.evaluation.test_loss.isel(epoch=0) == clean.evaluation.test_loss.isel(epoch=0)
    assert noisy.evaluation.train_loss.isel(epoch=0) != clean.evaluation.train_loss.isel(epoch=0)


@pytest.mark.parametrize("noise", [-0.1, 1.1, "some"])
def test_bad_values(command, noise):
    result = command("task=mod_add", f"label_noise={noise}", "logger=none")
    assert (result.code, result.err) == (2, f"error: label_noise={noise}: must be a number between 0 and 1\n")
