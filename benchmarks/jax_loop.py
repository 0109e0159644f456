"""The same training written in JAX: one compiled function an epoch, ``vmap`` over replicas; for comparison alone.

JAX is not a dependency: ``pip install jax optax`` into an environment beside this one's, on PYTHONPATH.
"""

import os
import time
from collections.abc import Callable

import torch

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # one thread, like the others

import jax
import jax.numpy as jnp
import optax


def _perceptron(weights: dict, pairs: jnp.ndarray) -> jnp.ndarray:
    """`lit_grok.networks.ModularMLP` with one hidden layer; its first weight is stored by columns, as ours is."""
    table, P = weights["hidden.0.weight"], weights["output.bias"].shape[0]
    hidden = table[pairs[:, 0]] + table[P + pairs[:, 1]] + weights["hidden.0.bias"]
    return jax.nn.relu(hidden) @ weights["output.weight"].T + weights["output.bias"]


def _cnn(weights: dict, spins: jnp.ndarray) -> jnp.ndarray:
    """`lit_grok.networks.IsingCNN`."""
    x = spins[:, None]
    for layer in ("conv1", "conv2"):
        x = jax.lax.conv(x, weights[f"{layer}.weight"], (1, 1), "SAME") + weights[f"{layer}.bias"][:, None, None]
        x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights["fc1.weight"].T + weights["fc1.bias"])
    return x @ weights["fc2.weight"].T + weights["fc2.bias"]


def _digits(weights: dict, images: jnp.ndarray) -> jnp.ndarray:
    """`lit_grok.networks.DigitMLP` with two hidden layers."""
    x = images.reshape(len(images), -1)
    for layer in ("hidden.0", "hidden.1"):
        x = jax.nn.relu(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    return x @ weights["output.weight"].T + weights["output.bias"]


_FORWARD = {"mod_add": _perceptron, "ising": _cnn, "mnist": _digits}


def loop(config: dict, networks: list[torch.nn.Module], splits: dict, epochs: int) -> Callable[[], float]:
    """A training of these networks on these splits.

    Args:
        config: The resolved configuration, for the task's settings.
        networks: R networks, whose weights are where it starts.
        splits: ``train`` and ``test``: inputs (R, N, …) and targets (R, N).
        epochs: How many.

    Returns:
        A function that trains and returns the milliseconds per epoch.
    """
    forward = _FORWARD[config["task"]]
    names = [name for name, _ in networks[0].named_parameters()]
    start = {name: jnp.stack([jnp.asarray(n.get_parameter(name).detach().numpy()) for n in networks]) for name in names}
    if forward is _perceptron:
        start["hidden.0.weight"] = start["hidden.0.weight"].swapaxes(1, 2)
    data = {
        name: tuple(jnp.asarray(t.numpy()) for t in (x if forward is _perceptron else x.float(), y))
        for name, (x, y) in splits.items()
    }
    rate, decay = float(config["learning_rate"]), float(config["weight_decay"])
    if config["optimizer"]["_target_"].endswith("AdamW"):
        optimizer = optax.adamw(rate, weight_decay=decay)
    else:
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))
    size, batch = data["train"][1].shape[1], int(config["batch_size"])
    batch = min(batch, size)
    full = size // batch * batch

    def losses(logits, targets):
        if config["loss"] == "mse":
            return jnp.square(logits - jax.nn.one_hot(targets, logits.shape[1])).mean(1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    def loss(weights, inputs, targets):
        return losses(forward(weights, inputs), targets).mean()

    def step(state, examples):
        weights, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(weights, *examples), moments, weights)
        return (optax.apply_updates(weights, updates), moments), None

    def epoch(state, train):
        batches = tuple(t[:full].reshape(-1, batch, *t.shape[1:]) for t in train)
        state, _ = jax.lax.scan(step, state, batches)
        return step(state, tuple(t[full:] for t in train))[0] if full < size else state

    def evaluate(weights, inputs, targets):
        logits = forward(weights, inputs)
        return losses(logits, targets).mean(), (logits.argmax(1) == targets).mean()

    def some_epochs(state, train, test):  # as many as there are between two evaluations
        state, _ = jax.lax.scan(lambda s, _: (epoch(s, train), None), state, None, length=config["log_every"])
        return state, (evaluate(state[0], *train), evaluate(state[0], *test))

    compiled = jax.jit(jax.vmap(some_epochs) if len(networks) > 1 else some_epochs)
    alone = (lambda t: t) if len(networks) > 1 else (lambda t: t[0])
    train, test = (tuple(map(alone, data[name])) for name in ("train", "test"))

    def run() -> float:
        weights = {name: alone(values) for name, values in start.items()}
        state = weights, (jax.vmap(optimizer.init) if len(networks) > 1 else optimizer.init)(weights)
        jax.block_until_ready(compiled(state, train, test))  # compiles at the first call
        begin = time.perf_counter()
        for _ in range(epochs // config["log_every"]):
            state, curves = compiled(state, train, test)
            jax.device_get(curves)
        return (time.perf_counter() - begin) / epochs * 1000

    return run
