"""Single-spin-flip Glauber dynamics of the two-dimensional Ising model, compiled and parallel over snapshots.

The rule (R. J. Glauber, J. Math. Phys. 4, 294, 1963): pick one of the side² sites uniformly at random and
flip its spin s with probability 1 / (1 + exp(ΔE / T)), where ΔE = 2 s h and h is the sum of the four
neighbours. Written out for s = ±1, the spin is +1 afterwards with probability 1 / (1 + exp(−2h / T)),
whichever sign it had. The sampler uses this second form: it is the same Markov chain, and everything that the
random number decides can be worked out before the lattice is looked at (see `_draw`).
"""

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_STEPS = 200_000_000
"""Steps between two calls of `progress`: about a tenth of a second on two cores."""

_BLOCK = 1024  # steps drawn at a time: 8 kB, which stays in the first-level cache

# The constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). They and all that they meet are uint64:
# numba, like numpy, turns a mixture of signed and unsigned 64-bit integers into floats.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_3, _7, _27, _30, _31, _32, _63 = (np.uint64(n) for n in (3, 7, 27, 30, 31, 32, 63))
_LOW_HALF = np.uint64(0xFFFFFFFF)


def neighbour_table(side: int) -> NDArray[np.uint32]:
    """List the four neighbours of every site of a periodic square lattice.

    Args:
        side: Sites along each edge, 2 to 4096. For side 2 the neighbours on both sides are one site, joined
            by two bonds, and the table lists it twice.

    Returns:
        Shape (side², 4): the flat indices (row · side + column) of the sites above, below, left and right.

    Raises:
        ValueError: The side is not an integer in that range.

    Example:
        >>> neighbour_table(3)[0]
        array([6, 3, 2, 1], dtype=uint32)
    """
    side = _integer("side", side, range(2, 4096 + 1))
    site = np.arange(side * side, dtype=np.uint32).reshape(side, side)
    shifts = ((1, 0), (-1, 0), (1, 1), (-1, 1))
    return np.stack([np.roll(site, shift, axis) for shift, axis in shifts], axis=-1).reshape(-1, 4)


def acceptance_thresholds(temperatures: ArrayLike) -> NDArray[np.uint64]:
    """Tabulate the probability of a spin to be +1 after its step, in units of 2⁻³².

    With n of its four neighbours up, h = 2n − 4 and P(+1) = 1 / (1 + exp(−2h / T)) = (1 + tanh(h / T)) / 2.

    Args:
        temperatures: Shape (snapshots,), in units of J / k_B, positive; infinity is allowed.

    Returns:
        Shape (snapshots, 5), for n = 0 … 4: P(+1) · 2³² to the nearest integer, so each probability is within
        1.2e-10 of its exact value, and the symmetry under s → −s is exact.

    Raises:
        ValueError: The temperatures are not a 1-D array of at least one positive number.

    Example:
        >>> acceptance_thresholds([2.0, np.inf]) / 2**32
        array([[0.01798621, 0.11920292, 0.5       , 0.88079708, 0.98201379],
               [0.5       , 0.5       , 0.5       , 0.5       , 0.5       ]])
    """
    field = np.arange(-4.0, 5.0, 2.0)
    with np.errstate(over="ignore"):  # 4 / T may exceed the largest float, and tanh(∞) = 1 is what is meant
        probability = (1.0 + np.tanh(field / _temperatures(temperatures)[:, None])) / 2.0
    return np.rint(probability * 2.0**32).astype(np.uint64)


def sample(
    temperatures: ArrayLike,
    steps: int,
    side: int = 16,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> NDArray[np.int8]:
    """Draw one Ising snapshot per temperature by quenching from T = ∞ with Glauber dynamics (Glauber 1963).

    Square lattice, periodic boundary, J = 1. Each snapshot starts with every spin ±1 with equal probability
    and makes `steps` single-spin steps: a site chosen uniformly at random is flipped with probability
    1 / (1 + exp(ΔE / T)), with E = −Σ s_i s_j over the 2 · side² bonds that join each site to its right and
    its lower neighbour. For side 2 those are two bonds per neighbouring pair.

    A snapshot depends on its temperature, `steps`, `side`, `seed` and its position in `temperatures` only:
    not on the number of threads, nor on how many snapshots follow it, nor on `progress`. More steps continue
    the same trajectory.

    Args:
        temperatures: Shape (snapshots,), in units of J / k_B, positive. Infinity is allowed (each chosen spin
            is redrawn at random); zero is not, any small positive number acts as its limit.
        steps: Single-spin steps per snapshot, 0 to 10¹². One sweep is side² steps.
        side: Sites along each edge, 2 to 4096.
        seed: 0 to 2⁶⁴ − 1.
        progress: Called with the number of snapshots finished so far, every tenth of a second or so (but
            after no fewer snapshots than there are threads) and at the end.

    Returns:
        Shape (snapshots, side, side), spins ±1.

    Raises:
        ValueError: An argument is outside what is stated above.

    Notes:
        Each snapshot has a splitmix64 generator of its own, started at the snapshot's position in the
        splitmix64 sequence of `seed`. A step uses one 64-bit number: the high half chooses the site, the low
        half the spin. The site is ⌊high · side² / 2³²⌋, exactly uniform if side is a power of two; otherwise
        the probabilities of two sites differ by a fraction of at most side² / 2³² (5e-8 at side 15). The
        streams are stretches of one cycle of 2⁶⁴ numbers, and the chance that any two overlap is about
        snapshots² · steps / 2⁶⁴ (7e-6 for 50 000 snapshots of 50 000 steps).

    Example:
        Above the transition the energy per site agrees with Onsager's exact −0.6601 at T = 3.5.

        >>> spins = sample(np.full(20_000, 3.5), steps=10_000, side=16, seed=0)
        >>> spins.shape, spins.dtype
        ((20000, 16, 16), dtype('int8'))
        >>> energy = -(spins * (np.roll(spins, 1, axis=1) + np.roll(spins, 1, axis=2))).mean()
        >>> print(f"{energy:.2f}")
        -0.66
    """
    thresholds = acceptance_thresholds(temperatures)
    neighbours = neighbour_table(side)
    steps = _integer("steps", steps, range(10**12 + 1))
    seed = _integer("seed", seed, range(2**64))
    snapshots, sites = len(thresholds), len(neighbours)
    spins = np.empty((snapshots, sites), dtype=np.int8)
    # Chunks also let the interpreter see an interrupt; each is at least one snapshot per thread.
    chunk = max(numba.get_num_threads(), CHUNK_STEPS // (steps + sites))
    for first in range(0, snapshots, chunk):
        last = min(first + chunk, snapshots)
        _run(spins[first:last], thresholds[first:last], neighbours, steps, np.uint64(seed), np.uint64(first))
        if progress is not None:
            progress(last)
    return spins.reshape(snapshots, side, side)


def _integer(name: str, value: object, allowed: range) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or int(value) not in allowed:
        raise ValueError(f"{name} must be an integer from {allowed[0]} to {allowed[-1]}, got {value!r}")
    return int(value)


def _temperatures(values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"temperatures must be numbers, got {values!r}") from None
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"temperatures must be a 1-D array with at least one entry, got shape {array.shape}")
    good = array > 0  # false for NaN too
    if not good.all():
        index = int(np.argmin(good))
        raise ValueError(f"temperatures must be positive, infinity allowed, got {array[index]} at index {index}")
    return array


@numba.njit
def _mix(state):
    """Map a splitmix64 state to its random number."""
    state = (state ^ (state >> _30)) * _MULTIPLY_1
    state = (state ^ (state >> _27)) * _MULTIPLY_2
    return state ^ (state >> _31)


@numba.njit
def _draw(records, state, sites, thresholds):
    """Draw the coming steps: each a site, and how many neighbours (0 to 5) must be up for it to become up.

    No number depends on the one before, nor on the lattice: the loop compiles to vector instructions.
    """
    t0, t1, t2, t3, t4 = thresholds
    for j in range(len(records)):
        number = _mix(state + np.uint64(j + 1) * _GAMMA)
        site = ((number >> _32) * sites) >> _32
        u = number & _LOW_HALF
        # Up iff u < thresholds[n]; as they rise with n: iff n ≥ the number of thresholds that u reaches.
        low = np.uint64(u >= t0) + np.uint64(u >= t1)
        needed = low + np.uint64(u >= t2) + np.uint64(u >= t3) + np.uint64(u >= t4)
        records[j] = (site << _3) | needed


@numba.njit
def _walk(up, records, neighbours):
    """Make the drawn steps, with no branch for the processor to mispredict."""
    for record in records:
        site = record >> _3
        above, below, left, right = neighbours[site]
        up[site] = up[above] + up[below] + up[left] + up[right] >= (record & _7)


# Compiled at the first call of each process, in two seconds. Numba's cache on disk would save 1.5 of them,
# but that call then raises if a kept file is damaged or names another module, or if the disk is full.
@numba.njit(parallel=True)
def _run(spins, thresholds, neighbours, steps, seed, first):
    """Fill spins, shape (snapshots, side²), with the snapshots number first, first + 1 and so on."""
    sites = spins.shape[1]
    for snapshot in numba.prange(len(spins)):
        # `up` holds 1 for a spin +1 and 0 for a spin −1
        up = np.empty(sites, np.uint8)
        records = np.empty(_BLOCK, np.uint64)
        state = _mix(seed + (first + np.uint64(snapshot + 1)) * _GAMMA)
        for site in range(sites):
            state += _GAMMA
            up[site] = _mix(state) >> _63
        t = thresholds[snapshot]
        levels = (t[0], t[1], t[2], t[3], t[4])
        done = 0
        while done < steps:
            block = min(_BLOCK, steps - done)
            _draw(records[:block], state, np.uint64(sites), levels)
            _walk(up, records[:block], neighbours)
            state += np.uint64(block) * _GAMMA
            done += block
        for site in range(sites):
            spins[snapshot, site] = 2 * np.int64(up[site]) - 1
