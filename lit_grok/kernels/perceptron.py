"""Training and evaluating one perceptron of linear layers with a ReLU between them, compiled.

The products are the price: for modular addition three of 64 × 512 × 113 numbers a step. They run through the BLAS of
SciPy, which compiled code reaches by ``np.dot``; looking up two columns of the first layer instead of multiplying a
two-hot, the ReLU, the loss and the optimiser take a fifth of the time of the products (`benchmarks/bench_training.py`).

A perceptron is an array (layers, 4) of n_in, n_out and where its weight and its bias start in the replica's row. The
weight of a layer is stored as (n_out, n_in); that of a first layer which looks up its inputs as (n_in, n_out).
"""

from collections.abc import Mapping
from functools import cache, partial

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from lit_grok.kernels.compiled import CompiledSteps, compiled, inlined
from lit_grok.kernels.losses import loss_and_hits, loss_gradient
from lit_grok.kernels.updates import update

_CHUNK = 256  # inputs evaluated at a time: more would leave the cache


@cache
def one_thread_a_product() -> None:
    """Let BLAS multiply on the calling thread alone, in this process, from now on.

    Replicas are spread over the cores already, and how a library splits a product over threads would decide its bits.
    """
    import scipy.linalg  # noqa: F401  (loads the library that np.dot calls in compiled code)

    ThreadpoolController().limit(limits=1, user_api="blas")


def layer_table(layers: Mapping[str, nn.Linear], offsets: Mapping[str, int]) -> np.ndarray:
    """The array that describes these layers, by name, first to last, to the functions of this module."""
    one_thread_a_product()
    rows = [
        (layer.in_features, layer.out_features, offsets[f"{name}.weight"], offsets[f"{name}.bias"])
        for name, layer in layers.items()
    ]
    return np.array(rows, dtype=np.int64)


def modular_steps(layers: np.ndarray, squared: bool) -> CompiledSteps:
    """The steps of a perceptron whose inputs are pairs of residues (a, b), the two columns a and P + b of its two-hot.

    Args:
        layers: Of `layer_table`; the weight of the first is stored as (2P, n_out).
        squared: Squared error instead of cross entropy.
    """
    prepare = partial(prepare_pairs, int(layers[0, 0]) // 2)
    return CompiledSteps(prepare, *(partial(step, layers, squared) for step in (_gradient, _train, _evaluate)))


def dense_steps(layers: np.ndarray, squared: bool) -> CompiledSteps:
    """The steps of a perceptron whose inputs are arrays of numbers, flattened to the first layer's n_in.

    Args:
        layers: Of `layer_table`.
        squared: Squared error instead of cross entropy.
    """

    def prepare(inputs: Tensor) -> np.ndarray | None:
        flat = inputs.flatten(1)
        fits = flat.dtype == torch.float32 and flat.shape[1] == layers[0, 0]
        return flat.contiguous().numpy() if fits else None

    return CompiledSteps(
        prepare, *(partial(step, layers, squared) for step in (_dense_gradient, _dense_train, _dense_evaluate))
    )


def prepare_pairs(P: int, pairs: Tensor) -> np.ndarray | None:
    """Pairs of residues modulo P, (N, 2), as compiled steps take them; None where they are nothing of the kind.

    Raises:
        IndexError: As `residues` does.
    """
    if pairs.dtype != torch.int64 or pairs.shape[1:] != (2,):
        return None
    residues(pairs, P)
    return pairs.contiguous().numpy()


def residues(pairs: Tensor, P: int) -> None:
    """Refuse pairs of anything but residues: compiled loops, and a flattened table, would read what is beside it.

    Raises:
        IndexError: For a number below 0 or above P − 1.
    """
    if pairs.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # nothing is computed yet; the first epoch has looked at all pairs
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < P:
        raise IndexError(f"pairs of residues: allowed are 0 to {P - 1}")


@inlined
def weight_and_bias(row, layers, i):
    """Weight (n_out, n_in) and bias (n_out,) of layer i in a row of parameters or gradients."""
    n_in, n_out, weight, bias = layers[i]
    return row[weight : weight + n_in * n_out].reshape(n_out, n_in), row[bias : bias + n_out]


@inlined
def _table(row, layers):
    """The same of a first layer that looks up: weight (n_in, n_out)."""
    n_in, n_out, weight, bias = layers[0]
    return row[weight : weight + n_in * n_out].reshape(n_in, n_out), row[bias : bias + n_out]


@inlined
def hidden_units(layers, first):
    """Number of neurons of the hidden layers from layer ``first`` on."""
    return layers[first:-1, 1].sum()


@inlined
def forward(theta, layers, first, x, hidden, logits):
    """Write the logits (B, n) of activations x (B, m) that enter layer ``first``, and the ReLUs in between.

    ``hidden`` is room for the latter, B · `hidden_units` numbers: one layer (B, n_out) after the other.
    """
    B, start = len(x), 0
    for i in range(first, len(layers)):
        weight, bias = weight_and_bias(theta, layers, i)
        last = i == len(layers) - 1
        size = len(bias)
        out = logits if last else hidden[start : start + B * size].reshape(B, size)
        np.dot(x, weight.T, out)
        for n in range(B):
            for j in range(size):
                y = out[n, j] + bias[j]
                out[n, j] = np.float32(0) if not last and y <= 0 else y
        x = out
        start += B * size


@inlined
def backward(theta, grad, layers, first, x, hidden, grad_logits, room, grad_x):
    """Write the gradients of the layers from ``first`` on, and of x where ``grad_x`` has room for it.

    Takes what `forward` took and left, the gradient of the logits, and ``room`` for the gradients of two widest layers.
    """
    B, end = len(x), len(hidden)
    d = grad_logits
    for i in range(len(layers) - 1, first - 1, -1):
        n_in = layers[i, 0]
        below = x if i == first else hidden[end - B * n_in : end].reshape(B, n_in)
        end -= B * n_in
        weight, _ = weight_and_bias(theta, layers, i)
        grad_weight, grad_bias = weight_and_bias(grad, layers, i)
        np.dot(d.T, below, grad_weight)
        grad_bias[:] = 0
        for n in range(B):
            for j in range(len(grad_bias)):
                grad_bias[j] += d[n, j]
        if i > first:
            half = len(room) // 2 * (i % 2)
            next_d = room[half : half + B * n_in].reshape(B, n_in)
            np.dot(d, weight, next_d)
            for n in range(B):
                for j in range(n_in):
                    next_d[n, j] = np.float32(0) if below[n, j] <= 0 else next_d[n, j]
            d = next_d
        elif len(grad_x) > 0:
            np.dot(d, weight, grad_x)


@inlined
def _look_up(theta, layers, pairs, x):
    """Write relu(W[:, a] + W[:, P + b] + bias) of every pair."""
    table, bias = _table(theta, layers)
    P = len(table) // 2
    for n in range(len(pairs)):
        left, right, out = table[pairs[n, 0]], table[P + pairs[n, 1]], x[n]
        for j in range(len(out)):
            y = left[j] + right[j] + bias[j]
            out[j] = np.float32(0) if y <= 0 else y


@inlined
def _scatter(grad, layers, pairs, x, grad_x):
    """Write the gradients of the first layer, for the gradient of its ReLU x."""
    table, bias = _table(grad, layers)
    P = len(table) // 2
    table[:] = 0
    bias[:] = 0
    for n in range(len(pairs)):
        left, right = table[pairs[n, 0]], table[P + pairs[n, 1]]
        for j in range(len(bias)):
            d = np.float32(0) if x[n, j] <= 0 else grad_x[n, j]
            left[j] += d
            right[j] += d
            bias[j] += d


@inlined
def _step(layers, squared, theta, grad, pairs, targets):
    B = len(pairs)
    x = np.empty((B, layers[0, 1]), np.float32)
    hidden = np.empty(B * hidden_units(layers, 1), np.float32)
    logits = np.empty((B, layers[-1, 1]), np.float32)
    room = np.empty(2 * B * layers[:, 1].max(), np.float32)
    grad_x = np.empty_like(x)
    _look_up(theta, layers, pairs, x)
    forward(theta, layers, 1, x, hidden, logits)
    loss = loss_gradient(logits, targets, squared)
    backward(theta, grad, layers, 1, x, hidden, logits, room, grad_x)
    _scatter(grad, layers, pairs, x, grad_x)
    return loss


@compiled
def _gradient(layers, squared, theta, grad, pairs, targets):
    return _step(layers, squared, theta, grad, pairs, targets)


@compiled
def _train(layers, squared, theta, grad, kind, first, second, done, hyper, pairs, targets, batch_size):
    for start in range(0, len(pairs), batch_size):
        _step(layers, squared, theta, grad, pairs[start : start + batch_size], targets[start : start + batch_size])
        done += 1
        update(theta, grad, kind, first, second, done, hyper)


@compiled
def _evaluate(layers, squared, theta, pairs, targets):
    x = np.empty((_CHUNK, layers[0, 1]), np.float32)
    hidden = np.empty(_CHUNK * hidden_units(layers, 1), np.float32)
    logits = np.empty((_CHUNK, layers[-1, 1]), np.float32)
    loss, hits = 0.0, 0
    for start in range(0, len(pairs), _CHUNK):
        part, labels = pairs[start : start + _CHUNK], targets[start : start + _CHUNK]
        B = len(part)
        _look_up(theta, layers, part, x[:B])
        forward(theta, layers, 1, x[:B], hidden, logits[:B])
        more, right = loss_and_hits(logits[:B], labels, squared)
        loss += more
        hits += right
    return loss / len(pairs), hits / len(pairs)


@inlined
def _dense_step(layers, squared, theta, grad, inputs, targets):
    B = len(inputs)
    hidden = np.empty(B * hidden_units(layers, 0), np.float32)
    logits = np.empty((B, layers[-1, 1]), np.float32)
    room = np.empty(2 * B * layers[:, 1].max(), np.float32)
    forward(theta, layers, 0, inputs, hidden, logits)
    loss = loss_gradient(logits, targets, squared)
    backward(theta, grad, layers, 0, inputs, hidden, logits, room, inputs[:0])
    return loss


@compiled
def _dense_gradient(layers, squared, theta, grad, inputs, targets):
    return _dense_step(layers, squared, theta, grad, inputs, targets)


@compiled
def _dense_train(layers, squared, theta, grad, kind, first, second, done, hyper, inputs, targets, batch_size):
    for start in range(0, len(inputs), batch_size):
        part, labels = inputs[start : start + batch_size], targets[start : start + batch_size]
        _dense_step(layers, squared, theta, grad, part, labels)
        done += 1
        update(theta, grad, kind, first, second, done, hyper)


@compiled
def _dense_evaluate(layers, squared, theta, inputs, targets):
    hidden = np.empty(_CHUNK * hidden_units(layers, 0), np.float32)
    logits = np.empty((_CHUNK, layers[-1, 1]), np.float32)
    loss, hits = 0.0, 0
    for start in range(0, len(inputs), _CHUNK):
        part, labels = inputs[start : start + _CHUNK], targets[start : start + _CHUNK]
        forward(theta, layers, 0, part, hidden, logits[: len(part)])
        more, right = loss_and_hits(logits[: len(part)], labels, squared)
        loss += more
        hits += right
    return loss / len(inputs), hits / len(inputs)
