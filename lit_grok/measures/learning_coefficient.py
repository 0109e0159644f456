"""The local learning coefficient, estimated by Langevin dynamics with momentum.

λ̂ is an average over the posterior around the trained weights w* at the inverse temperature nβ = n / ln n,

    p(w) ∝ exp(−U(w)),    U(w) = nβ L_n(w) + γ/2 |w − w*|²,

and any sampler of p will do. The usual one is w ← w − ε/2 ∇U + √ε · N(0, 1) (Lau et al. 2024). Its ε must be small for
the steepest direction, ε ∇∇U < 4, and a flat one, which γ alone holds, then forgets where it was in 2/(εγ) steps:
thousands, where the network has memorised. With a velocity v, and h = √ε as the time of a step, it takes 1/√(εγ):

    v ← v − h ∇U(w),    w ← w + h/2 v,    v ← c v + √(1 − c²) · N(0, 1),    w ← w + h/2 v,    c = exp(−2h√γ).

The friction 2√γ damps flat directions critically, and all others forget no more slowly. The order of the parts (BAOAB,
Leimkuhler and Matthews 2013) samples a quadratic U without error at every stable ε.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]

_BLOCKS = 10  # of each chain, whose means tell the error: long enough to be independent, with several chains enough
_SLACK = 0.1  # of equipartition and temperature, and of the drift relative to λ̂
_UNCERTAINTY = 0.2  # of the error relative to λ̂


@dataclass
class LearningCoefficient:
    """An estimate for each of R replicas, with what is needed to judge it.

    Attributes:
        value: λ̂, the mean over chains, shape (R,).
        error: Its standard error, from the means of ten blocks of every chain, shape (R,).
        chains: λ̂ of each chain, shape (R, chains).
        trace: nβ (L(w) − L_n(w*)) before each step, L on its batch, shape (R, chains, burn_in + steps).
        drift: λ̂ from the second half of the steps kept, less that from the first, shape (R,).
        effective_samples: Number of independent draws that would have the same error, shape (R,).
        equipartition: Mean of (w − w*)·∇U(w) per parameter, shape (R,): 1 in equilibrium, whatever the loss, and less
            while flat directions are still spreading.
        temperature: Mean square of the velocity along ∇L, shape (R,): in equilibrium 1, or 1 − ε∇∇U/4 at a finite step,
            and more where the step or the noise of the batches heats the chains.
        doubts: For each replica why not to believe the value and what to change; empty where there is no reason.
    """

    value: Tensor
    error: Tensor
    chains: Tensor
    trace: Tensor
    drift: Tensor
    effective_samples: Tensor
    equipartition: Tensor
    temperature: Tensor
    doubts: list[str]


def local_learning_coefficient(
    loss: Loss,
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    seeds: Sequence[int],
    chains: int = 4,
    steps: int = 2000,
    burn_in: int = 500,
    step_size: float = 3e-6,
    localisation: float = 100.0,
    batch_size: int | None = 512,
) -> LearningCoefficient:
    """Estimate λ̂ = nβ (E[L_n(w)] − L_n(w*)) for a stack of replicas (Lau et al. 2024).

    A regular model with d parameters has λ = d/2, a degenerate one less. A direction of curvature h counts
    nβh / (2 (nβh + γ)), nothing where h ≪ γ/nβ: only values at the same γ and n compare.

    Args:
        loss: Mean loss of each of K networks, shape (K,): ``loss(weights, inputs, targets)`` of weights (K, …),
            inputs (K, B, …) and targets (K, B, …). ``torch.vmap`` makes it from that of one network.
        weights: w* of each replica, every value of shape (R, …).
        inputs: Shape (R, n, …).
        targets: Shape (R, n, …).
        seeds: One for each replica, so that its chains do not depend on the replicas beside it.
        chains: Independent chains per replica, all starting at w*.
        steps: Steps kept of each chain.
        burn_in: Steps left out before them, several times the 1/√(εγ) in which flat directions relax.
        step_size: ε.
        localisation: γ, which holds the chains near w*.
        batch_size: Inputs per step, drawn anew for each chain; all of them where it is None or at least n.

    Returns:
        The estimate and its diagnostics.

    Raises:
        ValueError: If the seeds and the replicas differ in number, there are fewer than 2 inputs or steps, or ε or γ
            is not positive.

    Example:
        The loss w⁴ has λ = 1/4 where w² would have 1/2.

        >>> quartic = torch.vmap(lambda weights, inputs, targets: weights["w"] ** 4)
        >>> data = torch.zeros(1, 1000)
        >>> result = local_learning_coefficient(
        ...     quartic, {"w": torch.zeros(1)}, data, data, [0], chains=50, step_size=1e-3, localisation=0.1
        ... )
        >>> abs(result.value.item() - 0.25) < 0.02
        True
    """
    replicas, count = inputs.shape[:2]
    if len(seeds) != replicas or count < 2 or steps < 2:
        raise ValueError(
            f"{len(seeds)} seeds for {replicas} replicas, {count} inputs, {steps} steps: one seed for each replica "
            "and at least 2 inputs and steps"
        )
    if not (step_size > 0 and localisation > 0):
        raise ValueError(f"step_size={step_size}, localisation={localisation}: both must be positive")
    beta = count / math.log(count)
    generators = [torch.Generator(inputs.device).manual_seed(seed) for seed in seeds]
    batches = _batches(inputs, targets, generators, chains, batch_size)
    states = _langevin(loss, weights, batches, generators, chains, beta, step_size, localisation)
    recorded = zip(*itertools.islice(states, burn_in + steps), strict=True)
    losses, virials, squares = (torch.stack(series, -1).double().view(replicas, chains, -1) for series in recorded)
    with torch.no_grad():
        trace = beta * (losses - loss(weights, inputs, targets).double()[:, None, None])
    excess, virials, squares = (series[..., burn_in:] for series in (trace, virials, squares))
    first, second = (half.mean((1, 2)) for half in excess.tensor_split(2, dim=-1))
    estimates = [(series.mean((1, 2)), _standard_error(series)) for series in (excess, virials, squares)]
    (value, error), (equipartition, _), (temperature, _) = estimates
    numbers = torch.stack([second - first, *itertools.chain(*estimates)], dim=1)
    return LearningCoefficient(
        value=value,
        error=error,
        chains=excess.mean(-1),
        trace=trace,
        drift=second - first,
        effective_samples=excess.flatten(1).var(1) / error**2,
        equipartition=equipartition,
        temperature=temperature,
        doubts=[_doubt(*row) for row in numbers.tolist()],
    )


def _langevin(
    loss: Loss,
    weights: Mapping[str, Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    generators: Sequence[torch.Generator],
    chains: int,
    beta: float,
    step_size: float,
    localisation: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """L, (w − w*)·∇U per parameter and the squared velocity along ∇L of all chains, (R · chains,) each."""
    h = math.sqrt(step_size)
    remembered = math.exp(-2 * h * math.sqrt(localisation))
    # Indexing, unlike repeat_interleave, keeps the order in memory, which the network's forward pass relies on.
    replica = torch.arange(len(generators), device=generators[0].device).repeat_interleave(chains)
    centre = {name: values.detach()[replica] for name, values in weights.items()}
    parameters = sum(values[0].numel() for values in centre.values())

    def noise(like: Tensor) -> Tensor:
        shape = chains, *like.shape[1:]
        return torch.cat([torch.randn(shape, generator=g, device=g.device, dtype=like.dtype) for g in generators])

    total = torch.vmap(torch.sum)
    position = {name: values.clone() for name, values in centre.items()}
    velocity = {name: noise(values) for name, values in centre.items()}
    for inputs, targets in batches:
        leaves = {name: w.detach().requires_grad_() for name, w in position.items()}
        with torch.enable_grad():
            losses = loss(leaves, inputs, targets)
            gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        virial, slope, along = torch.zeros(3, len(losses), dtype=losses.dtype, device=losses.device)
        for (name, w), gradient in zip(position.items(), gradients, strict=True):
            v, offset = velocity[name], w - centre[name]
            force = beta * gradient + localisation * offset
            v.sub_(force, alpha=h / 2)
            virial += total(offset * force)
            slope += total(gradient.square())
            along += total(gradient * v)
            v.sub_(force, alpha=h / 2)
            w.add_(v, alpha=h / 2)
            v.mul_(remembered).add_(noise(v), alpha=math.sqrt(1 - remembered**2))
            w.add_(v, alpha=h / 2)
        squares = (along.square() / slope).where(slope > 0, 1.0)  # no slope, nothing to be heated by
        yield losses.detach(), virial / parameters, squares


def _batches(
    inputs: Tensor, targets: Tensor, generators: Sequence[torch.Generator], chains: int, batch_size: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each chain of each replica sees, (R · chains, B, …), step after step."""
    replicas, count = inputs.shape[:2]
    replica = torch.arange(replicas, device=inputs.device).repeat_interleave(chains)
    if batch_size is None or batch_size >= count:
        yield from itertools.repeat((inputs[replica], targets[replica]))
    else:
        while True:
            draws = [torch.randint(count, (chains, batch_size), generator=g, device=g.device) for g in generators]
            rows = replica.unsqueeze(1), torch.cat(draws)
            yield inputs[rows], targets[rows]


def _standard_error(draws: Tensor) -> Tensor:
    """Of the mean over chains and steps, shape (R,), for draws (R, chains, steps)."""
    blocks = draws.tensor_split(min(_BLOCKS, draws.shape[-1]), dim=-1)
    means = torch.stack([block.mean(-1) for block in blocks], dim=-1).flatten(1)
    return means.std(1) / math.sqrt(means.shape[1])


def _doubt(
    drift: float, value: float, error: float, spread: float, spread_error: float, heat: float, heat_error: float
) -> str:
    """Why not to believe an estimate and what to change, or nothing."""
    found = f"it is {value:.3g} ± {error:.2g}"
    if not math.isfinite(value):
        return f"it is {value}, the chains have left the trained weights for good: a smaller step_size"
    if spread < 1 - _SLACK - 3 * spread_error:
        return f"{found} with {spread:.0%} of the spread of equilibrium: more burn_in"
    if abs(drift) > max(_SLACK * abs(value), 6 * error):  # three times its own error, which is twice that of λ̂
        return f"{found} and still drifts by {drift:.2g}: more burn_in"
    if heat > 1 + _SLACK + 3 * heat_error:
        return f"{found} at {heat:.0%} of the right temperature: a smaller step_size or a larger batch_size"
    if value < -2 * error:
        return f"{found}, the trained weights are no minimum of this loss: more epochs or a smaller weight_decay"
    if error > _UNCERTAINTY * value:
        return f"{found}, too uncertain: more steps or chains"
    return ""
