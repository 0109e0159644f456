import math

import numba
import numpy as np
import pytest
from scipy import stats
from scipy.special import ellipk

from datamodules import glauber
from datamodules.glauber import acceptance_thresholds, neighbour_table, sample


def energy(spins):
    """Per site, every bond once: each site with its right and its lower neighbour."""
    s = spins.astype(np.int64)
    return -(s * (np.roll(s, -1, axis=-1) + np.roll(s, -1, axis=-2))).mean(axis=(-2, -1))


def magnetisation(spins):
    return spins.mean(axis=(-2, -1))


def standard_errors_off(values, expected):
    return (values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values)))


def flip_probability(delta, temperature):
    return 1 / (1 + np.exp(delta / temperature))


# Equilibrium


def all_states(side):
    bits = np.arange(2 ** (side * side))[:, None] >> np.arange(side * side) & 1
    return (2 * bits - 1).reshape(-1, side, side)


def boltzmann_average(observable, energies, sites, temperature):
    weights = np.exp(-(energies - energies.min()) * sites / temperature)
    return (weights * observable).sum() / weights.sum()


# With two bonds between each pair of neighbours, the 2 × 2 lattice orders at higher temperatures.
@pytest.mark.parametrize(("side", "temperatures"), [(2, (3.0, 4.0, 5.0)), (3, (2.0, 3.0, 5.0)), (4, (1.9, 2.3, 3.5))])
def test_equilibrium_is_boltzmann(side, temperatures):
    states = all_states(side)
    energies, order = energy(states), np.abs(magnetisation(states))
    for temperature in temperatures:
        spins = sample(np.full(200_000, temperature), steps=150 * side**2, side=side, seed=1)
        exact, warmer = (boltzmann_average(energies, energies, side**2, t) for t in (temperature, 1.02 * temperature))
        assert abs(standard_errors_off(energy(spins), exact)) < 4
        assert abs(standard_errors_off(energy(spins), warmer)) > 5  # two per cent in T would be noticed
        exact = boltzmann_average(order, energies, side**2, temperature)
        assert abs(standard_errors_off(np.abs(magnetisation(spins)), exact)) < 4


def test_every_state_of_a_small_lattice_has_its_boltzmann_weight():
    side, temperature, count = 3, 4.0, 400_000
    weights = np.exp(-energy(all_states(side)) * side**2 / temperature)
    spins = sample(np.full(count, temperature), steps=1000, side=side, seed=2)
    states = (spins.reshape(count, -1) > 0) @ (1 << np.arange(side**2))
    expected = count * weights / weights.sum()
    assert expected.min() > 5  # a chi-square needs it
    assert stats.chisquare(np.bincount(states, minlength=512), expected).pvalue > 1e-3


def onsager_energy(temperature):
    """Per site of the infinite lattice (Onsager 1944)."""
    k = 2 * np.sinh(2 / temperature) / np.cosh(2 / temperature) ** 2
    return -(1 + 2 / np.pi * (2 * np.tanh(2 / temperature) ** 2 - 1) * ellipk(k**2)) / np.tanh(2 / temperature)


# The correlation length is 1.4 at T = 3.5, so a lattice of side 16 is infinite to one part in 1e4.
@pytest.mark.parametrize("temperature", [3.5, 5.0])
def test_energy_above_the_transition_is_onsagers(temperature):
    values = energy(sample(np.full(30_000, temperature), steps=15_000, seed=3))
    assert values.std() / math.sqrt(len(values)) < 1e-3
    assert abs(standard_errors_off(values, onsager_energy(temperature))) < 4
    assert abs(standard_errors_off(values, onsager_energy(1.02 * temperature))) > 5


# Dynamics


@pytest.fixture(scope="module")
def one_step():
    """The states before and after one step at T = 5: 400 000 lattices of side 5, which is no power of two."""
    temperatures = np.full(400_000, 5.0)
    return tuple(sample(temperatures, steps, side=5, seed=4) for steps in (0, 1))


def test_one_step_flips_at_most_one_spin(one_step):
    before, after = one_step
    assert set(np.unique((before != after).sum(axis=(1, 2)))) == {0, 1}


def test_one_step_flips_with_glaubers_probability(one_step):
    before, after = (spins.astype(int) for spins in one_step)
    field = sum(np.roll(before, shift, axis) for shift in (1, -1) for axis in (1, 2))
    delta = 2 * before * field
    for change in (-8, -4, 0, 4, 8):
        # each of these sites was chosen with probability 1/25 and then flipped with probability p
        here = delta == change
        flipped = (before != after)[here].sum()

        def standard_errors(p, here=here, flipped=flipped):
            chance = p / 25
            return (flipped - here.sum() * chance) / math.sqrt(here.sum() * chance * (1 - chance))

        assert abs(standard_errors(flip_probability(change, 5.0))) < 4
        # Metropolis leads to the same equilibrium: only the rates tell the two apart
        assert abs(standard_errors(min(1, math.exp(-change / 5.0)))) > 5


@pytest.mark.parametrize("side", [2, 4, 5, 7])
def test_every_site_is_chosen_equally_often(side):
    before, after = (sample(np.full(200_000, np.inf), steps, side=side, seed=5) for steps in (0, 1))
    chosen = (before != after).reshape(-1, side**2).sum(axis=0)
    assert stats.chisquare(chosen).pvalue > 1e-3
    assert abs(chosen.sum() - 100_000) < 4 * math.sqrt(50_000)  # at T = ∞ a chosen spin flips half the time


def test_start_is_random():
    spins = sample(np.full(4000, 1.0), steps=0, seed=6)
    up = (spins > 0).reshape(4000, -1)
    assert abs(standard_errors_off(magnetisation(spins), 0)) < 4
    assert abs(standard_errors_off(energy(spins), 0)) < 4
    # each site up in half of the snapshots, and the number up in a snapshot binomial
    assert abs(stats.zscore(up.sum(axis=0))).max() < 5
    assert up.sum(axis=0).var() == pytest.approx(1000, rel=0.4)
    assert up.sum(axis=1).var() == pytest.approx(64, rel=0.1)


def test_infinite_temperature_stays_random_and_a_tiny_one_never_climbs():
    hot = sample(np.full(4000, np.inf), steps=2000, seed=7)
    assert abs(standard_errors_off(energy(hot), 0)) < 4
    energies = [energy(sample(np.full(200, 5e-324), steps, seed=7)) for steps in (0, 1000, 2000, 4000)]
    assert np.all(np.diff(energies, axis=0) <= 0)
    assert energies[-1].mean() < -1.6


def test_quench_leaves_domain_walls():
    spins = sample(np.linspace(1.0, 1.5, 3000), steps=50_000, seed=8)
    assert 0.10 < (np.abs(magnetisation(spins)) < 0.5).mean() < 0.20


# Algorithm, bit for bit

WORD = 2**64


def splitmix64(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        yield z ^ (z >> 31)


def slow_sample(temperatures, steps, side, seed):
    """Glauber's rule as it is written: flip with probability 1 / (1 + exp(ΔE / T))."""
    spins = np.empty((len(temperatures), side, side), dtype=np.int8)
    for s, temperature, start in zip(spins, temperatures, splitmix64(seed), strict=False):
        numbers = splitmix64(start)
        for site in range(side * side):
            s[divmod(site, side)] = 1 if next(numbers) >> 63 else -1
        for _ in range(steps):
            high, low = divmod(next(numbers), 2**32)
            i, j = divmod(high * side**2 >> 32, side)
            field = sum(int(s[k % side, m % side]) for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)))
            delta = 2 * int(s[i, j]) * field
            # a small number sends the spin up: to flip a spin that is up, it is counted from the other end
            number = low if s[i, j] < 0 else 2**32 - 1 - low
            if number < round(flip_probability(delta, temperature) * 2**32):
                s[i, j] *= -1
    return spins


def test_splitmix64_is_the_published_one():
    numbers = splitmix64(1234567)
    assert [next(numbers) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


# 1500 steps: more than one block of numbers
@pytest.mark.parametrize(("side", "seed"), [(2, 0), (5, 2**64 - 1), (16, 12345)])
def test_agrees_bit_for_bit_with_the_slow_one(side, seed):
    temperatures = np.array([0.5, 1.5, 2.269, 4.0, np.inf])
    fast = sample(temperatures, 1500, side=side, seed=seed)
    np.testing.assert_array_equal(fast, slow_sample(temperatures, 1500, side, seed))


def test_thresholds_are_symmetric_probabilities():
    temperatures = np.array([0.05, 1.0, 2.3, 10.0, np.inf])
    thresholds = acceptance_thresholds(temperatures)
    for up in range(5):
        exact = flip_probability(-2 * (2 * up - 4), temperatures)
        np.testing.assert_allclose(thresholds[:, up] / 2**32, exact, atol=2**-33, rtol=0)
    np.testing.assert_array_equal(thresholds + thresholds[:, ::-1], 2**32)


def test_neighbours_are_mutual_and_wrap():
    np.testing.assert_array_equal(np.sort(neighbour_table(2), axis=1)[0], [1, 1, 2, 2])
    table = neighbour_table(7)
    assert set(table[0]) == {42, 7, 6, 1}
    for there, back in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(table[table[:, there], back], np.arange(49))


# Reproducibility


@pytest.fixture
def arguments():
    return {"temperatures": np.linspace(1.0, 3.5, 23), "steps": 3000, "side": 6, "seed": 9}


def test_shape_and_type(arguments):
    spins = sample(**arguments)
    assert spins.shape == (23, 6, 6)
    assert spins.dtype == np.int8
    assert spins.flags.c_contiguous
    assert set(np.unique(spins)) == {-1, 1}


def test_threads_do_not_matter(arguments):
    threads = numba.get_num_threads()
    results = []
    try:
        for count in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
            numba.set_num_threads(count)
            results.append(sample(**arguments))
    finally:
        numba.set_num_threads(threads)
    for result in results:
        np.testing.assert_array_equal(result, sample(**arguments))


def test_seed_matters():
    one = sample(np.full(50, 5.0), 1000, seed=9)
    np.testing.assert_array_equal(one, sample(np.full(50, 5.0), 1000, seed=9))
    for seed in (0, 10):
        assert not (one == sample(np.full(50, 5.0), 1000, seed=seed)).all(axis=(1, 2)).any()


def test_snapshots_of_one_temperature_differ():
    spins = sample(np.full(200, 5.0), steps=100, seed=11).reshape(200, -1)
    assert len(np.unique(spins, axis=0)) == 200


@pytest.mark.parametrize("chunk_steps", [1, 7 * (3000 + 36), 10**9])
def test_chunks_and_progress_do_not_matter(arguments, monkeypatch, chunk_steps):
    expected = sample(**arguments)
    monkeypatch.setattr(glauber, "CHUNK_STEPS", chunk_steps)
    finished = []
    np.testing.assert_array_equal(sample(**arguments, progress=finished.append), expected)
    assert finished == sorted(set(finished))
    assert finished[-1] == 23
    assert (len(finished) == 1) == (chunk_steps == 10**9)


def test_snapshot_ignores_those_that_follow(arguments):
    expected = sample(**arguments)
    fewer = {**arguments, "temperatures": arguments["temperatures"][:5]}
    np.testing.assert_array_equal(sample(**fewer), expected[:5])


def test_numpy_integers_and_lists_are_welcome():
    spins = sample([2.0, 3.0], np.int64(100), side=np.int8(16), seed=np.uint64(3))
    np.testing.assert_array_equal(spins, sample(np.array([2.0, 3.0]), 100, 16, 3))


# Input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "steps must be an integer from 0 to 1000000000000, got -1"),
        ({"steps": 5e4}, "steps must be an integer"),
        ({"steps": True}, "steps must be an integer"),
        ({"side": 1}, "side must be an integer from 2 to 4096, got 1"),
        ({"side": 5000}, "side must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"temperatures": []}, r"1-D array with at least one entry, got shape \(0,\)"),
        ({"temperatures": 2.0}, r"1-D array with at least one entry, got shape \(\)"),
        ({"temperatures": [[2.0]]}, r"1-D array with at least one entry, got shape \(1, 1\)"),
        ({"temperatures": [2.0, 0.0]}, "must be positive, infinity allowed, got 0.0 at index 1"),
        ({"temperatures": [-1.0]}, "must be positive"),
        ({"temperatures": [2.0, 2.0, np.nan]}, "must be positive, infinity allowed, got nan at index 2"),
        ({"temperatures": [-np.inf]}, "must be positive"),
        ({"temperatures": ["warm"]}, "temperatures must be numbers"),
    ],
)
def test_bad_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(**{"temperatures": [2.0], "steps": 1, **wrong})
