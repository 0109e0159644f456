"""R replicas of one network, trained as one, each a plain network at every moment."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, vmap

from lit_grok.kernels.compiled import CompiledSteps
from lit_grok.networks import HasCompiledSteps, HasStackedForward, scale_parameters
from lit_grok.results import build_network, kept_buffers

_ALIGNED = 16  # numbers: a row and every parameter in it start at a multiple, which no vector loop has to leave


class ReplicaStack(nn.Module):
    """R networks of one architecture, trained together, whose parameters are the rows of one tensor.

    ``flat``, shape (R, D), is the one parameter that an optimiser sees: an update is one pass over it, a replica is a
    row. ``networks[r]`` is replica r as an ordinary ``nn.Module`` whose parameters are parts of its row, so it is
    always up to date and needs no copy to be looked at. D counts some zeros between the parameters of a network, which
    nothing reads and which stay zero. What a single network with buffers keeps in them (running statistics) is in the
    stack's state too, and its layers are in the mode, training or evaluation, that the stack is in.

    Networks that offer ``forward_stack`` run through it, whatever R is. Any other runs under ``torch.func.vmap``, and
    directly for R = 1.

    Args:
        networks: R ≥ 1 networks with parameters of equal names and shapes; taken over, not copied.
        threads: Threads that `each` spreads the replicas over.

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

    def __init__(self, networks: Sequence[nn.Module], threads: int = 1):
        super().__init__()
        if not networks:
            raise ValueError("a replica stack needs at least one network")
        shapes = [{name: p.shape for name, p in network.named_parameters()} for network in networks]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("the networks of a replica stack must have the same parameter names and shapes")
        if len(networks) > 1 and any(True for _ in networks[0].buffers()):
            raise ValueError(
                "networks with buffers (batch normalisation, for one) cannot be stacked: train one replica at a time "
                "(replicas_at_once=1, or -m and commas)"
            )
        self.networks = tuple(networks)  # a tuple, so that only the stack's own parameter is registered
        self.threads = threads
        self._shapes = shapes[0]
        self._column_major = getattr(networks[0], "column_major", ())
        sizes = [math.ceil(shape.numel() / _ALIGNED) * _ALIGNED for shape in self._shapes.values()]
        #: Where each parameter starts in a row.
        self.offsets = dict(zip(self._shapes, np.cumsum([0, *sizes]).tolist(), strict=False))
        first = next(networks[0].parameters())
        self.flat = nn.Parameter(torch.zeros(len(networks), sum(sizes), dtype=first.dtype, device=first.device))
        for name, values in self.stacked().items():
            for r, network in enumerate(networks):
                values[r] = network.get_parameter(name).detach()
        self._buffer_names = {f"networks/{name.replace('.', '/')}": name for name in kept_buffers(networks[0])}
        for own, name in self._buffer_names.items():
            self.register_buffer(own, networks[0].get_buffer(name))
        self._tie()

    def __len__(self) -> int:
        return len(self.networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, B, …) of every replica on its own inputs (R, B, …)."""
        return self.run(self.flat, inputs)

    def run(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (R, B, …) of as many networks as there are rows of parameters (R, D), on inputs (R, B, …)."""
        parameters = dict(zip(self._shapes, _Split.apply(rows, self), strict=True))
        network = self.networks[0]
        if isinstance(network, HasStackedForward):
            return network.forward_stack(parameters, inputs)
        if len(rows) == 1:
            alone = {name: values[0] for name, values in parameters.items()}
            return functional_call(network, alone, (inputs[0],)).unsqueeze(0)
        return vmap(lambda row, x: functional_call(network, row, (x,)), randomness="different")(parameters, inputs)

    def stacked(self) -> dict[str, Tensor]:
        """Parameter name to the values of all replicas, shape (R, …), sharing the stack's memory."""
        return dict(zip(self._shapes, self.split(self.flat.detach()), strict=True))

    def stacked_buffers(self) -> dict[str, Tensor]:
        """Buffer name to its values, shape (1, …), in the memory of the network; nothing where there are several."""
        return {name: self.get_buffer(own).unsqueeze(0) for own, name in self._buffer_names.items()}

    def train(self, mode: bool = True) -> "ReplicaStack":
        """Set the mode of the stack, and of the network that `forward` runs, whatever R is."""
        self.networks[0].train(mode)
        return super().train(mode)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The parts (R, …) of rows (R, D) that belong to each parameter, in the memory of the rows."""
        parts = []
        for name, shape in self._shapes.items():
            stored = shape[::-1] if name in self._column_major else shape
            part = rows[:, self.offsets[name] : self.offsets[name] + shape.numel()].view(-1, *stored)
            parts.append(part.mT if name in self._column_major else part)
        return parts

    def copy(self, replica: int) -> nn.Module:
        """Replica r as a plain network of its own, in evaluation mode, its parameters contiguous in memory."""
        network = copy.deepcopy(self.networks[replica]).eval()
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        return network

    def compiled_steps(self, squared: bool) -> CompiledSteps | None:
        """The compiled training step of the networks, or None where only PyTorch can run them as they are now.

        That is on another device, in another precision, with a hook on the stack, and for a network whose class or
        layers are not those that the steps were compiled for.
        """
        network = self.networks[0]
        if not isinstance(network, HasCompiledSteps) or not self.flat.is_cpu or self.flat.dtype is not torch.float32:
            return None
        source = definer(network, "compiled_steps")
        as_written = all(definer(network, name) is source for name in ("forward", "forward_stack"))
        layers = (type(layer).__module__ for layer in list(network.modules())[1:])
        ordinary = all(name.startswith("torch.nn.modules.") or name == source.__module__ for name in layers)
        if not as_written or not ordinary or self._hooked:
            return None
        return network.compiled_steps(self.offsets, squared)

    @property
    def runs_in_pieces(self) -> bool:
        """Whether `lit_grok.pieces` may call `run` in place of this module: on the CPU, where no hook waits for it."""
        return self.flat.is_cpu and isinstance(self.networks[0], HasStackedForward) and not self._hooked

    @property
    def _hooked(self) -> bool:
        own = (self._forward_hooks, self._forward_pre_hooks, self._backward_hooks, self._backward_pre_hooks)
        return any(own) or torch.nn.modules.module._has_any_global_hook()

    def each(self, function: Callable[[int], Any], replicas: Iterable[int] | None = None) -> list[Any]:
        """Call a function with the number of every replica, or of some, spread over the threads of this stack.

        What it computes must not depend on the thread: compiled loops and PyTorch's operations do not. The calling
        thread is one of them, so that few replicas need not wait for others to wake up.

        Raises:
            Exception: What the function raised, for the first replica of several; the others may not have been called.
        """
        numbers = list(range(len(self)) if replicas is None else replicas)
        threads = min(self.threads, len(numbers))
        if threads <= 1:
            return [function(r) for r in numbers]
        todo = deque(enumerate(numbers))
        results, errors = dict[int, Any](), dict[int, BaseException]()

        def work() -> None:
            while todo:
                try:
                    place, r = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    results[place] = function(r)
                except BaseException as error:
                    errors[place] = error
                    todo.clear()

        pool = _pool(self.threads - 1, flushes_denormals())
        helpers = [pool.submit(work) for _ in range(threads - 1)]
        with _one_torch_thread():
            work()
            wait(helper for helper in helpers if not helper.cancel())
        if errors:
            raise errors[min(errors)]
        return [results[place] for place in range(len(numbers))]

    def _tie(self) -> None:
        for name, values in self.stacked().items():
            for network, value in zip(self.networks, values, strict=True):
                network.get_parameter(name).data = value
        for own, name in self._buffer_names.items():
            layer, _, leaf = name.rpartition(".")
            self.networks[0].get_submodule(layer)._buffers[leaf] = self.get_buffer(own)

    def __setstate__(self, state):
        super().__setstate__(state)  # a copy of the stack: its networks were copied apart from it
        self._tie()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for network in self.networks:
            network._apply(fn)  # moves what is not a parameter, such as buffers
        self._tie()
        return self


def build_stack(network: Mapping[str, Any], replicas: Sequence[Mapping[str, Any]], threads: int = 1) -> ReplicaStack:
    """One network per replica, each drawn from its own init seed and multiplied by its own init_scale.

    Args:
        network: The configuration of the network, with its ``_target_``.
        replicas: What each one is: ``seed_init`` and ``init_scale``.
        threads: Threads of the stack.
    """
    networks = []
    for replica in replicas:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replica["seed_init"])
            networks.append(scale_parameters(build_network(network), replica["init_scale"]))
    return ReplicaStack(networks, threads)


class _Split(torch.autograd.Function):
    """`ReplicaStack.split`, whose gradient is one buffer like the rows and not a sum of as many as there are parts."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stack: ReplicaStack) -> tuple[Tensor, ...]:
        ctx.stack, ctx.shape = stack, rows.shape
        return tuple(stack.split(rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        rows = ctx.stack.flat.new_zeros(ctx.shape)
        for part, grad in zip(ctx.stack.split(rows), grads, strict=True):
            if grad is not None:
                part.copy_(grad)
        return rows, None


def definer(instance: Any, name: str) -> Any:
    """The class that an attribute of this instance comes from, or the instance where it is its own."""
    return instance if name in vars(instance) else next(k for k in type(instance).__mro__ if name in vars(k))


def flushes_denormals() -> bool:
    """Whether this thread treats denormal numbers as zero, as ``torch.set_flush_denormal(True)`` makes it."""
    return bool(np.float32(1e-39) * np.float32(1) == 0)


_pools: dict[tuple[int, bool], ThreadPoolExecutor] = {}


def _pool(threads: int, flush: bool) -> ThreadPoolExecutor:
    """Threads in which arithmetic is what it is in the calling one, where that is `_one_torch_thread`."""

    def start() -> None:
        torch.set_flush_denormal(flush)
        torch.set_num_threads(1)

    if (threads, flush) not in _pools:
        _pools[threads, flush] = ThreadPoolExecutor(threads, "replicas", start)
    return _pools[threads, flush]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let PyTorch work in the calling thread alone for a while."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
