"""What does the Fisher diagonal of a snapshot cost? Run as `python -m benchmarks.bench_fisher`."""

import time

import torch
from torch.nn.functional import cross_entropy

from lit_grok.measures.fisher import fisher_diagonal
from lit_grok.networks import IsingCNN, ModularMLP

P, TRAIN, BATCH, ALTERNATIONS = 113, 8_938, 64, 20
VARIANTS = ("classif_logits", "regression")


def seconds(function, *arguments):
    """Time one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def epoch(network, optimizer, pairs, targets):
    """Train one epoch of mod_add and do nothing else: the fastest plain loop."""
    for x, y in zip(pairs.split(BATCH), targets.split(BATCH), strict=True):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()


def against_nngeometry(name, network, inputs):
    """Time both methods on the same inputs, and print the ratio and how far apart they are."""
    for variant in VARIANTS:
        fisher_diagonal(network, inputs, variant)
        exact = min(seconds(fisher_diagonal, network, inputs, variant) for _ in range(5))
        start = time.perf_counter()
        reference = fisher_diagonal(network, inputs, variant, "nngeometry")
        slow = time.perf_counter() - start
        difference = (fisher_diagonal(network, inputs, variant) - reference).norm() / reference.norm()
        print(
            f"{name:>8} {variant:>14}: {1e3 * exact:7.1f} ms, nngeometry {1e3 * slow:8.0f} ms, "
            f"ratio {slow / exact:5.0f}, relative difference {difference:.1e}"
        )


def main():
    """Alternate epochs and snapshots, so that a busy machine treats them alike, and keep the best of each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = ModularMLP(P)
    everything = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    pairs = everything[torch.randperm(len(everything))[:TRAIN]]
    targets = pairs.sum(1) % P
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5, fused=True)
    best = dict.fromkeys(("epoch", *VARIANTS), float("inf"))
    for _ in range(ALTERNATIONS):
        best["epoch"] = min(best["epoch"], seconds(epoch, network, optimizer, pairs, targets))
        for variant in VARIANTS:
            best[variant] = min(best[variant], seconds(fisher_diagonal, network, pairs, variant))
    print(f"one thread; mod_add epoch of training alone: {1e3 * best['epoch']:.1f} ms")
    for variant in VARIANTS:
        share = best[variant] / best["epoch"]
        print(f"{'mod_add':>8} {variant:>14}: {1e3 * best[variant]:7.1f} ms, {share:.0%} of the epoch")

    against_nngeometry("mod_add", network, pairs)
    spins = 2.0 * torch.randint(2, (300, 16, 16)) - 1
    against_nngeometry("Ising", IsingCNN(), spins)


if __name__ == "__main__":
    main()
