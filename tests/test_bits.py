"""A replica ends at the same bits whatever stands beside it, in whatever order, on however many threads."""

import numpy as np
import pytest
import torch

import lit_grok

SMALL = ("task=prime", "P=37", "train_fraction=0.8", "epochs=6", "d_model=32", "network.d_mlp=64")
FEW = ("callbacks.pruning.fractions=5", "callbacks.pruning.training_fractions=3")
TASKS = {
    "mod_add": ("task=mod_add", "P=31", "weight_decay=3e-4", "epochs=30", "callbacks.fim_trajectory.until=10", *FEW),
    "prime": (*SMALL, *FEW),
    "prime, two layers": (*SMALL, "layers=2", *FEW),
    "ising": (
        *("task=ising", "side=8", "datamodule.snapshots=20", "datamodule.steps=3000", "datamodule.train_size=100"),
        *("datamodule.test_size=200", "epochs=60", "log_every=20", "callbacks.fim_trajectory.every=20", *FEW),
    ),
}
SCALES = [0.2, 1.0, 10.0]


def train(command, name, task, scales, threads):
    """The run's results and its networks, by init_scale."""
    listed = ",".join(map(str, scales))
    # CKA is a comparison of replicas: with one replica there is none.
    options = ("logger=none", "~callbacks.similarity", f"init_scale=[{listed}]", f"threads={threads}")
    result = command(*TASKS[task], *options, f"run_dir={name}")
    assert result.code == 0, result.err
    run = lit_grok.open_run(command.folder / name)
    return {
        scale: (run.isel(replica=r), lit_grok.load_network(command.folder / name, init_scale=scale))
        for r, scale in enumerate(scales)
    }


@pytest.mark.parametrize("task", TASKS)
def test_alone_in_another_stack_in_another_order_and_on_two_threads(task, command, monkeypatch):
    monkeypatch.setattr("callbacks.base.save_figures", lambda *_: None)  # they prove nothing here
    whole = train(command, "whole", task, SCALES, threads=2)  # one of them has two replicas to care for
    others = [
        train(command, "part in another order", task, [10.0, 0.2], threads=1),
        train(command, "alone", task, [0.2], threads=1),
    ]
    for other in others:
        for scale, (results, network) in other.items():
            expected, reference = whole[scale]
            assert all(map(torch.equal, network.parameters(), reference.parameters()))
            assert set(results.children) == set(expected.children)
            for node in expected.subtree:
                found = results[node.path]
                assert set(found.data_vars) == set(node.data_vars)
                for name in node.data_vars:
                    message = f"{node.path}/{name} at {scale}"
                    np.testing.assert_array_equal(found[name], node[name], err_msg=message)
