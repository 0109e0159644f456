import numpy as np
import pytest
import torch

from datamodules.loader import ReplicaLoader

SIZE = 11


def loader(replicas=3, seeds=None, batch_size=4, **options):
    inputs = torch.arange(SIZE).expand(replicas, SIZE).unsqueeze(2) + 100 * torch.arange(replicas).view(-1, 1, 1)
    seeds = list(range(replicas)) if seeds is None else seeds
    return ReplicaLoader(inputs, inputs[..., 0] * 2, batch_size, seeds, **options)


def orders(batches):
    """For every replica the examples in the order they came."""
    inputs, targets = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
    assert torch.equal(targets, 2 * inputs[..., 0])  # every input keeps its target
    return (inputs[..., 0] % 100).tolist()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_every_example_once_per_epoch(shuffle, batch_size):
    epoch = [0]
    data = loader(batch_size=batch_size, shuffle=shuffle, epoch=lambda: epoch[0])
    for epoch[0] in range(3):
        batches = list(data)
        assert len(batches) == len(data) == -(-SIZE // batch_size)
        sizes = [x.shape[1] for x, _ in batches]
        assert all(size == min(batch_size, SIZE) for size in sizes[:-1])
        for order in orders(batches):
            assert sorted(order) == list(range(SIZE))


def test_replicas_get_their_own_examples():
    for inputs, _ in loader():
        assert (inputs[..., 0] // 100).tolist() == [[r] * inputs.shape[1] for r in range(3)]


def test_without_shuffling_every_epoch_is_the_same():
    epoch = [0]
    data = loader(epoch=lambda: epoch[0])
    first = [(x.clone(), y.clone()) for x, y in data]
    for epoch[0] in (1, 2, 7):
        for (x, y), (a, b) in zip(data, first, strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)
    assert orders(first)[0] != list(range(SIZE))  # drawn once, all the same


def test_shuffling_draws_anew_from_seed_and_epoch():
    epoch = [0]
    data = loader(shuffle=True, epoch=lambda: epoch[0])
    seen = []
    for epoch[0] in range(5):
        seen.append(orders(list(data))[0])
    assert len({tuple(order) for order in seen}) == 5
    for epoch[0] in (3, 0, 2, 4, 0):  # whatever was asked for before, and in a process of its own
        again = loader(shuffle=True, epoch=lambda: epoch[0])
        assert orders(list(data))[0] == orders(list(again))[0] == seen[epoch[0]]


def test_the_order_depends_on_the_own_seed_alone():
    alone = orders(list(loader(1, seeds=[5])))[0]
    among = orders(list(loader(3, seeds=[1, 5, 2])))
    assert among[1] == alone
    assert among[0] != alone
    assert orders(list(loader(2, seeds=[5, 5]))) == [alone, alone]
    assert orders(list(loader(1, seeds=[0])))[0] != alone


def test_the_first_epoch_is_the_same_with_and_without_shuffling():
    assert orders(list(loader(shuffle=True))) == orders(list(loader()))


def test_the_order_is_uniform():
    # where the first example goes, over many seeds
    where = np.zeros(SIZE)
    for seed in range(1100):
        where[orders(list(loader(1, seeds=[seed])))[0].index(0)] += 1
    expected = 1100 / SIZE
    assert ((where - expected) ** 2 / expected).sum() < 30  # chi², 10 degrees of freedom: 0.1 %


def test_layout_changes_memory_and_nothing_else():
    def columns(inputs):
        return inputs.movedim(1, -1).contiguous().movedim(-1, 1)

    for (x, y), (a, b) in zip(loader(), loader(layout=columns), strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(loader(shuffle=True, epoch=lambda: 3))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
