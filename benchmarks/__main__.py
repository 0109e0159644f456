"""Every benchmark, one after the other; each prints its ratios."""

from benchmarks import (
    bench_convolution,
    bench_fisher,
    bench_glauber,
    bench_gpu,
    bench_prime,
    bench_pruning,
    bench_results,
    bench_startup,
    bench_training,
)

for bench in (
    bench_startup,
    bench_results,
    bench_training,
    bench_convolution,
    bench_glauber,
    bench_prime,
    bench_pruning,
    bench_fisher,
    bench_gpu,
):
    print(f"\n{bench.__doc__.splitlines()[0]}")
    bench.main()
