"""How fast is the Glauber sampler? Run as `python -m benchmarks.bench_glauber`."""

import time

import numba
import numpy as np

from datamodules.glauber import sample

SIDE, STEPS, ALTERNATIONS = 16, 50_000, 7
TEMPERATURES = np.linspace(1.0, 3.5, 50)


@numba.njit(parallel=True)
def straightforward(temperatures, steps, side, seed):
    """Write the rule down as it is read, one branch and one exponential per step."""
    spins = np.empty((len(temperatures), side, side), np.int8)
    for snapshot in numba.prange(len(temperatures)):
        np.random.seed(seed + snapshot)  # noqa: NPY002 (compiled: numba's generator, one per thread)
        s = spins[snapshot]
        for i in range(side):
            for j in range(side):
                s[i, j] = 1 if np.random.random() < 0.5 else -1  # noqa: NPY002
        for _ in range(steps):
            i, j = np.random.randint(side), np.random.randint(side)  # noqa: NPY002
            field = s[i - 1, j] + s[(i + 1) % side, j] + s[i, j - 1] + s[i, (j + 1) % side]
            delta = 2 * s[i, j] * field
            if np.random.random() < 1 / (1 + np.exp(delta / temperatures[snapshot])):  # noqa: NPY002
                s[i, j] = -s[i, j]
    return spins


def seconds(function, temperatures):
    """Time one call."""
    start = time.perf_counter()
    function(temperatures, STEPS, SIDE, 0)
    return time.perf_counter() - start


def main():
    """Alternate the two, so that a busy machine treats them alike, and keep the best of each."""
    few, many = np.repeat(TEMPERATURES, 2), np.repeat(TEMPERATURES, 20)
    for function in (straightforward, sample):
        function(TEMPERATURES, 1, SIDE, 0)  # compile
    rates = {"straightforward loop": 0.0, "sample": 0.0}
    for _ in range(ALTERNATIONS):
        for name, function, temperatures in zip(rates, (straightforward, sample), (few, many), strict=True):
            rate = len(temperatures) * STEPS / seconds(function, temperatures) / 1e6
            rates[name] = max(rates[name], rate)
    print(f"side {SIDE}, {STEPS} steps, T from 1.0 to 3.5, {numba.get_num_threads()} threads")
    for name, rate in rates.items():
        print(f"{name:>21}: {rate:6.0f} million steps/s")
    print(f"{'ratio':>21}: {rates['sample'] / rates['straightforward loop']:6.1f}")


if __name__ == "__main__":
    main()
