"""What does an epoch of the transformer on pairs of residues cost? Run as `python -m benchmarks.bench_prime`."""

import time
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from callbacks import (
    EmbeddingUniformityCallback,
    IPRCallback,
    ProgressMeasuresCallback,
    PruningCallback,
    WeightStatisticsCallback,
)
from datamodules import ModularArithmeticDataModule
from lit_grok import pieces
from lit_grok.measures.coverage import nearest_in_class, transpose_trained
from lit_grok.measures.fisher import fisher_diagonal
from lit_grok.networks import Transformer
from lit_grok.replicas import ReplicaStack

P, FRACTION, ROUNDS = 97, 0.3, 6


def milliseconds(function):
    """The fastest of some calls, after one to warm up."""
    function()
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return 1e3 * min(found)


def loss(logits, targets, reduction):
    """Cross entropy of logits (R, B, P)."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def compiled_gradient(stack, steps, pairs, targets):
    """The gradient of every replica by the compiled steps."""
    theta, grad = stack.flat.detach().numpy(), torch.empty_like(stack.flat).numpy()
    stack.each(lambda r: steps.gradient(theta[r], grad[r], pairs, targets))


def ways(layers, pairs, targets):
    """A full-batch gradient by a plain loop, in pieces the short way, and compiled; the products of its layers."""
    network = Transformer(P, layers=layers)

    def plain():
        network.zero_grad()
        cross_entropy(network(pairs), targets).backward()

    loop = milliseconds(plain)
    print(f"{layers} layer(s), {len(pairs)} pairs, one thread")
    print(f"  plain loop, three positions: {loop:7.1f} ms")
    for replicas, threads in ((1, 1), (1, 2), (10, 1), (10, 2)):
        stack = ReplicaStack([Transformer(P, layers=layers) for _ in range(replicas)], threads)
        inputs, labels = pairs.expand(replicas, -1, -1), targets.expand(replicas, -1)
        found = {"in pieces": partial(pieces.gradient, stack, loss, inputs, labels)}
        if steps := stack.compiled_steps(squared=False):
            found["compiled"] = partial(compiled_gradient, stack, steps, steps.prepare(pairs), targets.numpy())
        for way, gradient in found.items():
            took = milliseconds(gradient) / replicas
            with_what = f"{way}, {replicas:2d} replica(s) on {threads} thread(s)"
            print(f"  {with_what}: {took:7.1f} ms each, {loop / took:.1f} times less")
    if layers == 1:
        shapes = [(128, 512), (512, 128), (128, 128), (128, P)]
        factors = [(torch.randn(len(pairs), i), torch.randn(o, i), torch.randn(len(pairs), o)) for i, o in shapes]

        def products():
            for x, w, d in factors:
                x @ w.T, d @ w, d.T @ x

        print(f"  products of its layers, one after another: {milliseconds(products):7.1f} ms")


def analyses(data, layers=1):
    """One measurement of each analysis, of one replica."""
    network = Transformer(P, layers=layers)
    trained, tested = ((inputs[0], targets[0]) for inputs, targets in (data.split("train"), data.split("test")))
    progress = ProgressMeasuresCallback()
    progress._sign, progress._table = 1, data.dataset()
    stack = ReplicaStack([network])
    for name, function in {
        "uniformity": lambda: EmbeddingUniformityCallback().measure(network, tested),
        "coverage": lambda: (
            pieces.predictions(stack, tested[0][None]),
            transpose_trained(trained[0], tested[0], P),
        ),
        "coverage, at the end": lambda: nearest_in_class(*trained, *tested, P),
        "progress_measures": lambda: progress.measure(network, tested, trained),
        "ipr": lambda: IPRCallback().measure(network, tested),
        "weights": lambda: WeightStatisticsCallback().measure(network, tested),
        "pruning, 21 fractions": lambda: PruningCallback().measure(network, tested),
        "exact Fisher diagonal of 16 inputs": lambda: fisher_diagonal(network, trained[0][:16]),
    }.items():
        print(f"  {name}: {milliseconds(function):.1f} ms")


def main():
    """Ways through one and two layers, then the analyses."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = ModularArithmeticDataModule(P=P, train_fraction=FRACTION, batch_size=None)
    data.setup()
    pairs, targets = (part[0] for part in data.split("train"))
    for layers in (1, 2):
        ways(layers, pairs, targets)
    analyses(data)


if __name__ == "__main__":
    main()
