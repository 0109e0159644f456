"""Multilayer perceptrons of R networks at once, as fast as a CPU can multiply.

A training step of modular addition is three products of 64×512×113 numbers and little else, so two things count: how
fast these are, and how few calls stand around them.

* The products run through oneDNN, a part of PyTorch which on processors with 512-bit vectors takes 41 to 49 µs for what
  the library behind `torch.bmm` does in 68 to 77.
* The first layer, which looks up two rows and adds them, is one compiled pass forward and one backward.
* All layers are one node of the graph: autograd spends 20 to 40 µs on each.

Replica r is computed as if it were alone, whatever its neighbours are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_grok.compiled import arrays, compiled

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LARGE = 2**21  # multiplications from which oneDNN's start of some 12 µs is won back


def relu_mlp(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs of R perceptrons: linear layers with a ReLU between them.

    x₁ = relu(W₀ x₀ + b₀), …, y = W_L x_L + b_L. Pairs of residues (a, b) stand for their two-hot x₀ of length 2P:
    W₀ x₀ = W₀[:, a] + W₀[:, P + b].

    The fast way needs float32 on the CPU; all else runs as plain PyTorch operations. It is for training: it has a
    first derivative only, and no ``torch.func`` transform applies. relu′(0) = 0 and a NaN stays one, as in PyTorch.

    Args:
        inputs: x₀, shape (R, B, n); or integers from 0 to P − 1, shape (R, B, 2).
        weights: Two or more, of shape (R, m, n) or (R, m, 2P), first to last; for pairs the first is read fastest
            where its ``mT`` is contiguous.
        biases: As many, each of shape (R, m).

    Returns:
        Shape (R, B, m) with the last m.

    Raises:
        IndexError: For a residue below 0 or above P − 1 (checked by the fast way alone).

    Example:
        >>> first = torch.tensor([[[1.0, 2.0, 10.0, 20.0], [0.0, -1.0, 0.0, -1.0]]])  # m = 2, P = 2
        >>> weights, biases = [first, torch.ones(1, 1, 2)], [torch.zeros(1, 2), torch.ones(1, 1)]
        >>> relu_mlp(torch.tensor([[[1, 0], [1, 1]]]), weights, biases)
        tensor([[[13.],
                 [23.]]])
        >>> relu_mlp(torch.tensor([[[0.0, 1, 1, 0], [0, 1, 0, 1]]]), weights, biases)
        tensor([[[13.],
                 [23.]]])
    """
    parameters = (*weights, *biases)
    fits = all(t.is_cpu and t.dtype is torch.float32 for t in parameters)
    if fits and inputs.is_cpu and inputs.dtype in (torch.float32, torch.int64):
        return _ReLUPerceptron.apply(inputs, *parameters)
    first = _look_up if _are_pairs(inputs) else _affine
    x = first(inputs, weights[0], biases[0])
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = _affine(F.relu(x), weight, bias)
    return x


def _are_pairs(inputs: Tensor) -> bool:
    return not inputs.is_floating_point()


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Not baddbmm, which rounds differently for one replica and for several.
    return torch.bmm(inputs, weight.mT) + bias.unsqueeze(1)


def _look_up(pairs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    R, _, columns = weight.shape
    rows = pairs + torch.arange(0, R * columns, columns // 2, device=pairs.device).view(R, 1, 2)
    a, b = F.embedding(rows.permute(2, 0, 1), weight.mT.flatten(0, 1)).unbind()
    return a + b + bias.unsqueeze(1)


class _ReLUPerceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        weights, biases = parameters[:layers], parameters[layers:]
        if _are_pairs(inputs):
            x = torch.empty(*inputs.shape[:2], weights[0].shape[1])
            if not _look_up_relu(*arrays(inputs, weights[0].mT, biases[0], x)):
                raise IndexError(f"pairs of residues: allowed are 0 to {weights[0].shape[2] // 2 - 1}")
        else:
            x = _product(inputs, weights[0], biases[0]).relu_()
        activations = [inputs, x]
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            activations.append(_product(activations[-1], weight, bias).relu_())
        ctx.save_for_backward(*activations, *weights)
        return _product(activations[-1], weights[-1], biases[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        layers = len(saved) // 2
        activations, weights = saved[:layers], saved[layers:]
        pairs = _are_pairs(activations[0])
        grad_weights, grad_biases = [], []
        for i in reversed(range(1, layers)):
            grad_weights.append(_product(grad.mT, activations[i].mT))
            grad_biases.append(grad.sum(1))
            grad = _product(grad, weights[i].mT)
            if i > 1 or not pairs:
                grad = torch.ops.aten.threshold_backward(grad, activations[i], 0)
        grad_inputs = None
        if pairs:
            R, m, columns = weights[0].shape
            grad_rows, grad_bias = torch.empty(R, columns, m), torch.empty(R, m)
            _scatter(*arrays(grad, *activations[:2], grad_rows, grad_bias))
            grad_weights.append(grad_rows.mT)
            grad_biases.append(grad_bias)
        else:
            grad_weights.append(_product(grad.mT, activations[0].mT))
            grad_biases.append(grad.sum(1))
            if ctx.needs_input_grad[0]:
                grad_inputs = _product(grad, weights[0].mT)
        return grad_inputs, *reversed(grad_weights), *reversed(grad_biases)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a[r] @ b[r]ᵀ + bias[r] of every r."""
    R, B, n = a.shape
    if not _ONEDNN or B * n * b.shape[1] < _LARGE:
        return torch.bmm(a, b.mT) if bias is None else _affine(a, b, bias)
    biases = [None] * R if bias is None else bias.contiguous().unbind()  # oneDNN reads past the end of a strided one
    multiply = torch.ops.mkldnn._linear_pointwise
    products = [
        multiply(left, right, shift, "none", [], "")
        for left, right, shift in zip(a.unbind(), b.unbind(), biases, strict=True)
    ]
    return products[0].unsqueeze(0) if R == 1 else torch.stack(products)


@compiled
def _look_up_relu(pairs, rows, bias, output):
    """Write relu(rows[a] + rows[P + b] + bias); returns whether all these rows exist."""
    R, B, m = output.shape
    P = rows.shape[1] // 2
    for r in range(R):
        for n in range(B):
            a, b = pairs[r, n]
            if a < 0 or a >= P or b < 0 or b >= P:
                return False
            for j in range(m):
                x = rows[r, a, j] + rows[r, P + b, j] + bias[r, j]
                output[r, n, j] = np.float32(0) if x <= 0 else x
    return True


@compiled
def _scatter(grad, pairs, output, grad_rows, grad_bias):
    """Write the gradients of the rows and of the bias, for the gradient of the output."""
    R, B, m = output.shape
    P = grad_rows.shape[1] // 2
    grad_rows[:] = 0
    grad_bias[:] = 0
    for r in range(R):
        for n in range(B):
            a, b = pairs[r, n]
            for j in range(m):
                x = np.float32(0) if output[r, n, j] <= 0 else grad[r, n, j]
                grad_rows[r, a, j] += x
                grad_rows[r, P + b, j] += x
                grad_bias[r, j] += x
