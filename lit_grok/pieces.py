"""Loss, gradient and evaluation of replicas on the CPU, piece by piece, where only PyTorch can run their network.

How a product of matrices is rounded depends on its sizes, on where its factors lie in memory and on the threads that it
is split over. Each replica is therefore run by itself, its examples in pieces that depend on their number alone; all
pieces of all replicas are spread over the threads of the stack, and those of one replica are added up in order. So its
bits are the same whatever stands beside it, on however many threads, and a single replica uses several cores too.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_grok.replicas import ReplicaStack

#: Loss of logits (R, B, classes) and targets (R, B): of each input, or their sum.
Loss = Callable[[Tensor, Tensor, Literal["none", "sum"]], Tensor]

_MOST = 1024  # examples in a piece: of more the activations leave the cache


def piece_sizes(count: int) -> list[int]:
    """Sizes of the pieces of so many examples: a power of two of them, as even as can be and of at most 1024.

    Example:
        >>> piece_sizes(2822), piece_sizes(100)
        ([706, 706, 705, 705], [100])
    """
    pieces = 1
    while count > pieces * _MOST:
        pieces *= 2
    return [count // pieces + (i < count % pieces) for i in range(pieces)]


def gradient(stack: ReplicaStack, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Sum over replicas of each one's mean loss, and its gradient, shape (R, D), like the rows of the stack.

    Args:
        stack: The replicas, on the CPU.
        loss: Which.
        inputs: Shape (R, B, …).
        targets: Shape (R, B).
    """
    examples = targets.shape[1]

    def one(r: int, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        row = stack.flat.detach()[r : r + 1].requires_grad_()
        with torch.enable_grad():
            part = loss(stack.run(row, x), y, "sum") / examples
        return part.item(), torch.autograd.grad(part, row)[0][0]

    grad, total = torch.zeros_like(stack.flat), 0.0
    for r, (part, row) in _pieces(stack, one, inputs, targets):
        grad[r] += row
        total += part
    return total, grad


@torch.no_grad()
def evaluate(stack: ReplicaStack, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy of every replica, each of shape (R,), on inputs (R, N, …) and targets (R, N)."""

    def one(r: int, x: Tensor, y: Tensor) -> tuple[float, int]:
        with torch.no_grad():  # which is a matter of the thread
            logits = stack.run(stack.flat.detach()[r : r + 1], x)
            return loss(logits, y, "sum").item(), int((logits.argmax(-1) == y).sum())

    sums = torch.zeros(len(stack), 2, dtype=torch.float64)
    for r, found in _pieces(stack, one, inputs, targets):
        sums[r] += torch.tensor(found, dtype=torch.float64)
    losses, accuracies = (sums / targets.shape[1]).unbind(1)
    return losses.to(stack.flat.dtype), accuracies.float()


def predictions(stack: ReplicaStack, inputs: Tensor) -> Tensor:
    """The most probable class of every input, shape (R, N), for inputs (R, N, …)."""

    def one(r: int, x: Tensor) -> Tensor:
        with torch.no_grad():
            return stack.run(stack.flat.detach()[r : r + 1], x)[0].argmax(-1)

    found = [each for _, each in _pieces(stack, one, inputs)]
    return torch.cat(found).view(len(stack), -1)


def _pieces(stack: ReplicaStack, function: Callable, *examples: Tensor) -> list:
    """The number of a replica and what the function gives for it and a piece of its examples, for all, in order."""
    sizes = piece_sizes(examples[0].shape[1])
    parts = list(zip(*(tensor.split(sizes, 1) for tensor in examples), strict=True))

    def piece(number: int) -> tuple:
        r, k = divmod(number, len(sizes))
        return r, function(r, *(part[r : r + 1] for part in parts[k]))

    return stack.each(piece, range(len(stack) * len(sizes)))
