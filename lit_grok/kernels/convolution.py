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

from collections.abc import Mapping
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_grok.kernels.compiled import CompiledSteps, arrays, compiled, inlined
from lit_grok.kernels.losses import loss_and_hits, loss_gradient
from lit_grok.kernels.perceptron import backward, forward, hidden_units
from lit_grok.kernels.updates import update

_LANES = 16  # samples are padded with zeros to a multiple of this, so that vector loops have no remainder
_CHUNK = 512  # images evaluated at a time
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


@inlined
def _block(padded, weight, bias, output, argmax):
    """The block of one replica, on images that have their border."""
    filters, H2, W2, _ = output.shape
    window = np.empty((4, padded.shape[-1]), np.float32)
    for i in range(H2):
        for j in range(W2):
            for o in range(filters):
                window[:] = bias[o]
                for c in range(len(padded)):
                    _correlate(padded[c], 2 * i, 2 * j, weight[o, c], window)
                _pool(window, output[o, i, j], argmax[o, i, j])


@inlined
def _block_gradient(grad_output, padded, weight, argmax, grad_images, grad_weight, grad_bias):
    """Write its gradients, those of the images where there is room for them."""
    filters, H2, W2, B = grad_output.shape
    C = len(padded)
    padded_grad = _with_border(filters, 2 * H2, 2 * W2, B)  # with respect to the pre-activations
    window = np.zeros((4, padded.shape[-1]), np.float32)  # the gradients of four pre-activations
    grad_weight[:] = 0
    grad_bias[:] = 0
    for i in range(H2):
        for j in range(W2):
            for o in range(filters):
                grad_bias[o] += _unpool(grad_output[o, i, j], argmax[o, i, j], window)
                for c in range(C):
                    _add_filter_gradient(padded[c], 2 * i, 2 * j, window, grad_weight[o, c])
                if len(grad_images) > 0:
                    for k in range(4):
                        _copy(window[k], padded_grad[o, 2 * i + 1 + k // 2, 2 * j + 1 + k % 2])
    if len(grad_images) == 0:
        return
    spread = np.empty_like(window)  # the gradients of the four inputs in their place
    flipped = weight[..., ::-1, ::-1].copy()
    for i in range(H2):
        for j in range(W2):
            for c in range(C):
                spread[:] = 0
                for o in range(filters):
                    _correlate(padded_grad[o], 2 * i, 2 * j, flipped[o, c], spread)
                for k in range(4):
                    _copy(spread[k], grad_images[c, 2 * i + k // 2, 2 * j + k % 2])


@compiled
def _forward(images, weight, bias, output, argmax):
    C, H, W, B = images.shape[1:]
    padded = _with_border(C, H, W, B)
    for r in range(len(weight)):
        if r < len(images):  # else all replicas share the one that is there
            _fill(padded, images[r])
        _block(padded, weight[r], bias[r], output[r], argmax[r])


@compiled
def _backward(grad_output, images, weight, argmax, grad_images, grad_weight, grad_bias):
    C, H, W, B = images.shape[1:]
    padded = _with_border(C, H, W, B)
    for r in range(len(weight)):
        if r < len(images):
            _fill(padded, images[r])
        room = grad_images[r] if len(grad_images) > 0 else grad_images.reshape(0, H, W, B)
        _block_gradient(grad_output[r], padded, weight[r], argmax[r], room, grad_weight[r], grad_bias[r])


# A whole training step of two such blocks and a perceptron on what they find.


def ising_steps(layers: np.ndarray, offsets: Mapping[str, int], side: int, squared: bool) -> CompiledSteps:
    """The steps of conv1 (1 → 2 filters) and conv2 (2 → 4), each with ReLU and pooling, and a perceptron after them.

    Args:
        layers: Of `lit_grok.kernels.perceptron.layer_table`.
        offsets: Where the weight and the bias of ``conv1`` and of ``conv2`` start in a row.
        side: Linear size of the images, a multiple of 4.
        squared: Squared error instead of cross entropy.
    """
    places = np.array([[offsets[f"{name}.{kind}"] for kind in ("weight", "bias")] for name in ("conv1", "conv2")])

    def prepare(images: Tensor) -> np.ndarray:
        return images.reshape(len(images), 1, side, side).movedim(0, -1).float().contiguous().numpy()

    return CompiledSteps(prepare, *(partial(step, layers, places, squared) for step in (_gradient, _train, _evaluate)))


@inlined
def _filters(row, places, block):
    """Weight (filters, channels, 3, 3) and bias of conv1 (0) or conv2 (1) in a row."""
    weight, bias = places[block]
    channels = block + 1
    filters = 2 * channels
    return row[weight : weight + filters * channels * 9].reshape(filters, channels, 3, 3), row[bias : bias + filters]


@inlined
def _features(theta, places, images, padded, found, argmax):
    """Run both blocks on images (1, L, L, B); ``padded``, ``found`` and ``argmax`` hold each one's input and output."""
    _fill(padded[0], images)
    for block in range(2):
        weight, bias = _filters(theta, places, block)
        _block(padded[block], weight, bias, found[block], argmax[block])
        if block == 0:
            _fill(padded[1], found[0])


@inlined
def _rooms(L, B):
    """Room for what enters and leaves both blocks."""
    padded = (_with_border(1, L, L, B), _with_border(2, L // 2, L // 2, B))
    first, second = (2, L // 2, L // 2, B), (4, L // 4, L // 4, B)
    found = (np.empty(first, np.float32), np.empty(second, np.float32))
    return padded, found, (np.empty(first, np.int8), np.empty(second, np.int8))


@inlined
def _transpose(source, target):
    """Write (n, m) into (m, n)."""
    for i in range(len(target)):
        for j in range(len(source)):
            target[i, j] = source[j, i]


@inlined
def _step(layers, places, squared, theta, grad, images, targets):
    _, L, _, B = images.shape
    padded, found, argmax = _rooms(L, B)
    _features(theta, places, images, padded, found, argmax)
    x = np.empty((B, layers[0, 0]), np.float32)
    _transpose(found[1].reshape(layers[0, 0], B), x)
    hidden = np.empty(B * hidden_units(layers, 0), np.float32)
    logits = np.empty((B, layers[-1, 1]), np.float32)
    room = np.empty(2 * B * layers[:, 1].max(), np.float32)
    grad_x = np.empty_like(x)
    forward(theta, layers, 0, x, hidden, logits)
    loss = loss_gradient(logits, targets, squared)
    backward(theta, grad, layers, 0, x, hidden, logits, room, grad_x)
    grad_found = (np.empty_like(found[0]), np.empty_like(found[1]))
    _transpose(grad_x, grad_found[1].reshape(layers[0, 0], B))
    weight, _ = _filters(theta, places, 1)
    grad_weight, grad_bias = _filters(grad, places, 1)
    _block_gradient(grad_found[1], padded[1], weight, argmax[1], grad_found[0], grad_weight, grad_bias)
    weight, _ = _filters(theta, places, 0)
    grad_weight, grad_bias = _filters(grad, places, 0)
    nowhere = np.empty((0, L, L, B), np.float32)
    _block_gradient(grad_found[0], padded[0], weight, argmax[0], nowhere, grad_weight, grad_bias)
    return loss


@compiled
def _gradient(layers, places, squared, theta, grad, images, targets):
    return _step(layers, places, squared, theta, grad, images, targets)


@compiled
def _train(layers, places, squared, theta, grad, kind, first, second, done, hyper, images, targets, batch_size):
    for start in range(0, len(targets), batch_size):
        batch = images[..., start : start + batch_size]
        _step(layers, places, squared, theta, grad, batch, targets[start : start + batch_size])
        done += 1
        update(theta, grad, kind, first, second, done, hyper)


@compiled
def _evaluate(layers, places, squared, theta, images, targets):
    _, L, _, N = images.shape
    loss, hits = 0.0, 0
    for start in range(0, N, _CHUNK):
        part, labels = images[..., start : start + _CHUNK], targets[start : start + _CHUNK]
        B = len(labels)
        padded, found, argmax = _rooms(L, B)
        _features(theta, places, part, padded, found, argmax)
        x = np.empty((B, layers[0, 0]), np.float32)
        _transpose(found[1].reshape(layers[0, 0], B), x)
        hidden = np.empty(B * hidden_units(layers, 0), np.float32)
        logits = np.empty((B, layers[-1, 1]), np.float32)
        forward(theta, layers, 0, x, hidden, logits)
        more, right = loss_and_hits(logits, labels, squared)
        loss += more
        hits += right
    return loss / N, hits / N
