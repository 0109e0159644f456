"""How much does a pruning curve of modular addition cost? Run as `python -m benchmarks.bench_pruning`."""

import time

import torch
import torch.nn.functional as F

from lit_grok.measures.pruning import pruning_curve
from lit_grok.networks import ModularMLP

P, HIDDEN, EPOCHS, REPEATS = 113, 512, 40, 30


def trained(pairs, targets):
    """Train a network at the paper's setting; its dead and its large weights are what a curve costs time on."""
    network = ModularMLP(P, [HIDDEN])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)
    for _ in range(EPOCHS):
        for x, y in zip(pairs.split(64), targets.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network


def seconds(function):
    """Time one call: of the processor, since there is one thread and other processes are not to count."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    """Print both times, each the fastest of several, and their ratio."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))[torch.randperm(P * P)]
    targets = pairs.sum(1) % P
    network = trained(pairs[:8938], targets[:8938])
    inputs, labels = pairs[8938:], targets[8938:]
    fractions = torch.linspace(0, 1, 101, dtype=torch.float64)

    @torch.inference_mode()
    def evaluate():
        logits = network(inputs)
        return (logits.argmax(1) == labels).float().mean(), F.cross_entropy(logits, labels)

    def curve():
        return pruning_curve(network, inputs, labels, fractions)

    accuracy, loss = evaluate()
    print(f"after {EPOCHS} epochs: test accuracy {accuracy:.3f}, test loss {loss:.3f}")
    curve()  # compiles
    # Not in alternation: an evaluation with the caches full of a curve is slow, which would flatter the curve.
    one, all_of_them = (1e3 * min(seconds(f) for _ in range(REPEATS)) for f in (evaluate, curve))
    print(f"one evaluation of {len(inputs)} test inputs: {one:.1f} ms")
    print(f"curve of {len(fractions)} fractions:         {all_of_them:.0f} ms = {all_of_them / one:.1f} evaluations")


if __name__ == "__main__":
    main()
