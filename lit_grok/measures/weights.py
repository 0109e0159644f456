"""Statistics of the weights of a network."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


def layers(network: nn.Module) -> dict[str, Tensor]:
    """All weights and biases of each layer in one vector.

    Args:
        network: Any network; a layer is a module that holds parameters of its own.

    Returns:
        Layer name to a detached copy, shape (parameters of the layer,).

    Example:
        >>> {name: len(values) for name, values in layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU())).items()}
        {'0': 8}
    """
    own = {name: list(module.parameters(recurse=False)) for name, module in network.named_modules()}
    return {name: torch.cat([p.detach().flatten() for p in ps]) for name, ps in own.items() if ps}


def norm(network: nn.Module) -> Tensor:
    """Euclidean norm of all weights and biases, √(Σ_i θ_i²).

    Args:
        network: Any network.

    Returns:
        A scalar, float64.

    Example:
        >>> network = nn.Linear(1, 1)
        >>> _ = network.weight.data.fill_(3.0), network.bias.data.fill_(4.0)
        >>> norm(network)
        tensor(5., dtype=torch.float64)
    """
    return torch.cat(list(layers(network).values())).double().norm()


def layer_norms(network: nn.Module) -> dict[str, Tensor]:
    """Euclidean norm of the weights and biases of each layer.

    Args:
        network: Any network.

    Returns:
        Layer name to a scalar, float64; their squares add up to that of :func:`norm`.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> _ = network[0].weight.data.fill_(-2.0)
        >>> layer_norms(network)
        {'0': tensor(2., dtype=torch.float64)}
    """
    return {name: values.double().norm() for name, values in layers(network).items()}


@runtime_checkable
class HasNeurons(Protocol):
    """A network that is no chain of layers, but has hidden neurons."""

    def neurons(self) -> Mapping[str, str]:
        """Name of the weight (neurons, inputs) that enters a layer of neurons to that of the weight that leaves it."""
        ...


def zero_share(values: Tensor) -> Tensor:
    """Share of exact zeros.

    Args:
        values: Shape (..., n).

    Returns:
        Shape (...,), float64, between 0 and 1.

    Example:
        >>> zero_share(torch.tensor([0.0, -0.0, 1e-30, 2.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    return (torch.as_tensor(values) == 0).double().mean(-1)


def negligible(magnitudes: Tensor) -> Tensor:
    """Which magnitudes are lost in the rounding of the largest one: at most ε times it, with ε of their type.

    Weight decay shrinks a neuron that has died geometrically, down to the smallest number of which the gradient λ w
    does not underflow (about 1e-34 in single precision where denormal numbers are flushed) and not to zero.
    Ten or twenty powers of ten below the weights of its layer it is as dead as with zeros.

    Args:
        magnitudes: Not negative, floating point, any shape; compared over all dimensions.

    Returns:
        Booleans of the same shape; all true where all are zero.

    Example:
        >>> negligible(torch.tensor([2.0, 1e-3, 1e-9, 0.0]))
        tensor([False, False,  True,  True])
    """
    return magnitudes <= torch.finfo(magnitudes.dtype).eps * magnitudes.max()


def dead_neurons(network: nn.Module) -> dict[str, Tensor]:
    """Hidden neurons through which nothing can pass.

    A neuron is dead if all its incoming weights are zero, whatever its bias (its output does not depend on
    the input), or all its outgoing weights are (nothing depends on its output). Zero means exactly zero. A
    neuron of a convolution is a channel.

    Args:
        network: Says which weights enter and leave its neurons (`HasNeurons`), or is a chain of layers: weights of
            two or more dimensions, each (outputs, inputs, ...), registered in the order in which they are applied.
            Channels may be flattened between two layers.

    Returns:
        Layer name to booleans of shape (neurons,), for every hidden layer.

    Raises:
        ValueError: The inputs of a layer are not a multiple of the outputs of the one before.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[0.0], [1.0], [1.0]]))
        >>> _ = network[2].weight.data.copy_(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> dead_neurons(network)
        {'0': tensor([ True,  True, False])}
    """
    matrices = {name: p.detach() for name, p in network.named_parameters() if p.ndim >= 2}
    pairs = network.neurons().items() if isinstance(network, HasNeurons) else pairwise(matrices)
    dead = {}
    for name, next_name in pairs:
        incoming, outgoing = matrices[name], matrices[next_name]
        neurons = len(incoming)
        if outgoing.shape[1] % neurons:
            raise ValueError(f"{next_name} has {outgoing.shape[1]} inputs, which {name}'s {neurons} cannot feed")
        # A flattened channel is a block of consecutive inputs.
        blocks = outgoing.unflatten(1, (neurons, -1)).transpose(0, 1).flatten(1)
        dead[name.rpartition(".")[0]] = ~incoming.flatten(1).any(1) | ~blocks.any(1)
    return dead
