"""How fast are the compiled convolution blocks? Run as `python -m benchmarks.bench_convolution`.

One full-batch training step of the Ising CNN on one thread: forward, backward and Adam.
"""

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_grok.networks import IsingCNN
from lit_grok.replicas import ReplicaStack

SIDE, SNAPSHOTS, STEPS, ALTERNATIONS = 16, 300, 10, 20


def training_step(
    forward: Callable[[Tensor], Tensor], parameters: Iterable[nn.Parameter], inputs: Tensor
) -> Callable[[], None]:
    """Return a function that makes one step of all replicas; forward gives logits (R, B, 2)."""
    optimizer = torch.optim.Adam(parameters, lr=1e-4, weight_decay=0.1, fused=True)
    targets = torch.randint(0, 2, inputs.shape[:2]).flatten()

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(inputs).flatten(0, 1), targets, reduction="sum") / SNAPSHOTS
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Time one step."""
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS


def steps(R: int) -> dict[str, Callable[[], None]]:
    """The same step of R replicas, each on its own snapshots, in three ways."""
    inputs = torch.randn(R, SNAPSHOTS, SIDE, SIDE).sign()
    innermost = inputs.movedim(1, -1).contiguous().movedim(-1, 1)
    networks = [IsingCNN(SIDE) for _ in range(R)]
    weights = [parameter for network in networks for parameter in network.parameters()]

    def plain(x: Tensor) -> Tensor:
        return torch.stack([network(x[r]) for r, network in enumerate(networks)])

    first, second = (ReplicaStack([IsingCNN(SIDE) for _ in range(R)]) for _ in range(2))
    return {
        "torch.nn layers": training_step(plain, weights, inputs),
        "compiled blocks": training_step(first, first.parameters(), inputs),
        "the same, samples innermost": training_step(second, second.parameters(), innermost),
    }


def main() -> None:
    """Alternate the ways, so that a busy machine treats them alike, and keep the best of each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"ms per replica and step, side {SIDE}, {SNAPSHOTS} snapshots, one thread")
    for R in (1, 10):
        ways = steps(R)
        for step in ways.values():
            step()  # compile
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ALTERNATIONS):
            for name, step in ways.items():
                best[name] = min(best[name], seconds(step) / R)
        for name, value in best.items():
            print(f"R = {R:2}  {name:>27}: {1e3 * value:5.2f}")


if __name__ == "__main__":
    main()
