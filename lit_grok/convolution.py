"""One convolution block of R networks, compiled for the CPU: max_pool2d(relu(conv2d(x, w, b, padding=1)), 2).

The networks of this laboratory are tiny, a few 3×3 filters on 16×16 spins. At that size PyTorch's general
routines cost far more than the arithmetic: of a plain training step of the Ising CNN, half is the backward
pass of its convolutions and a fifth is the pooling. Here the block is one pass forward and one backward, and
the pre-activations are never written to memory. On one thread, with 300 snapshots, the whole step falls from
2.9 to 0.9 ms, or to 0.55 ms per network if ten are trained together (`benchmarks/bench_convolution.py`).

Three choices carry the speed:

* The samples are innermost in memory, (replica, channel, row, column, sample), so every inner loop runs over
  them and becomes vector instructions. Shapes are PyTorch's own and only the strides differ: the output of
  one block is the input of the next as it is, and inputs stored like this need no transposition.
* The images get their border of zeros first, so that no loop asks whether it is at the edge.
* A pooling window, 2×2 pre-activations that see 4×4 inputs, is computed and pooled in the first cache.

There is no parallel loop over replicas: a thread that numba started before `torch.set_flush_denormal` does not obey
it, so the bits of a result would depend on who computed it, and one replica alone would gain nothing.
"""

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_grok.compiled import arrays, compiled

_LANES = 16  # samples are padded with zeros to a multiple of this, so that vector loops have no remainder
_DEAD = np.int8(4)  # stands where the position 0 … 3 of a window's maximum would, if relu blocks its gradient


def conv_relu_pool(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return max_pool2d(relu(conv2d(inputs, weight, bias, padding=1)), 2) of R networks at once.

    Replica r is computed bit for bit as if it were alone, whatever its neighbours are. The gradient is that
    of PyTorch: a tie goes to the first maximum of the window in row-major order, relu′(0) = 0, and a NaN wins.

    The compiled loops need float32 on the CPU and even H and W; all else runs as plain PyTorch operations.
    They are for training: they have a first derivative only, and no ``torch.func`` transform applies to them.

    Args:
        inputs: Shape (R, B, C, H, W). Networks that share their inputs take (1, B, C, H, W), or a tensor
            expanded from it; these are padded once.
        weight: Shape (R, O, C, 3, 3).
        bias: Shape (R, O).

    Returns:
        Shape (R, B, O, H // 2, W // 2).

    Example:
        >>> spins, weight, bias = torch.ones(1, 5, 1, 4, 4), torch.ones(3, 2, 1, 3, 3), torch.zeros(3, 2)
        >>> pooled = conv_relu_pool(spins, weight, bias)
        >>> pooled.shape
        torch.Size([3, 5, 2, 2, 2])
        >>> pooled.unique()  # every window holds a site whose eight neighbours are all inside
        tensor([9.])
    """
    inputs = inputs.expand(len(weight), -1, -1, -1, -1)
    block = _ConvReluPool.apply if _fits(inputs, weight, bias) else torch.vmap(_plain)
    return block(inputs, weight, bias)


def _fits(inputs: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the compiled loops may run. They trust shapes: what does not fit, PyTorch shall refuse."""
    R, _, C, H, W = inputs.shape
    filters = weight.shape[1]
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (inputs, weight, bias))
        and (weight.shape, bias.shape) == ((R, filters, C, 3, 3), (R, filters))
        and (H % 2, W % 2) == (0, 0)
    )


def _plain(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(inputs, weight, bias, padding=1)), 2)


class _ConvReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        R, B, _, H, W = inputs.shape
        shared = inputs.stride(0) == 0
        images = _samples_last(inputs[:1] if shared else inputs).contiguous()
        output = torch.empty(R, weight.shape[1], H // 2, W // 2, B)
        argmax = torch.empty_like(output, dtype=torch.int8)
        _forward(*arrays(images, weight, bias, output, argmax))
        ctx.save_for_backward(images, weight, argmax)
        return output.movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        images, weight, argmax = ctx.saved_tensors
        R, filters = weight.shape[:2]
        grad_inputs = torch.empty(R if ctx.needs_input_grad[0] else 0, *images.shape[1:])
        grad_weight = torch.zeros(weight.shape)
        grad_bias = torch.zeros(R, filters)
        grads = (grad_inputs, grad_weight, grad_bias)
        _backward(*arrays(_samples_last(grad_output), images, weight, argmax, *grads))
        return grad_inputs.movedim(-1, 1) if len(grad_inputs) else None, grad_weight, grad_bias


def _samples_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1)


# The loops over the samples n are the ones that the compiler vectorises. The 3×3 and 2×2 loops inside have
# constant bounds: it unrolls them and reads each input once. It may fuse a multiplication with an addition
# ("contract") and sum over the samples in vector order ("reassoc"); NaN and infinity keep their meaning.


@numba.njit(fastmath={"contract"})
def _correlate(image, i, j, k, window):
    """Add to the window (4, samples) the correlation of filter k with the 4×4 inputs at (i, j)."""
    # A tuple cannot overlap with the window in memory, so the filter is not read again after every write.
    kernel = (k[0, 0], k[0, 1], k[0, 2], k[1, 0], k[1, 1], k[1, 2], k[2, 0], k[2, 1], k[2, 2])
    for n in range(window.shape[1]):
        w0, w1, w2, w3 = window[0, n], window[1, n], window[2, n], window[3, n]
        for p in range(3):
            for q in range(3):
                w0 += kernel[3 * p + q] * image[i + p, j + q, n]
                w1 += kernel[3 * p + q] * image[i + p, j + q + 1, n]
                w2 += kernel[3 * p + q] * image[i + p + 1, j + q, n]
                w3 += kernel[3 * p + q] * image[i + p + 1, j + q + 1, n]
        window[0, n], window[1, n], window[2, n], window[3, n] = w0, w1, w2, w3


@numba.njit(fastmath={"contract"})
def _pool(window, output, argmax):
    """Maximum over each window and zero, and where it was; a NaN beats every number, as in PyTorch."""
    for n in range(len(output)):
        largest, where = window[0, n], np.int8(0)
        for position in range(1, 4):
            value = window[position, n]
            larger = value > largest or value != value
            where = np.int8(position) if larger else where
            largest = value if larger else largest
        dead = largest <= 0
        output[n] = np.float32(0) if dead else largest
        argmax[n] = _DEAD if dead else where


@numba.njit(fastmath={"contract", "reassoc"})
def _unpool(grad, argmax, window):
    """Send each gradient to the position of its maximum; returns their sum."""
    total = np.float32(0)
    for n in range(len(grad)):
        for position in range(4):
            window[position, n] = grad[n] if argmax[n] == position else np.float32(0)
        total += grad[n] if argmax[n] != _DEAD else np.float32(0)
    return total


@numba.njit(fastmath={"contract", "reassoc"})
def _add_filter_gradient(image, i, j, window, grad_filter):
    """Add to grad_filter (3, 3) the correlation of the window's gradients with the 4×4 inputs at (i, j)."""
    for p in range(3):  # a row of the filter at a time: each number read serves three sums
        s0 = s1 = s2 = np.float32(0)
        for n in range(window.shape[1]):
            for a in range(2):
                for b in range(2):
                    s0 += window[2 * a + b, n] * image[i + p + a, j + b, n]
                    s1 += window[2 * a + b, n] * image[i + p + a, j + b + 1, n]
                    s2 += window[2 * a + b, n] * image[i + p + a, j + b + 2, n]
        grad_filter[p, 0] += s0
        grad_filter[p, 1] += s1
        grad_filter[p, 2] += s2


@numba.njit
def _with_border(channels, H, W, samples):
    """Room for images with a border of zeros; the last samples, if there are fewer, are zero too."""
    return np.zeros((channels, H + 2, W + 2, (samples + _LANES - 1) // _LANES * _LANES), np.float32)


@numba.njit
def _copy(source, target):
    """Copy as many numbers as fit; a loop of its own is faster than assigning to a slice."""
    for n in range(min(len(source), len(target))):
        target[n] = source[n]


@numba.njit
def _fill(padded, images):
    """Write images (channels, H, W, samples) inside the border."""
    C, H, W, _ = images.shape
    for c in range(C):
        for i in range(H):
            for j in range(W):
                _copy(images[c, i, j], padded[c, i + 1, j + 1])


@compiled
def _forward(images, weight, bias, output, argmax):
    R, filters, H2, W2, B = output.shape
    C, H, W = images.shape[1:4]
    padded = _with_border(C, H, W, B)
    window = np.empty((4, padded.shape[-1]), np.float32)
    for r in range(R):
        if r < len(images):  # else all replicas share the one that is there
            _fill(padded, images[r])
        for i in range(H2):
            for j in range(W2):
                for o in range(filters):
                    window[:] = bias[r, o]
                    for c in range(C):
                        _correlate(padded[c], 2 * i, 2 * j, weight[r, o, c], window)
                    _pool(window, output[r, o, i, j], argmax[r, o, i, j])


@compiled
def _backward(grad_output, images, weight, argmax, grad_inputs, grad_weight, grad_bias):
    R, filters, H2, W2, B = grad_output.shape
    C, H, W = images.shape[1:4]
    padded = _with_border(C, H, W, B)
    padded_grad = _with_border(filters, H, W, B)  # with respect to the pre-activations
    window = np.zeros((4, padded.shape[-1]), np.float32)  # the gradients of four pre-activations
    spread = np.empty_like(window)  # the gradients of the four inputs in their place
    flipped = weight[..., ::-1, ::-1].copy()
    for r in range(R):
        if r < len(images):
            _fill(padded, images[r])
        for i in range(H2):
            for j in range(W2):
                for o in range(filters):
                    grad_bias[r, o] += _unpool(grad_output[r, o, i, j], argmax[r, o, i, j], window)
                    for c in range(C):
                        _add_filter_gradient(padded[c], 2 * i, 2 * j, window, grad_weight[r, o, c])
                    if len(grad_inputs) > 0:
                        for k in range(4):
                            _copy(window[k], padded_grad[o, 2 * i + 1 + k // 2, 2 * j + 1 + k % 2])
        if len(grad_inputs) > 0:
            for i in range(H2):
                for j in range(W2):
                    for c in range(C):
                        spread[:] = 0
                        for o in range(filters):
                            _correlate(padded_grad[o], 2 * i, 2 * j, flipped[r, o, c], spread)
                        for k in range(4):
                            _copy(spread[k], grad_inputs[r, c, 2 * i + k // 2, 2 * j + k % 2])
