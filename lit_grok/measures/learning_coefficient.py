"""The local learning coefficient, estimated by stochastic gradient Langevin dynamics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]


@dataclass
class LearningCoefficient:
    """An estimate for each of R replicas, with what is needed to judge it.

    Attributes:
        value: λ̂, the mean over chains, shape (R,).
        chains: λ̂ of each chain, shape (R, chains).
        loss_trace: Loss before each step, shape (R, chains, burn_in + steps).
        drift: λ̂ from the second half of the steps kept, less that from the first, shape (R,).
        settled: Whether to believe the value, shape (R,): positive, finite, and a drift below a tenth of it.
    """

    value: Tensor
    chains: Tensor
    loss_trace: Tensor
    drift: Tensor
    settled: Tensor


def local_learning_coefficient(
    loss: Loss,
    weights: dict[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    seeds: Sequence[int],
    chains: int = 4,
    steps: int = 1000,
    burn_in: int = 1000,
    step_size: float = 1e-5,
    localisation: float = 100.0,
    batch_size: int | None = None,
) -> LearningCoefficient:
    """Estimate λ̂ = nβ (E[L_n(w)] − L_n(w*)) for a stack of replicas (Lau et al. 2024).

    The expectation is over the posterior around w* at the inverse temperature nβ = n / ln n, sampled by

        w ← w − ε/2 (nβ ∇L(w) + γ (w − w*)) + √ε · N(0, 1),

    all chains of all replicas under one ``vmap``. A regular model with d parameters has λ = d/2, a degenerate
    one less. The step ε biases λ̂ by a share of about ε nβ h / 4 along a direction of curvature h.

    Args:
        loss: Mean loss over a batch, ``loss(weights, inputs, targets)``, of one network (no replica dimension).
        weights: w* of each replica, every value of shape (R, …).
        inputs: Shape (R, n, …).
        targets: Shape (R, n, …).
        seeds: One for each replica, so that its chains do not depend on the replicas beside it.
        chains: Independent chains per replica, all starting at w*.
        steps: Steps kept of each chain.
        burn_in: Steps left out before them.
        step_size: ε.
        localisation: γ, which holds the chains near w*.
        batch_size: Inputs per step, drawn anew for each chain; None for all of them.

    Returns:
        The estimate and its diagnostics.

    Raises:
        ValueError: If the seeds and the replicas differ in number, or there are fewer than 2 inputs or steps.

    Example:
        The loss w⁴ has λ = 1/4 where w² would have 1/2.

        >>> def quartic(weights, inputs, targets):
        ...     return weights["w"] ** 4
        >>> data = torch.zeros(1, 1000)
        >>> result = local_learning_coefficient(
        ...     quartic, {"w": torch.zeros(1)}, data, data, [0], chains=50, step_size=1e-3, localisation=0.0
        ... )
        >>> abs(result.value.item() - 0.25) < 0.05
        True
    """
    replicas, count = inputs.shape[:2]
    if len(seeds) != replicas or count < 2 or steps < 2:
        raise ValueError(
            f"{len(seeds)} seeds for {replicas} replicas, {count} inputs, {steps} steps: one seed for each replica "
            "and at least 2 inputs and steps"
        )
    names, shapes = list(weights), [w.shape[1:] for w in weights.values()]
    sizes = [shape.numel() for shape in shapes]
    centre = torch.cat([w.detach().reshape(replicas, -1) for w in weights.values()], dim=1)
    beta = count / math.log(count)

    def flat_loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = flat.split(sizes)
        return loss({n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, x, y)

    # Chains share the inputs of their replica unless each draws its own batch.
    own = 0 if batch_size else None
    gradient_and_loss = torch.vmap(torch.vmap(torch.func.grad_and_value(flat_loss), in_dims=(0, own, own)))
    generators = [torch.Generator(centre.device).manual_seed(seed) for seed in seeds]
    replica = torch.arange(replicas, device=centre.device)[:, None, None]
    x, y = inputs, targets
    start = centre.unsqueeze(1)
    w = start.expand(-1, chains, -1)
    trace = []
    for _ in range(burn_in + steps):
        if batch_size:
            draws = [torch.randint(count, (chains, batch_size), generator=g, device=centre.device) for g in generators]
            batch = torch.stack(draws)
            x, y = inputs[replica, batch], targets[replica, batch]
        gradient, value = gradient_and_loss(w, x, y)
        trace.append(value)
        noise = torch.stack(
            [torch.randn(chains, w.shape[-1], generator=g, device=w.device, dtype=w.dtype) for g in generators]
        )
        w = w - step_size / 2 * (beta * gradient + localisation * (w - start)) + math.sqrt(step_size) * noise

    loss_trace = torch.stack(trace, dim=-1)
    at_centre = torch.vmap(flat_loss)(centre, inputs, targets)
    excess = beta * (loss_trace[..., burn_in:].double() - at_centre[:, None, None])
    per_chain = excess.mean(-1)
    first, second = excess.tensor_split(2, dim=-1)
    estimate, drift = per_chain.mean(-1), (second.mean(-1) - first.mean(-1)).mean(-1)
    # A NaN fails every comparison, so a chain that blew up is not settled either.
    settled = (estimate > 0) & torch.isfinite(estimate) & (drift.abs() < 0.1 * estimate)
    return LearningCoefficient(estimate, per_chain, loss_trace, drift, settled)
