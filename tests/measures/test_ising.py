import itertools
import math

import numpy as np
import pytest
import torch

from lit_grok.measures.ising import CRITICAL_TEMPERATURE, energy, magnetisation


def test_critical_temperature_is_onsagers():
    assert pytest.approx(2.26918531421) == CRITICAL_TEMPERATURE
    assert math.sinh(2 / CRITICAL_TEMPERATURE) == pytest.approx(1)  # sinh² (2J/Tc) = 1


def every_bond_once(spins):
    side = len(spins)
    total = 0.0
    for i, j in itertools.product(range(side), range(side)):
        total -= spins[i][j] * spins[(i + 1) % side][j] + spins[i][j] * spins[i][(j + 1) % side]
    return total / side**2


@pytest.mark.parametrize("side", [3, 4, 16])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32, torch.float64])
def test_equals_the_sum_over_bonds(side, dtype):
    spins = (2 * torch.randint(0, 2, (2, 3, side, side), generator=torch.Generator().manual_seed(side)) - 1).to(dtype)
    slow = [[every_bond_once(s.tolist()) for s in row] for row in spins]
    np.testing.assert_allclose(energy(spins), slow, atol=1e-6)
    np.testing.assert_allclose(magnetisation(spins), np.asarray(spins, float).mean((2, 3)), atol=1e-6)


def test_one_flip_costs_four_bonds():
    spins = torch.ones(16, 16)
    spins[5, 15] = -1
    assert energy(spins).item() == pytest.approx(-2 + 8 / 256)
    assert magnetisation(spins).item() == pytest.approx(1 - 2 / 256)
    assert energy(-spins) == energy(spins)


def test_many_int8_spins_do_not_overflow():
    spins = torch.ones(64, 64, dtype=torch.int8)
    assert (energy(spins).item(), magnetisation(spins).item()) == (-2, 1)
