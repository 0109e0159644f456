import pytest
import torch

from datamodules import ModularArithmeticDataModule
from datamodules.modular_arithmetic import _is_prime


def data(P=11, **options):
    module = ModularArithmeticDataModule(P=P, batch_size=7, **options)
    module.setup()
    return module


def pairs(module, name, replica=0):
    inputs, targets = module.split(name)
    return {(a, b): c for (a, b), c in zip(inputs[replica].tolist(), targets[replica].tolist(), strict=True)}


@pytest.mark.parametrize("P", [2, 3, 10, 11, 13, 97])
@pytest.mark.parametrize(
    ("operation", "function"),
    [("add", lambda a, b: a + b), ("subtract", lambda a, b: a - b), ("multiply", lambda a, b: a * b)],
)
def test_all_pairs_with_their_results(P, operation, function):
    if operation == "multiply" and P == 10:
        return  # refused: see below
    module = data(P, operation=operation)
    train, test = pairs(module, "train"), pairs(module, "test")
    assert not train.keys() & test.keys()
    assert train | test == {(a, b): function(a, b) % P for a in range(P) for b in range(P)}
    assert len(train) == int(0.7 * P**2)


def test_the_split_of_the_paper():
    module = data(113)
    assert [module.split(name)[0].shape for name in ("train", "test")] == [(1, 8938, 2), (1, 3831, 2)]
    module = ModularArithmeticDataModule(P=113, batch_size=64)
    module.setup()
    assert len(module.train_dataloader()) == 140


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.95])
def test_other_fractions(fraction):
    assert len(pairs(data(train_fraction=fraction), "train")) == int(fraction * 121)


def test_the_split_depends_on_the_own_data_seed_alone():
    alone = pairs(data(data_seeds=[5]), "train")
    among = data(data_seeds=[1, 5, 2], order_seeds=[7, 8, 9])
    assert pairs(among, "train", 1) == alone
    assert pairs(among, "train", 0).keys() != alone.keys()
    assert pairs(data(data_seeds=[5], order_seeds=[3]), "train") == alone
    assert pairs(data(data_seeds=[0]), "train").keys() != alone.keys()


def test_equal_data_seeds_share_their_data():
    module = data(data_seeds=[4] * 3, order_seeds=[0, 1, 2])
    inputs, targets = module.split("train")
    assert inputs.shape[0] == targets.shape[0] == 3
    assert inputs.untyped_storage().nbytes() == inputs[0].numel() * inputs.element_size()
    assert pairs(module, "train", 0) == pairs(module, "train", 2)


def test_order_seeds_change_the_order_alone():
    first, second = (next(iter(data(order_seeds=[s]).train_dataloader())) for s in (0, 1))
    assert not torch.equal(first[0], second[0])
    module = data(data_seeds=[3, 3], order_seeds=[0, 1])
    x = torch.cat([x for x, _ in module.train_dataloader()], 1)
    assert sorted(x[0].tolist()) == sorted(x[1].tolist())
    assert x[0].tolist() != x[1].tolist()


@pytest.mark.parametrize("P", [1, 0, -3])
def test_no_modulus(P):
    with pytest.raises(ValueError, match=f"P={P}: the modulus is at least 2"):
        ModularArithmeticDataModule(P=P)


def test_multiplication_wants_a_prime():
    for P in (4, 9, 15, 25, 91, 112):
        with pytest.raises(ValueError, match=f"P={P}: operation=multiply needs a prime"):
            ModularArithmeticDataModule(P=P, operation="multiply")
    assert [n for n in range(-3, 120) if _is_prime(n)] == [
        n for n in range(2, 120) if not any(n % d == 0 for d in range(2, n))
    ]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), 1e-9])
def test_fractions_that_leave_nothing(fraction):
    with pytest.raises(ValueError, match="train_fraction="):
        ModularArithmeticDataModule(P=11, train_fraction=fraction)


def test_unknown_operation():
    with pytest.raises(ValueError, match="operation=divide: unknown; allowed: add, subtract, multiply, x2"):
        ModularArithmeticDataModule(operation="divide")


def test_label_noise_replaces_that_share_of_the_training_labels():
    clean, noisy = data(31), data(31, label_noise=0.25)
    assert torch.equal(clean.split("train")[0], noisy.split("train")[0])
    assert all(map(torch.equal, clean.split("test"), noisy.split("test")))
    wrong = (clean.split("train")[1] != noisy.split("train")[1]).float().mean().item()
    assert abs(wrong - 0.25) < 0.07  # 4 standard deviations of 672 labels
    everything = data(31, label_noise=1.0)
    assert (everything.split("train")[1] != clean.split("train")[1]).all()
    assert everything.split("train")[1].max() < 31
    among = data(31, label_noise=0.25, data_seeds=[4, 0])
    assert torch.equal(among.split("train")[1][1], noisy.split("train")[1][0])


# The second paper's operations and holes


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("x2+xy+y2", lambda x, y: x**2 + x * y + y**2),
        ("(x+y)2", lambda x, y: (x + y) ** 2),
        ("x2+y2", lambda x, y: x**2 + y**2),
        ("x3+y3", lambda x, y: x**3 + y**3),
        ("x3+xy+y3", lambda x, y: x**3 + x * y + y**3),
    ],
)
@pytest.mark.parametrize("P", [2, 13, 379])
def test_polynomials(P, operation, function):
    table, targets = ModularArithmeticDataModule(P=P, operation=operation).dataset()
    chosen = range(0, P**2, 1 if P < 50 else 997)
    assert [targets[i] for i in chosen] == [function(*map(int, table[i])) % P for i in chosen]


def test_class_sizes_of_the_second_paper():
    """PRIME §1.1: P = 97."""

    def sizes(operation):
        return torch.bincount(ModularArithmeticDataModule(P=97, operation=operation).dataset().targets, minlength=97)

    assert (sizes("add") == 97).all()
    for operation in ("multiply", "x2+xy+y2", "x2+y2"):
        assert sizes(operation).tolist() == [193] + 96 * [96]
    assert sorted(sizes("(x+y)2").tolist()) == 48 * [0] + [97] + 48 * [194]
    assert sorted(sizes("x3+y3").tolist()) == 32 * [81] + 32 * [90] + 32 * [114] + [289]


def test_a_random_table_is_the_same_for_all_and_follows_nothing():
    first, second = (ModularArithmeticDataModule(P=31, operation="random", data_seeds=[s]).dataset() for s in (0, 1))
    assert torch.equal(first.targets, second.targets)
    table = first.targets.view(31, 31)
    counts = torch.bincount(first.targets, minlength=31).double()
    assert ((counts - 31) ** 2 / 31).sum() < 60  # chi squared with 30 degrees of freedom: p = .001
    assert (table == table.t()).double().mean() < 0.1  # chance: 1 / 31, and the diagonal


@pytest.mark.parametrize(
    ("hole", "size", "cells", "train"),
    [("square", 45, 2116, 2822), ("strip", 50, 4947, 2822), ("strip", 67, 6596, 2813)],
)
def test_nothing_of_a_hole_is_trained_on(hole, size, cells, train):
    module = ModularArithmeticDataModule(P=97, train_fraction=0.3, hole=hole, hole_size=size, batch_size=None)
    module.setup()
    trained, tested = pairs(module, "train"), pairs(module, "test")

    def inside(a, b):
        return a <= size and (hole == "strip" or b <= size)

    assert len(trained) == train
    assert not any(inside(*pair) for pair in trained)
    assert sum(inside(*pair) for pair in tested) == cells
    assert not trained.keys() & tested.keys()
    assert len(trained) + len(tested) == 97**2
    inputs, _ = module.split("test")
    assert module.in_hole(inputs)[0].tolist() == [inside(a, b) for a, b in inputs[0].tolist()]


def test_without_a_hole_nothing_is_in_it():
    module = data(11)
    assert not module.in_hole(module.dataset().inputs).any()


def test_a_hole_takes_nothing_but_its_own_pairs_from_the_training_set():
    """The others are drawn as before, so that runs with and without one compare."""
    plain, holed = data(31, train_fraction=0.3), data(31, train_fraction=0.3, hole="square", hole_size=5)
    order = [pair for pair in pairs(plain, "train") if max(pair) > 5]
    assert list(pairs(holed, "train"))[: len(order)] == order


def test_a_full_batch():
    module = ModularArithmeticDataModule(P=11, batch_size=None)
    module.setup()
    assert [y.shape for _, y in module.train_dataloader()] == [(1, 84)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hole": "disc"}, "hole=disc: unknown; allowed: none, square, strip"),
        ({"hole_size": 3}, "hole_size=3: there is no hole; choose hole=square or hole=strip"),
        ({"hole": "square"}, "hole_size=null: the largest residue in the hole, from 0 to 9"),
        ({"hole": "strip", "hole_size": 10}, "hole_size=10: the largest residue in the hole, from 0 to 9"),
        ({"hole": "strip", "hole_size": -1}, "hole_size=-1: the largest residue in the hole, from 0 to 9"),
        ({"P": 10, "operation": "x2+y2"}, "P=10: operation=x2\\+y2 needs a prime modulus"),
    ],
)
def test_holes_and_operations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ModularArithmeticDataModule(**{"P": 11} | options)


def test_a_hole_that_leaves_too_few_pairs_is_said(caplog):
    ModularArithmeticDataModule(P=23, train_fraction=0.6, hole="strip", hole_size=8, batch_size=None)
    assert not caplog.records  # 317 of 322
    data = ModularArithmeticDataModule(P=23, train_fraction=0.7, hole="strip", hole_size=8, batch_size=None)
    (record,) = caplog.records
    assert (
        "hole=strip hole_size=8 leaves 322 pairs to train on, fewer than the 370 of train_fraction=0.7"
        in record.message
    )
    data.setup()
    assert data.split("train")[0].shape[1] == 322
    assert data.in_hole(data.split("test")[0]).all()
