import pytest
import torch

from datamodules import ModularAdditionDataModule
from datamodules.modular_addition import _is_prime


def data(P=11, **options):
    module = ModularAdditionDataModule(P=P, batch_size=7, **options)
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
    module = ModularAdditionDataModule(P=113, batch_size=64)
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
        ModularAdditionDataModule(P=P)


def test_multiplication_wants_a_prime():
    for P in (4, 9, 15, 25, 91, 112):
        with pytest.raises(ValueError, match=f"P={P}: operation=multiply needs a prime"):
            ModularAdditionDataModule(P=P, operation="multiply")
    assert [n for n in range(-3, 120) if _is_prime(n)] == [
        n for n in range(2, 120) if not any(n % d == 0 for d in range(2, n))
    ]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), 1e-9])
def test_fractions_that_leave_nothing(fraction):
    with pytest.raises(ValueError, match="train_fraction="):
        ModularAdditionDataModule(P=11, train_fraction=fraction)


def test_unknown_operation():
    with pytest.raises(ValueError, match="operation=divide: unknown; allowed: add, subtract, multiply"):
        ModularAdditionDataModule(operation="divide")


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
