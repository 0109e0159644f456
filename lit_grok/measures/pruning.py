"""Magnitude and Fisher pruning: accuracy against the share of parameters set to zero, and compressibility."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_grok.kernels.compiled import compiled
from lit_grok.measures.fisher import HasReluLayers
from lit_grok.measures.grokking import chance_bound

Scheme = Literal["layerwise", "global", "normalised", "single_layer", "fisher"]


class PruningCurve(NamedTuple):
    """Accuracy and mean cross entropy at each pruned fraction, three float64 vectors of shape (K,)."""

    fractions: Tensor
    accuracies: Tensor
    losses: Tensor


def removal_steps(
    network: nn.Module,
    fractions: Tensor | Sequence[float],
    scheme: Scheme = "layerwise",
    *,
    layer: str | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Index of the first fraction at which each parameter entry is zero.

    At fraction p the round(p · n) lowest-scoring of the n ranked entries are zeroed. The rounding, half to even, is
    that of the exact product, with the fraction that p stands for if its denominator is at most 1000, such as 11/20 or
    1/3: .55 of n = 390 is 214.5, hence 214 and not the 215 of floating point.
    Equal scores go in the order of ``named_parameters`` and, within one tensor, of the row-major index; a
    larger fraction always zeroes what a smaller one does. *Weights* are the parameters of two or more
    dimensions.

    - ``layerwise``: by |w|, in each weight tensor separately; biases stay, as in the next three.
    - ``global``: by |w|, all weights in one ranking.
    - ``normalised``: by |w| over the Euclidean norm of its weight tensor, all weights in one ranking.
    - ``single_layer``: by |w|, the weights of ``layer`` alone.
    - ``fisher``: by ``scores``, all parameters in one ranking, biases too, or those of ``layer`` alone.

    Source: arXiv 2502.01739, Section 5 and Appendices E, F.1, F.2.

    Args:
        network: Any network; it is only read.
        fractions: K ascending numbers between 0 and 1.
        scheme: How entries are ranked, see above.
        layer: Name of the layer to prune, required by ``single_layer`` and optional for ``fisher``.
        scores: For ``fisher``: parameter name to importance, the shape of the parameter.

    Returns:
        Parameter name to integers of the parameter's shape, K where no fraction reaches the entry. Parameters
        that the scheme leaves whole have no key.

    Raises:
        ValueError: Fractions out of order or range, unknown scheme or layer, or scores that do not fit.

    Example:
        >>> network = nn.Linear(4, 1)
        >>> _ = network.weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0, -1.0]]))
        >>> removal_steps(network, [0, 0.25, 0.5, 1])["weight"]
        tensor([[3, 1, 3, 2]])
    """
    fractions = _ascending(fractions)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme={scheme!r}: choose one of {', '.join(get_args(Scheme))}")
    if scheme == "single_layer" and layer is None:
        raise ValueError("scheme='single_layer' needs the name of a layer")
    if layer is not None and scheme not in ("single_layer", "fisher"):
        raise ValueError(f"layer={layer!r}: only single_layer and fisher prune one layer, not {scheme}")
    if (scores is not None) != (scheme == "fisher"):
        raise ValueError(f"scheme={scheme!r}: scores are what fisher needs, and only fisher")

    if scores is None:
        ranked = {name: value.abs() for name, value in parameters.items() if value.ndim >= 2}
        if scheme == "normalised":
            norms = {name: value.double().norm() for name, value in parameters.items()}
            # A tensor of zeros has no norm: its scores are 0 and go first.
            ranked = {name: (value / norms[name]).nan_to_num(0.0) for name, value in ranked.items()}
    else:
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        if {name: tuple(score.shape) for name, score in scores.items()} != shapes:
            raise ValueError(f"scores must have exactly these names and shapes: {shapes}")
        ranked = {name: scores[name].detach().to(value.device) for name, value in parameters.items()}
    if layer is not None:
        layers = {name: name.rpartition(".")[0] for name in ranked}
        if layer not in layers.values():
            raise ValueError(f"layer={layer!r}: choose one of {', '.join(dict.fromkeys(layers.values()))}")
        ranked = {name: score for name, score in ranked.items() if layers[name] == layer}

    groups = [[name] for name in ranked] if scheme == "layerwise" else [list(ranked)]
    steps = {}
    for names in groups:
        flat = _steps(torch.cat([ranked[name].flatten() for name in names]), fractions)
        pieces = flat.split([ranked[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            steps[name] = piece.view(ranked[name].shape)
    return steps


def pruned(
    network: nn.Module,
    fraction: float,
    scheme: Scheme = "layerwise",
    *,
    layer: str | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Parameters of the network with one fraction zeroed, for ``torch.func.functional_call``.

    Args:
        network: Any network; it is only read.
        fraction: Share of the ranked entries to zero, between 0 and 1.
        scheme: See :func:`removal_steps`, as are ``layer`` and ``scores`` and the errors.
        layer: See :func:`removal_steps`.
        scores: See :func:`removal_steps`.

    Returns:
        Parameter name to a new tensor, every parameter included.

    Example:
        >>> network = nn.Linear(4, 1)
        >>> _ = network.weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0, -1.0]]))
        >>> pruned(network, 0.5)["weight"]
        tensor([[3., 0., 2., 0.]])
    """
    steps = removal_steps(network, [fraction], scheme, layer=layer, scores=scores)
    first = torch.zeros(1, dtype=torch.int64)
    return {name: value[0].clone() for name, value in _masked(network, steps, first).items()}


@torch.no_grad()
def pruning_curve(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    fractions: Tensor | Sequence[float],
    scheme: Scheme = "layerwise",
    *,
    layer: str | None = None,
    scores: Mapping[str, Tensor] | None = None,
    chunk_size: int = 4,
) -> PruningCurve:
    """Accuracy and mean cross entropy of a classifier at each pruned fraction.

    The network is never modified. It is evaluated at ``chunk_size`` fractions at once, by its ``forward_stack`` or
    under ``vmap``, except for Linear ReLU Linear on token pairs (integer inputs to a network whose ``relu_layers``
    are two) on the CPU. There neighbouring fractions share their work: they differ in few parameters, so only the
    hidden activations and logits that these touch are updated. The updates are made in double precision, so that
    the accuracies are those of a double-precision evaluation.

    Args:
        network: Maps inputs to logits (N, C), in the mode (train or eval) in which it is to be evaluated.
        inputs: N inputs.
        targets: Classes, integers of shape (N,).
        fractions: K ascending numbers between 0 and 1.
        scheme: See :func:`removal_steps`, as are ``layer`` and ``scores`` and the errors.
        layer: See :func:`removal_steps`.
        scores: See :func:`removal_steps`.
        chunk_size: Fractions evaluated at once by the general path, which sets its memory.

    Returns:
        Fractions, accuracies and losses (nats), float64, on the CPU.

    Example:
        >>> network = nn.Linear(2, 2, bias=False)
        >>> _ = network.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> curve = pruning_curve(network, torch.eye(2), torch.tensor([0, 1]), [0, 0.75, 1])
        >>> curve.accuracies
        tensor([1.0000, 1.0000, 0.5000], dtype=torch.float64)
    """
    fractions = _ascending(fractions)
    steps = removal_steps(network, fractions, scheme, layer=layer, scores=scores)
    tables = _token_pair_tables(network, inputs, steps, len(fractions))
    if tables is not None:
        return PruningCurve(fractions, *_incremental(*tables, inputs, targets, len(fractions)))

    accuracies, losses = [], []
    for indices in torch.arange(len(fractions)).split(chunk_size):
        logits = _forward(network, _masked(network, steps, indices), inputs)
        accuracies.append((logits.argmax(-1) == targets).double().mean(-1))
        repeated = targets.expand(len(indices), -1).flatten()
        each = F.cross_entropy(logits.flatten(0, 1), repeated, reduction="none")
        losses.append(each.view(len(indices), -1).double().mean(-1))
    return PruningCurve(fractions, torch.cat(accuracies).cpu(), torch.cat(losses).cpu())


def area(fractions: Tensor | Sequence[float], accuracies: Tensor) -> Tensor:
    """Area under the pruning curve, A = ∫₀¹ accuracy dp, by the trapezoid rule.

    Args:
        fractions: Ascending from 0 to 1, shape (K,).
        accuracies: Shape (..., K), between 0 and 1.

    Returns:
        Shape (...,), float64.

    Raises:
        ValueError: The fractions do not ascend from 0 to 1.

    Example:
        >>> area([0, 0.5, 1], torch.tensor([1.0, 1.0, 0.0]))
        tensor(0.7500, dtype=torch.float64)
    """
    fractions = _ascending(fractions)
    if len(fractions) < 2 or fractions[0] != 0 or fractions[-1] != 1:
        raise ValueError("an area needs fractions that ascend from 0 to 1")
    return torch.trapezoid(torch.as_tensor(accuracies).double().cpu(), fractions)


def compressibility(fractions: Tensor | Sequence[float], accuracies: Tensor) -> Tensor:
    """Compressibility C = 1 / (1 − A) with A the :func:`area` under the pruning curve (Eq. 5).

    Source: arXiv 2502.01739, Section 5. A step from accuracy 1 to 0 at fraction p has C = 1 / (1 − p). C is
    infinite where every accuracy is 1.

    Args:
        fractions: Ascending from 0 to 1, shape (K,).
        accuracies: Shape (..., K), between 0 and 1.

    Returns:
        Shape (...,), float64.

    Raises:
        ValueError: The fractions do not ascend from 0 to 1.

    Example:
        >>> compressibility([0, 0.5, 1], torch.tensor([1.0, 1.0, 0.0]))
        tensor(4., dtype=torch.float64)
    """
    # The area lost, rather than one minus the area kept: no cancellation, and exactly 0 for a perfect curve.
    return 1 / area(fractions, 1 - torch.as_tensor(accuracies).double())


def kept_share(
    fractions: Tensor | Sequence[float], accuracies: Tensor, *, chance: float, retain: float = 0.95
) -> Tensor:
    """Smallest share of weights such that this and every larger share keep a part of the unpruned accuracy.

    1 − max {p : accuracy(q) ≥ retain · accuracy(0) for all q ≤ p}. A curve that falls below and comes back counts
    until it first falls, so that grids of different fineness agree within the step of the coarser one, as long
    as no fall is so short that the coarser one misses it.

    Args:
        fractions: Ascending from 0, shape (K,).
        accuracies: Shape (..., K).
        chance: Accuracy of a guess, 1 / classes.
        retain: Part of the unpruned accuracy to keep, between 0 and 1.

    Returns:
        Shape (...,), float64; NaN where the unpruned accuracy is NaN or at chance
        (`lit_grok.measures.grokking.chance_bound`): nothing was learned that could be kept.

    Raises:
        ValueError: The fractions do not ascend from 0.

    Example:
        >>> kept_share([0, 0.25, 0.5, 0.75, 1], torch.tensor([0.9, 0.88, 0.6, 0.88, 0.1]), chance=0.1)
        tensor(0.7500, dtype=torch.float64)
    """
    fractions = _ascending(fractions)
    if len(fractions) == 0 or fractions[0] != 0:
        raise ValueError("the unpruned accuracy needs fractions that ascend from 0")
    accuracies = torch.as_tensor(accuracies).double().cpu()
    unpruned = accuracies[..., :1]
    kept = (accuracies >= retain * unpruned).long().cumprod(-1)
    share = (1 - fractions * kept).amin(-1)
    return share.where(unpruned[..., 0] > chance_bound(chance), torch.nan)


def _ascending(fractions: Tensor | Sequence[float]) -> Tensor:
    grid = torch.as_tensor(fractions, dtype=torch.float64).cpu()
    if isinstance(fractions, Tensor) and fractions.dtype == torch.float32:
        grid = grid.new_tensor([float(_meant(p, torch.float32)) for p in grid.flatten().tolist()]).view_as(grid)
    if grid.ndim != 1 or not ((grid >= 0) & (grid <= 1)).all() or (grid.diff() < 0).any():
        raise ValueError("fractions must be one ascending row of numbers between 0 and 1")
    return grid


def _steps(scores: Tensor, fractions: Tensor) -> Tensor:
    """Index of the first fraction that removes each of n scored entries, shape (n,)."""
    counts = torch.tensor([round(_meant(p) * len(scores)) for p in fractions.tolist()], device=scores.device)
    ranks = torch.arange(len(scores), device=scores.device)
    steps = torch.empty_like(ranks)
    steps[scores.argsort(stable=True)] = torch.searchsorted(counts, ranks, right=True)
    return steps


@lru_cache(maxsize=4096)  # a grid is asked for again and again, layer after layer
def _meant(p: float, precision: torch.dtype = torch.float64) -> Fraction:
    """The fraction that p stands for: 11/20 for .55, whose double lies 4e-17 above it; p itself where there is none."""
    simple = Fraction(p).limit_denominator(1000)
    return simple if abs(simple - Fraction(p)) <= torch.finfo(precision).eps else Fraction(p)


def _forward(network: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Logits (B, N, C) of N inputs with each of B sets of parameters."""
    stacked = getattr(network, "forward_stack", None)
    if stacked is None:
        return vmap(lambda each: functional_call(network, each, (inputs,)))(parameters)
    count = len(next(iter(parameters.values())))
    # Some at a time: of all inputs the activations would leave the cache.
    return torch.cat([stacked(parameters, part.expand(count, *part.shape)) for part in inputs.split(1024)], 1)


def _masked(network: nn.Module, steps: Mapping[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
    """Every parameter at each of B fractions, shape (B, …)."""
    masked = {}
    for name, parameter in network.named_parameters():
        value = parameter.detach()
        if name in steps:
            index = indices.to(value.device).view(-1, *[1] * value.ndim)
            masked[name] = torch.where(steps[name] > index, value, torch.zeros_like(value))
        else:
            masked[name] = value.expand(len(indices), *value.shape)
    return masked


# Inputs held together: a constant, so that the innermost loop over them compiles to vector instructions.
_TILE = 64


class _Table(NamedTuple):
    """The weights that leave each of the R rows of a layer, with the layer's bias as the last row."""

    values: np.ndarray  # (R, columns), float64
    order: np.ndarray  # (R, columns): each row's columns by ascending step
    starts: np.ndarray  # (R, K + 2): where step k begins within order


def _token_pair_tables(
    network: nn.Module, inputs: Tensor, steps: Mapping[str, Tensor], count: int
) -> tuple[_Table, _Table, torch.dtype] | None:
    """Both layers of a network on token pairs and its precision; None where the general path is needed."""
    layers = list(network.relu_layers()) if isinstance(network, HasReluLayers) else []
    if len(layers) != 2 or inputs.is_floating_point() or inputs.device.type != "cpu":
        return None
    dtype = layers[0].weight.dtype
    # A diverged network has no incremental update: inf − inf stays NaN after the weight is gone.
    if dtype not in (torch.float32, torch.float64) or not all(p.isfinite().all() for p in network.parameters()):
        return None
    names = {module: name for name, module in network.named_modules()}

    def table(layer: nn.Linear) -> _Table:
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        values = torch.cat([weight.t(), bias[None]]).double()
        never = torch.full_like(weight, count, dtype=torch.int64)
        weight_steps = steps.get(f"{names[layer]}.weight", never)
        bias_steps = steps.get(f"{names[layer]}.bias", never[:, 0])
        return _Table(values.numpy(), *_by_step(torch.cat([weight_steps.t(), bias_steps[None]]).numpy(), count))

    return table(layers[0]), table(layers[1]), dtype


def _incremental(
    first: _Table, second: _Table, dtype: torch.dtype, inputs: Tensor, targets: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Accuracies and losses, shape (K,), of ``count`` fractions, one tile of inputs after another."""
    hidden, classes = first.values.shape[1], second.values.shape[1]
    residues = (len(first.values) - 1) // 2
    rows = torch.stack([inputs[:, 0], inputs[:, 1] + residues, torch.full_like(inputs[:, 0], 2 * residues)], 1)
    embedding, unembedding = torch.from_numpy(first.values), torch.from_numpy(second.values)
    # Adding and subtracting this rounds a logit to about 2⁻³⁶ of the largest one possible: far finer than
    # single precision, far coarser than the error that updates accumulate, so what cancels is exactly 0.
    largest = (3 * embedding.abs().amax() + 1) * unembedding.abs().sum(0).amax()
    snap = 1.5 * 2.0**16 * largest.item()

    correct = np.zeros(count, dtype=np.int64)
    losses = torch.zeros(count, dtype=torch.float64)
    for tile, labels in zip(rows.split(_TILE), targets.split(_TILE), strict=True):
        real = len(tile)
        tile = F.pad(tile, (0, 0, 0, _TILE - real))
        preactivations = torch.ones(_TILE, hidden + 1, dtype=torch.float64)  # the last neuron carries the bias
        preactivations[:, :-1] = embedding[tile].sum(1)
        logits = preactivations.relu() @ unembedding
        at_each = torch.empty(count, real, classes, dtype=dtype)
        _sweep(
            tile.numpy(),
            first,
            second,
            preactivations.t().contiguous().numpy(),
            logits.numpy(),
            snap,
            labels.numpy(),
            at_each.numpy(),
            correct,
        )
        each = F.cross_entropy(at_each.flatten(0, 1), labels.repeat(count), reduction="none")
        losses += each.view(count, real).double().sum(1)
    return torch.from_numpy(correct / len(targets)), losses / len(targets)


@compiled
def _by_step(steps, count):
    """Columns of each row by ascending step, (R, columns), and where each step begins, (R, count + 2)."""
    n_rows, n_columns = steps.shape
    order = np.empty((n_rows, n_columns), np.int32)
    starts = np.zeros((n_rows, count + 2), np.int64)
    for r in range(n_rows):
        for c in range(n_columns):
            starts[r, steps[r, c] + 1] += 1
        for k in range(count + 1):
            starts[r, k + 1] += starts[r, k]
        position = starts[r].copy()
        for c in range(n_columns):
            order[r, position[steps[r, c]]] = c
            position[steps[r, c]] += 1
    return order, starts


@compiled
def _sweep(rows, first, second, preactivations, logits, snap, targets, at_each, correct):
    """Remove the weights of fraction after fraction from one tile of inputs.

    ``preactivations`` (hidden + 1, tile) and ``logits`` (tile, C) come in as those of the unpruned network;
    ``at_each`` (K, real, C) is filled with the logits and ``correct`` (K,) counts the inputs that are right.
    """
    count, real, classes = at_each.shape
    weight = second.values.copy()
    removed = np.zeros((classes, _TILE))  # what the removal of second-layer weights takes from the logits
    change = np.empty(rows.shape[1] * len(weight) + 1)
    changed = np.empty(len(change), np.int64)
    for k in range(count):
        for i in range(real):
            # Which activations change is unpredictable: list them without a branch, then update the logits.
            m = 0
            for r in rows[i]:
                for e in range(first.starts[r, k], first.starts[r, k + 1]):
                    n = first.order[r, e]
                    before = preactivations[n, i]
                    after = before - first.values[r, n]
                    preactivations[n, i] = after
                    change[m] = max(after, 0.0) - max(before, 0.0)
                    changed[m] = n
                    m += change[m] != 0.0
            row = logits[i]
            for j in range(m):
                d = change[j]
                w = weight[changed[j]]
                for c in range(classes):
                    row[c] += d * w[c]
        for n in range(len(weight)):
            for e in range(second.starts[n, k], second.starts[n, k + 1]):
                c = second.order[n, e]
                w = weight[n, c]
                weight[n, c] = 0.0
                for i in range(_TILE):
                    removed[c, i] += w * max(preactivations[n, i], 0.0)
        for i in range(real):
            row = at_each[k, i]
            for c in range(classes):
                row[c] = (logits[i, c] - removed[c, i] + snap) - snap
            # As argmax: of equal logits the first wins.
            target = targets[i]
            ahead = 0
            for c in range(target):
                ahead += row[c] >= row[target]
            for c in range(target + 1, classes):
                ahead += row[c] > row[target]
            correct[k] += ahead == 0
