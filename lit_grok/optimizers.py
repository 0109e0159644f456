"""Adam, AdamW and SGD for replica stacks: a replica is a row, with its own weight decay, moved by one compiled loop.

On the CPU in single precision every row is moved by `lit_grok.kernels.updates.update`, which treats all elements alike,
so that a replica ends up at the same bits whatever stands beside it. Anywhere else, and with options which the compiled
loop does not know (amsgrad, a tensor as learning rate), the update is PyTorch's own.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_grok.kernels import updates

#: One row's share of the optimiser: kind, first and second moments, steps done, hyperparameters.
Update = tuple[int, np.ndarray, np.ndarray, int, np.ndarray]


class Rowwise(torch.optim.Optimizer):
    """One weight decay per row: the first dimension of every parameter, all of it where there is one value."""

    _kind: int
    _decays: Tensor
    _asked: Mapping[str, Any] = {}  # what the device decides where nobody asks for it; copies do not know

    def __init__(self, params: Iterable[Tensor], *, weight_decay: float | Sequence[float] = 0.0, **options: Any):
        decays = [weight_decay] if isinstance(weight_decay, int | float) else list(weight_decay)
        self._decays = torch.tensor(decays if len(set(decays)) > 1 else decays[:1], dtype=torch.float64)
        options["weight_decay"] = decays[0] if len(self._decays) == 1 else 0.0
        self._asked = {"fused": options.get("fused"), "capturable": options.get("capturable", False)}
        params = list(params)
        plain = self._kind == updates.SGD or options.get("foreach") or options.get("differentiable")
        if not plain and all(isinstance(p, Tensor) and p.is_cuda for p in params):
            options = {"fused": True, "capturable": True} | options  # one kernel, which a CUDA graph may hold
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure, if there is one, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not all(self.compiles(p) for p in trained):
            self._decay_rows(trained)
            inspect.unwrap(super().step)(self)  # without PyTorch's wrapper, which is around this step already
            return loss
        for p in trained:
            theta, grad = self._rows(p), self._rows(p.grad)
            for r, (kind, first, second, done, hyper) in enumerate(self.row_updates(p)):
                updates.update_row(theta[r], grad[r], kind, first, second, done + 1, hyper)
            self.count_steps(p, 1)
        return loss

    def compiles(self, parameter: Tensor) -> bool:
        """Whether the rows of this parameter are moved by the compiled loop, by this class's own step."""
        group = self._group(parameter)
        known = inspect.unwrap(type(self).step) is inspect.unwrap(Rowwise.step)
        known &= not any(group.get(name) for name in ("amsgrad", "differentiable", "capturable"))
        plain = parameter.is_cpu and parameter.dtype is torch.float32 and parameter.is_contiguous()
        return known and plain and not isinstance(group["lr"], Tensor)

    def constants(self) -> str | None:
        """The hyperparameters, which a CUDA graph of the steps holds; None where it cannot hold the steps."""
        known = inspect.unwrap(type(self).step) is inspect.unwrap(Rowwise.step)
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        held = all(group.get("capturable", True) and not isinstance(group["lr"], Tensor) for group in groups)
        return repr(groups) if known and held else None

    def state_dict(self) -> dict[str, Any]:
        """The state, in which nothing is the device's: a training goes on on another one."""
        state = super().state_dict()
        groups = [group | {k: v for k, v in self._asked.items() if k in group} for group in state["param_groups"]]
        return state | {"param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state back, whatever the device that it was saved on."""
        own = [{k: group[k] for k in ("fused", "capturable") if k in group} for group in self.param_groups]
        groups = [group | mine for group, mine in zip(state_dict["param_groups"], own, strict=False)]
        super().load_state_dict(state_dict | {"param_groups": groups})

    def row_updates(self, parameter: Tensor) -> list[Update]:
        """What moves each row of a parameter for which `compiles` holds; the moments are the optimiser's own memory."""
        state, group = self.state[parameter], self._group(parameter)
        state.setdefault("step", torch.tensor(0.0))
        for name in self._moments(group):
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        rows = [self._rows(state[name]) for name in self._moments(group)]
        count = len(self._rows(parameter))
        nothing = np.empty((count, 0), np.float32)
        first, second = [*rows, nothing, nothing][:2]
        decays = self._decays if len(self._decays) > 1 else [group["weight_decay"]] * count
        done = int(state["step"])
        return [
            (self._kind, first[r], second[r], done, np.array(self._hyper(group, float(decays[r])), np.float64))
            for r in range(count)
        ]

    def count_steps(self, parameter: Tensor, steps: int) -> None:
        """Note that the rows of a parameter have been moved so many times."""
        self.state[parameter]["step"] += steps

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _hyper(self, group: dict[str, Any], decay: float) -> tuple[float, ...]:
        return group["lr"], decay, *group["betas"], group["eps"], False, group["maximize"]

    def _decay_rows(self, parameters: Sequence[Tensor]) -> None:
        """Apply the decays of the rows, which PyTorch's update knows nothing of."""
        if len(self._decays) == 1:
            return
        for p in parameters:
            group = self._group(p)
            if self._decays.device != p.device:  # once; not every device has double precision
                self._decays = self._decays.to(p.dtype).to(p.device)
            decays = self._decays.to(p.dtype).view(-1, *[1] * (p.ndim - 1))
            if self._kind == updates.ADAMW:
                p.mul_(1 - group["lr"] * decays)
            else:
                p.grad.addcmul_(p, decays, value=-1 if group["maximize"] else 1)  # type: ignore[union-attr]

    def _rows(self, tensor: Tensor) -> np.ndarray:
        """As (rows, elements); PyTorch's own memory where that is contiguous."""
        rows = len(self._decays) if tensor.ndim < 2 else len(tensor)
        return tensor.detach().contiguous().view(rows, -1).numpy()

    def _group(self, parameter: Tensor) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(p is parameter for p in group["params"]))


class Adam(Rowwise, torch.optim.Adam):
    """``torch.optim.Adam`` (Kingma and Ba 2015) with *coupled* L2 weight decay, as the paper used.

    g ← g + λ θ before the moments are taken, with one λ per replica where ``weight_decay`` is a list.

    Args:
        params: Parameters, with a leading replica dimension where ``weight_decay`` is a list.
        weight_decay: λ, one value or one per replica.
        options: Those of ``torch.optim.Adam`` (lr, betas, eps).

    Example:
        >>> weights = torch.nn.Parameter(torch.ones(2, 3))
        >>> optimizer = Adam([weights], lr=0.1, weight_decay=[0.0, 0.5])
        >>> weights.sum().mul(0.0).backward()
        >>> optimizer.step()
        >>> [round(w, 6) for w in weights[:, 0].tolist()]  # the decayed replica moves by lr, the other stays
        [1.0, 0.9]
    """

    _kind = updates.ADAM


class AdamW(Rowwise, torch.optim.AdamW):
    """``torch.optim.AdamW`` (Loshchilov and Hutter 2019): *decoupled* decay, θ ← (1 − lr λ) θ; called like `Adam`."""

    _kind = updates.ADAMW


class SGD(Rowwise, torch.optim.SGD):
    """``torch.optim.SGD`` with coupled L2 weight decay, g ← g + λ θ; called like `Adam`."""

    _kind = updates.SGD

    def state_dict(self) -> dict[str, Any]:
        """The state; PyTorch counts no steps of SGD, where the compiled loop asks whether there were any."""
        state = super().state_dict()
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        kept = {n: {k: v for k, v in state["state"].get(n, {}).items() if v is not None} for n in numbers}
        return state | {"state": {n: {"step": torch.tensor(1.0)} | own for n, own in kept.items()}}

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _hyper(self, group: dict[str, Any], decay: float) -> tuple[float, ...]:
        return group["lr"], decay, group["momentum"], group["dampening"], 0.0, group["nesterov"], group["maximize"]


class Warmup(torch.optim.lr_scheduler.LambdaLR):
    """A learning rate that rises in equal parts over the first steps: lr · min(t / steps, 1) at step t = 0, 1, ….

    Args:
        optimizer: Whose learning rate.
        steps: After how many it is reached, at least 1; the first update has none.

    Example:
        >>> optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        >>> warmup, rates = Warmup(optimizer, steps=2), []
        >>> for _ in range(4):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     warmup.step()
        >>> rates, warmup.done
        ([0.0, 0.25, 0.5, 0.5], True)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int):
        self.steps = steps
        super().__init__(optimizer, lambda t: min(t / steps, 1))

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step; once the warm-up is over, no longer watch the optimiser."""
        super().step(epoch)
        if self.done and hasattr(vars(self.optimizer).get("step"), "_wrapped_by_lr_sched"):
            del self.optimizer.step  # the wrapper that PyTorch put around it

    @property
    def done(self) -> bool:
        """Whether the learning rate will stay as it is."""
        return self.last_epoch >= self.steps


#: Optimisers whose update of an element depends on that element alone, so that replicas never mix.
ELEMENTWISE = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Rprop,
)
