"""Adam, AdamW and SGD for replica stacks: one weight decay per replica, and little around the fused kernels."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class _Replicated(torch.optim.Optimizer):
    """One weight decay per replica, applied along the first dimension of every parameter."""

    decoupled = False

    def __init__(self, params: Iterable[Tensor], *, weight_decay: float | Sequence[float] = 0.0, **options: Any):
        decays = [weight_decay] if isinstance(weight_decay, int | float) else list(weight_decay)
        self._decays = None if len(set(decays)) == 1 else torch.tensor(decays, dtype=torch.float64)
        shared = float(decays[0]) if self._decays is None else 0.0
        super().__init__(params, weight_decay=shared, fused=True, **options)  # type: ignore[call-arg]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; PyTorch's own way there takes 18 µs of every step."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _init_group(self, group, params, grads, *state):
        sparse = super()._init_group(group, params, grads, *state)  # type: ignore[misc]
        if self._decays is not None:
            for parameter, grad in zip(params, grads, strict=True):
                decays = self._decays.to(parameter).view(-1, *[1] * (parameter.ndim - 1))
                if self.decoupled:
                    parameter.mul_(1 - group["lr"] * decays)
                else:
                    grad.addcmul_(parameter, decays)
        return sparse


class _MemoryOrder(torch.optim.Optimizer):
    """Tensors in memory order: the fused CPU kernel copies every tensor that is not contiguous, there and back.

    The update acts on each element alone, so a transposed view of such a tensor serves as well and needs no
    copy (2.5 times faster for the 512 × 226 first layer of the modular addition network).
    """

    def _init_group(self, group, *tensor_lists):
        flag = super()._init_group(group, *tensor_lists)  # type: ignore[misc]
        _put_in_memory_order(*tensor_lists)
        return flag


def _put_in_memory_order(*tensor_lists: list[Tensor]) -> None:
    for tensors in tensor_lists:
        for i, tensor in enumerate(tensors):
            if tensor.ndim > 1 and not tensor.is_contiguous():
                tensors[i] = tensor.mT


class _Direct(torch.optim.Optimizer):
    """The fused kernel of Adam or AdamW, called directly in the ordinary case.

    Before its kernel PyTorch sorts tensors and options that here are the same in every step: 40 µs, half as long as
    the kernel itself takes for the 174 193 parameters of modular addition.
    """

    _kernel: Callable[..., None]
    _decays: Tensor | None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what the closure, if there is one, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._is_ordinary():
            for group in self.param_groups:
                self._update(group)
        else:
            inspect.unwrap(super().step)(self)  # without PyTorch's wrapper, which is around this step already
        return loss

    def _is_ordinary(self) -> bool:
        parameters = [p for group in self.param_groups for p in group["params"]]
        return (
            self._decays is None
            and len(self.state) == len(parameters)  # from the second step on
            and all(p.is_cpu and p.grad is not None for p in parameters)
            and not any(group["amsgrad"] or isinstance(group["lr"], Tensor) for group in self.param_groups)
        )

    def _update(self, group: dict[str, Any]) -> None:
        states = [self.state[p] for p in group["params"]]
        steps = [state["step"] for state in states]
        tensors: list[list[Tensor]] = [
            list(group["params"]),
            [p.grad for p in group["params"]],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
        ]
        _put_in_memory_order(*tensors)
        torch._foreach_add_(steps, 1)
        type(self)._kernel(
            *tensors,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
            grad_scale=None,
            found_inf=None,
        )


class Adam(_Direct, _MemoryOrder, _Replicated, torch.optim.Adam):
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

    _kernel = staticmethod(torch._fused_adam_)


class AdamW(_Direct, _MemoryOrder, _Replicated, torch.optim.AdamW):
    """``torch.optim.AdamW`` (Loshchilov and Hutter 2019): *decoupled* decay, θ ← (1 − lr λ) θ.

    Args:
        params: Parameters, with a leading replica dimension where ``weight_decay`` is a list.
        weight_decay: λ, one value or one per replica.
        options: Those of ``torch.optim.AdamW`` (lr, betas, eps).
    """

    decoupled = True
    _kernel = staticmethod(torch._fused_adamw_)


class SGD(_Replicated, torch.optim.SGD):
    """``torch.optim.SGD`` with coupled L2 weight decay, g ← g + λ θ.

    Args:
        params: Parameters, with a leading replica dimension where ``weight_decay`` is a list.
        weight_decay: λ, one value or one per replica.
        options: Those of ``torch.optim.SGD`` (lr, momentum, nesterov).
    """


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
