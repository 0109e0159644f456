import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from lit_grok.metrics import ReplicaAccuracy


@pytest.mark.parametrize("replicas", [1, 3])
def test_equals_torchmetrics_replica_by_replica(replicas):
    generator = torch.Generator().manual_seed(0)
    metric = ReplicaAccuracy(replicas)
    slow = [MulticlassAccuracy(5, average="micro") for _ in range(replicas)]
    for size in (7, 4, 1):  # uneven batches
        logits = torch.randn(replicas, size, 5, generator=generator)
        targets = torch.randint(0, 5, (replicas, size), generator=generator)
        metric.update(logits, targets)
        for r in range(replicas):
            slow[r].update(logits[r], targets[r])
    expected = torch.stack([s.compute() for s in slow])
    torch.testing.assert_close(metric.compute().view(-1), expected)
    assert len(set(expected.tolist())) == replicas


def test_reset_forgets():
    metric = ReplicaAccuracy(2)
    right = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    metric.update(right, torch.tensor([[0], [0]]))
    metric.reset()
    metric.update(right, torch.tensor([[1], [0]]))
    assert metric.compute().tolist() == [1, 0]
