import numpy as np
import pytest
import torch

from lit_grok.measures.similarity import linear_cka


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def hsic_cka(x, y):
    """From the definition: the Hilbert-Schmidt independence criterion of the two centred N × N kernels."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 9), (1, 30)])
def test_equals_the_kernel_definition(n, m, generator):
    x = torch.randn(20, n, dtype=torch.float64, generator=generator) + 5
    y = torch.randn(20, m, dtype=torch.float64, generator=generator) + x[:, :1]
    assert linear_cka(x, y).item() == pytest.approx(hsic_cka(x.numpy(), y.numpy()), abs=1e-12)


def test_invariant_under_rotation_scale_and_shift(generator):
    x = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    y = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
    moved = -1e-3 * x @ rotation + torch.arange(6)
    torch.testing.assert_close(linear_cka(x, moved), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(linear_cka(moved, y), linear_cka(x, y))


def test_not_invariant_under_a_general_linear_map(generator):
    x = torch.randn(40, 2, dtype=torch.float64, generator=generator)
    assert linear_cka(x, x * torch.tensor([1.0, 100.0])) < 0.9


def test_symmetric_and_orthogonal_features_give_zero():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert linear_cka(signs[:, :1], signs[:, 1:]) == 0
    torch.testing.assert_close(linear_cka(signs, signs[:, :1]), linear_cka(signs[:, :1], signs))


def test_constant_features_are_nan(generator):
    x = torch.randn(101, 3, generator=generator)
    assert linear_cka(x, torch.full((101, 2), 0.1)).isnan()
    assert linear_cka(torch.zeros(101, 2), x).isnan()


def test_one_constant_feature_changes_nothing(generator):
    x, y = torch.randn(30, 3, generator=generator), torch.randn(30, 2, generator=generator)
    padded = torch.cat([x, torch.full((30, 1), 0.1)], dim=1)
    torch.testing.assert_close(linear_cka(padded, y), linear_cka(x, y))


def test_leading_dimensions_are_every_pair(generator):
    x = torch.randn(3, 15, 4, generator=generator)
    pairs = linear_cka(x[:, None], x[None])
    assert pairs.shape == (3, 3)
    torch.testing.assert_close(pairs.diagonal(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(pairs[0, 2], linear_cka(x[0], x[2]))


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**120])
def test_scale_extremes(scale, generator):
    x = torch.randint(-8, 8, (20, 3), generator=generator).float()
    y = torch.randn(20, 3, generator=generator)
    torch.testing.assert_close(linear_cka(x * scale, y), linear_cka(x, y))
