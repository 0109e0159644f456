"""R replicas of one network, trained as one, each a plain network at every moment."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_grok.networks import HasStackedForward


class ReplicaStack(nn.Module):
    """R networks of one architecture whose parameters are stacked, shape (R, …), and trained together.

    The stacked tensors are the only ones trained. ``networks[r]`` is replica r as an ordinary ``nn.Module``
    whose parameters share the stack's memory, so it is always up to date and needs no copy to be looked at.

    Networks that offer ``forward_stack`` run through it, whatever R is, so that one replica alone is rounded like
    one among many. Any other runs under ``torch.func.vmap``; with R = 1 it runs directly, and its own parameters,
    which have no leading dimension, are the ones trained.

    Args:
        networks: R ≥ 1 networks with parameters of equal names and shapes; taken over, not copied.

    Raises:
        ValueError: For no network, for networks of different architecture, and for R > 1 networks with buffers
            (batch normalisation keeps running statistics, which vmap cannot update per replica).

    Example:
        >>> stack = ReplicaStack([nn.Linear(3, 2), nn.Linear(3, 2)])
        >>> stack(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 2])
        >>> stack.stacked()["weight"].shape
        torch.Size([2, 2, 3])
        >>> stack.networks[1].weight.data_ptr() == stack.stacked()["weight"][1].data_ptr()
        True
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = tuple(networks)  # a tuple, so that only the stack's own parameters are registered
        if not networks:
            raise ValueError("a replica stack needs at least one network")
        self._has_stacked_forward = isinstance(networks[0], HasStackedForward)
        shapes = [{name: p.shape for name, p in network.named_parameters()} for network in networks]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("the networks of a replica stack must have the same parameter names and shapes")
        self._direct = len(networks) == 1 and not self._has_stacked_forward
        self.template = networks[0] if self._direct else _stacked_template(networks)
        self._slots = _slots(self.template)
        if not self._direct:
            self._tie()

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, B, …) of every replica on its own inputs (R, B, …)."""
        parameters = self._named()
        if self._has_stacked_forward:
            return cast(HasStackedForward, self.template).forward_stack(parameters, inputs)
        if self._direct:
            return self.template(inputs[0]).unsqueeze(0)
        return vmap(self._run, randomness="different")(parameters, inputs)

    def stacked(self) -> dict[str, Tensor]:
        """Parameter name to the values of all replicas, shape (R, …), sharing the stack's memory."""
        named = self._named().items()
        return {name: p.detach().unsqueeze(0) if self._direct else p.detach() for name, p in named}

    def _named(self) -> dict[str, Tensor]:
        return {name: cast(Tensor, owner._parameters[leaf]) for name, owner, leaf in self._slots}

    def _run(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self.networks[0], parameters, (inputs,))

    def _tie(self) -> None:
        for r, network in enumerate(self.networks):
            for name, parameter in network.named_parameters():
                parameter.data = self.template.get_parameter(name).data[r]

    def __setstate__(self, state):
        super().__setstate__(state)  # a copy of the stack: its networks were copied apart from it
        if not self._direct:
            self._tie()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if not self._direct:
            for network in self.networks:
                network._apply(fn)  # moves what is not a parameter of the stack, such as device-bound state
            self._tie()
        return self


def _stacked_template(networks: Sequence[nn.Module]) -> nn.Module:
    """A network whose parameters are those of all networks, stacked."""
    if any(True for _ in networks[0].buffers()):
        raise ValueError(
            "networks with buffers (batch normalisation, for one) cannot be stacked: train one replica at a time"
        )
    template = copy.deepcopy(networks[0])
    for name, owner, leaf in _slots(template):
        setattr(owner, leaf, nn.Parameter(_stack([network.get_parameter(name).data for network in networks])))
    return template


def _slots(network: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Name, owner and attribute of every parameter: to search them anew in every step would take 20 µs."""
    named = [(name, *name.rpartition(".")[::2]) for name, _ in network.named_parameters()]
    return [(name, network.get_submodule(owner), leaf) for name, owner, leaf in named]


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack along a new first dimension, keeping the memory order of the parts."""
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    inverse = [order.index(d) + 1 for d in range(len(order))]
    return torch.stack([t.permute(order) for t in tensors]).permute(0, *inverse)
