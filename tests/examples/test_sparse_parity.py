import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import lit_grok
from examples.sparse_parity import ParityMLP, SparseParityDataModule

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_target_is_the_parity_of_the_first_k_bits():
    inputs, targets = SparseParityDataModule(bits=6, k=3, train_size=50, test_size=50, batch_size=10).dataset()
    assert set(inputs.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(targets, (inputs[:, :3] < 0).sum(1) % 2)
    for bits in itertools.combinations(range(6), 2):  # no other two bits tell anything
        assert abs((inputs[:, bits].prod(1) * (1 - 2 * targets)).mean()) < 0.25


def test_train_and_test_share_no_example():
    data = SparseParityDataModule(train_size=50, test_size=30, batch_size=10)
    split = data.split_indices(np.random.default_rng(0))
    assert [len(split[name]) for name in ("train", "test")] == [50, 30]
    assert not set(split["train"]) & set(split["test"])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 7}, {"train_size": 0}, {"test_size": 0}])
def test_what_is_impossible_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        SparseParityDataModule(**{"bits": 6, "batch_size": 10} | wrong)


def test_preactivations_are_those_of_the_forward_pass():
    network, inputs = ParityMLP(bits=6, width=5), torch.ones(3, 6)
    hidden = network.preactivations(inputs)["hidden"]
    assert torch.equal(network.output(hidden.relu()), network(inputs))


def test_it_trains_from_another_folder_with_its_analyses(command):
    sizes = ("bits=6", "network.width=16", "datamodule.train_size=20", "datamodule.test_size=20", "epochs=3")
    task = (f"--config-dir={EXAMPLES}", "task=sparse_parity", "logger=none", "run_dir=run", "seed=[0,1]")
    result = command(*task, *sizes, "callbacks.fim_trajectory.inputs=10")
    assert result.code == 0, result.err
    assert {"pruning", "weights", "similarity", "fim_trajectory"} <= set(lit_grok.open_run("run").children)
