"""The exact diagonal of the Fisher information matrix.

For a network with logits z(x) and p = softmax(z), averaged over the inputs x,

    F_i = E_x Σ_y p(y|x) (∂_i log p(y|x))²    ``classif_logits`` (Eq. 14 of arXiv 2502.01739)
    F_i = E_x Σ_c (∂_i z_c)²                  ``regression``

Everything below rests on one rewriting. Let m be the most probable class and s = 1 − p_m = Σ_{c≠m} p_c. The
*residual* p̃ = p − onehot(m) is p_c off m and −s at m, none of them found by a subtraction, and

    p_c (1 − p_c) = |p̃_c| (1 − |p̃_c|),
    Var_{c~p}(w_c) = Σ_c p̃_c w_c² − d (2 w_m + d),    d = Σ_c p̃_c w_c,

in which what cancels catastrophically as p → one-hot has cancelled on paper: every term left is O(s).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from nngeometry.metrics import FIM
from nngeometry.object import PMatDiag
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Variant = Literal["classif_logits", "regression"]
Method = Literal["exact", "nngeometry"]
RuleLayer = nn.Linear | nn.Conv2d


@runtime_checkable
class HasReluLayers(Protocol):
    """A network that is Linear, ReLU, …, Linear on the two-hot encoding of token pairs (a, b)."""

    def relu_layers(self) -> Sequence[nn.Linear]:
        """The linear layers, first to last; the first has 2P inputs, hot at a and at P + b."""
        ...


@torch.inference_mode(False)  # Lightning validates in that mode, where nothing can be differentiated
def fisher_diagonal(
    network: nn.Module,
    inputs: Tensor,
    variant: Variant = "classif_logits",
    method: Method = "exact",
    chunk_size: int = 512,
) -> Tensor:
    """Diagonal Fisher information of every parameter, averaged over the inputs.

    ``exact`` takes the cheapest exact route that the network allows. Integer token pairs into one hidden
    layer need no backward pass (``two_layer_fisher_diagonal``), nor does the last layer of other networks.
    Networks of ``nn.Linear`` and ``nn.Conv2d``, each called once per forward, need one batched backward pass
    per column of a square root of diag(p) − ppᵀ, which has (classes − 1) of them. Anything else is
    differentiated input by input. Inputs are taken as independent: put batch normalisation and dropout in
    evaluation mode.

    Args:
        network: Gives logits, shape (N, classes). Not modified; its parameters need not require a gradient.
        inputs: Shape (N, …), whatever the network takes.
        variant: ``classif_logits`` for a softmax classifier, ``regression`` for Gaussian outputs of unit
            variance.
        method: ``exact``, or ``nngeometry`` for the reference (George 2021), which is slow, and NaN
            throughout as soon as p is one-hot for one input.
        chunk_size: Inputs held at a time, which bounds the memory. The result does not depend on it.

    Returns:
        Shape (D,), with the device and dtype of the parameters, in the order of ``network.parameters()``,
        each flattened row by row: that of ``torch.cat([p.flatten() for p in network.parameters()])``.

    Raises:
        ValueError: If there is no input, or for an unknown variant or method, or a chunk size below 1.

    Example:
        A logistic regression with p = (1/2, 1/2): F = p (1 − p) x² for each weight.

        >>> network = nn.Linear(1, 2)
        >>> _ = nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
        >>> fisher_diagonal(network, torch.tensor([[2.0]]))
        tensor([1.0000, 1.0000, 0.2500, 0.2500])
    """
    _check(len(inputs), variant, chunk_size)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: choose from {', '.join(get_args(Method))}")
    inputs = inputs.clone() if inputs.is_inference() else inputs
    if method == "nngeometry":
        values = _nngeometry(network, inputs, variant, chunk_size)
    elif isinstance(network, HasReluLayers) and not inputs.is_floating_point():
        values = _token_mlp(network.relu_layers(), inputs, variant, chunk_size)
    elif (layers := _layers_with_a_rule(network, inputs[:1])) is not None:
        values = _layer_rules(layers, network, inputs, variant, chunk_size)
    else:
        values = _per_sample(network, inputs, variant, chunk_size)
    return torch.cat([values[parameter].flatten() for parameter in network.parameters()])


def fisher_scores(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    variant: Variant = "classif_logits",
    chunk_size: int = 512,
) -> dict[str, Tensor]:
    """Importance of every parameter entry, its diagonal Fisher information, as Fisher pruning ranks by it.

    Args:
        network: The unpruned network; not modified.
        batch: Inputs, shape (N, …), and targets, which the Fisher information does not depend on.
        variant: ``classif_logits`` or ``regression``.
        chunk_size: Inputs held at a time.

    Returns:
        Parameter name to values of the parameter's shape, as ``pruning_curve(…, scheme="fisher", scores=…)`` takes.

    Raises:
        ValueError: As ``fisher_diagonal``.

    Example:
        >>> network = nn.Linear(1, 2)
        >>> _ = nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
        >>> fisher_scores(network, (torch.tensor([[2.0]]), torch.tensor([0])))["bias"]
        tensor([0.2500, 0.2500])
    """
    named = dict(network.named_parameters())
    parts = fisher_diagonal(network, batch[0], variant, chunk_size=chunk_size).split(
        [p.numel() for p in named.values()]
    )
    return {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}


@torch.no_grad()
def two_layer_fisher_diagonal(
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    pairs: Tensor,
    variant: Variant = "classif_logits",
    chunk_size: int = 512,
) -> Tensor:
    """Diagonal Fisher information of z = W₂ relu(W₁ x + b₁) + b₂ on two-hot x, without a backward pass.

    With h the hidden activations, m the ReLU mask, x the two-hot input and products elementwise,

        F(W₂) = E[p (1 − p) hᵀ²],   F(W₁) = E[(m ∘ Var_{c~p}(W₂[c, :])) xᵀ²],

    the biases the same without the last factor; ``regression`` has 1 for p (1 − p) and Σ_c W₂[c, :]² for the
    variance. x² = x is never formed: the rows of each token are added up. What remains are four matrix
    products of the size of W₂ h. Every leading dimension of the parameters is one of replicas.

    Args:
        W1: First weight, shape (…, hidden, 2P).
        b1: First bias, shape (…, hidden).
        W2: Output weight, shape (…, classes, hidden).
        b2: Output bias, shape (…, classes).
        pairs: Token pairs (a, b), 0 ≤ a, b < P: integers (N, 2), or (…, N, 2) where replicas have their own.
        variant: ``classif_logits`` or ``regression``.
        chunk_size: Inputs held at a time; some 500 keep the work of 512 neurons in a CPU's cache.

    Returns:
        Shape (…, D): W1 row by row, b1, W2 row by row, b2.

    Raises:
        ValueError: If there is no input, for an unknown variant, or a chunk size below 1.

    Example:
        >>> W1, b1, W2, b2 = torch.ones(1, 4), torch.zeros(1), torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
        >>> two_layer_fisher_diagonal(W1, b1, W2, b2, torch.tensor([[0, 1]]), variant="regression")
        tensor([2., 0., 0., 2., 2., 4., 4., 1., 1.])
    """
    _check(pairs.shape[-2], variant, chunk_size)
    leading = W1.shape[:-2]
    pairs = pairs.expand(*leading, *pairs.shape[-2:])
    W1, b1, W2, b2, pairs = (t.reshape(-1, *t.shape[len(leading) :]) for t in (W1, b1, W2, b2, pairs))
    # One after another, what a replica needs stays in the cache of a CPU.
    at_once = len(W1) if W1.is_cuda else 1
    parts = zip(*(t.split(at_once) for t in (W1, b1, W2, b2, pairs)), strict=True)
    found = [_two_layers(part, variant, chunk_size) for part in parts]
    return torch.cat(found).view(*leading, -1)


def _two_layers(stacks: Sequence[Tensor], variant: Variant, chunk_size: int) -> Tensor:
    """`two_layer_fisher_diagonal` of R replicas at once, each argument with one leading dimension."""
    W1, b1, W2, b2, pairs = stacks
    replicas, hidden, tokens = W1.shape
    classes = W2.shape[1]
    first_rows = torch.arange(0, replicas * tokens, tokens, device=W1.device).view(-1, 1, 1)
    first_classes = torch.arange(0, replicas * classes, classes, device=W1.device).view(-1, 1)
    # One row per token, the bias in those of the first operand: a pre-activation is a sum of two rows.
    table = W1.mT.clone(memory_format=torch.contiguous_format)
    table[:, : tokens // 2] += b1.unsqueeze(1)
    table = table.flatten(0, 1)
    # The variance does not see a constant added to all classes; without it there is less to cancel.
    centred = W2 - W2.mean(1, keepdim=True)
    doubled, squared = 2 * centred.flatten(0, 1), centred.square()
    norms = W2.square().sum(1, keepdim=True)

    sum_w1 = W1.new_zeros(replicas * tokens, hidden)
    sum_w2 = torch.zeros_like(W2, memory_format=torch.contiguous_format)
    sum_b2 = torch.zeros_like(b2)
    for chunk in pairs.split(chunk_size, 1):
        rows = (_table_rows(chunk, tokens // 2) + first_rows).flatten(0, 1)
        h = F.embedding_bag(rows, table, mode="sum").relu_().view(replicas, -1, hidden)
        if variant == "classif_logits":
            residual, top = _residual(torch.baddbmm(b2.unsqueeze(1), h, W2.mT))
            d = residual @ centred
            variance = residual @ squared
            variance.addcmul_(d, doubled[top + first_classes].add_(d), value=-1)
            variance = torch.ops.aten.threshold_backward(variance, h, 0)  # the ReLU mask in one pass
            weight = _bernoulli_variance(residual)
        else:
            variance = (h > 0) * norms
            weight = torch.ones_like(b2).unsqueeze(1).expand(-1, chunk.shape[1], -1)
        variance = variance.flatten(0, 1)
        sum_w1.index_add_(0, rows[:, 0], variance).index_add_(0, rows[:, 1], variance)
        sum_w2.baddbmm_(weight.mT, h.square_())
        sum_b2 += weight.sum(1)
    # Each input has one token among the first P, so their rows add up to the bias.
    sum_w1 = sum_w1.view(replicas, tokens, hidden)
    sum_b1 = sum_w1[:, : tokens // 2].sum(1)
    flat = torch.cat([sum_w1.mT.flatten(1), sum_b1, sum_w2.flatten(1), sum_b2], 1)
    # Rounding may leave an exact zero a little below it, and its square root would be NaN.
    return flat.clamp_(min=0).div_(pairs.shape[1])


def two_layer_parameters(
    network: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """W1, b1, W2 and b2 of R replicas as `two_layer_fisher_diagonal` takes them.

    Args:
        network: One of the replicas.
        parameters: Name to the values of all replicas, shape (R, …), in the order of ``network.parameters()``.
        inputs: What the networks are fed.

    Returns:
        The four, or None where the network is another one or is not fed pairs of tokens.

    Example:
        >>> stacked = {"weight": torch.zeros(3, 2, 4), "bias": torch.zeros(3, 2)}
        >>> two_layer_parameters(nn.Linear(4, 2), stacked, torch.zeros(3, 5, 4)) is None
        True
    """
    if not isinstance(network, HasReluLayers) or inputs.is_floating_point() or len(network.relu_layers()) != 2:
        return None
    own = [p for layer in network.relu_layers() for p in (layer.weight, layer.bias)]
    if list(map(id, own)) != list(map(id, network.parameters())):
        return None
    W1, b1, W2, b2 = parameters.values()
    return W1, b1, W2, b2


@dataclass
class _Layer:
    """One call of a layer."""

    module: RuleLayer
    inputs: Tensor  # for a layer that looks up tokens, the rows of its table
    output: Tensor
    passed_on: Tensor  # the output as the rest of the network was handed it


def _check(count: int, variant: str, chunk_size: int) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"variant={variant!r}: choose from {', '.join(get_args(Variant))}")
    if count < 1 or chunk_size < 1:
        raise ValueError(f"{count} inputs in chunks of {chunk_size}: both are at least 1")


def _zeros(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    return {p: torch.zeros_like(p, memory_format=torch.contiguous_format, requires_grad=False) for p in parameters}


def _averages(sums: dict[Tensor, Tensor], count: int) -> dict[Tensor, Tensor]:
    return {parameter: total / count for parameter, total in sums.items()}


def _table_rows(pairs: Tensor, P: int) -> Tensor:
    """Where each token of a pair is hot: a and P + b."""
    return pairs.long() + torch.arange(0, 2 * P, P, device=pairs.device)


def _residual(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The residual p̃, each entry to full relative precision, and the most probable class m."""
    highest, top = logits.max(-1, keepdim=True)
    e = (logits - highest).exp_().scatter_(-1, top, 0)
    others = e.sum(-1, keepdim=True)
    return e.scatter_(-1, top, -others).div_(1 + others), top.squeeze(-1)


def _bernoulli_variance(residual: Tensor) -> Tensor:
    """Each class's p (1 − p)."""
    magnitude = residual.abs()
    return magnitude.addcmul_(magnitude, magnitude, value=-1)


def _root_columns(logits: Tensor, variant: str) -> Iterator[Tensor]:
    """Columns v_k(x), shape (N, classes): Σ_k v_k v_kᵀ = diag(p) − ppᵀ, or the identity for ``regression``.

    With u = √p off m and 0 at m, the block of the classes other than m is diag(u)(I − uuᵀ)diag(u). Its square
    root is diag(u)(I − uuᵀ / (1 + √p_m)), and the row of m, −√p_m u, makes every column sum to zero.
    """
    count, classes = logits.shape
    if variant == "regression":
        for k in range(classes):
            yield F.one_hot(torch.tensor(k, device=logits.device), classes).to(logits).expand(count, -1)
        return
    residual, top = _residual(logits)
    top = top.unsqueeze(1)
    root_top = (1 + residual.gather(1, top)).sqrt()
    u = residual.clamp(min=0).sqrt()
    squared = u.square() / (1 + root_top)
    for k in range(classes - 1):
        column = k + (k >= top).long()  # the k-th class that is not m
        u_k = u.gather(1, column)
        yield (-u_k * squared).scatter_add(1, column, u_k).scatter_add(1, top, -u_k * root_top)


def _token_mlp(layers: Sequence[nn.Linear], pairs: Tensor, variant: Variant, chunk_size: int) -> dict[Tensor, Tensor]:
    first, *rest = layers
    parameters: list[Tensor] = [p for layer in layers for p in (layer.weight, layer.bias)]
    if len(layers) == 2:
        W1, b1, W2, b2 = parameters
        flat = two_layer_fisher_diagonal(W1, b1, W2, b2, pairs, variant, chunk_size)
        return dict(zip(parameters, flat.split([p.numel() for p in parameters]), strict=True))

    P = first.in_features // 2
    table = first.weight.detach().t().contiguous()
    sums = _zeros(parameters)
    for chunk in pairs.split(chunk_size):
        rows = _table_rows(chunk, P)
        with torch.enable_grad():
            x = (F.embedding_bag(rows, table, mode="sum") + first.bias.detach()).requires_grad_()
            seen = [_Layer(first, rows, x, x)]
            for layer in rest:
                h = x.relu()
                x = layer(h)
                seen.append(_Layer(layer, h.detach(), x, x))
        _add_squared_gradients(sums, seen, x, variant)
    return _averages(sums, len(pairs))


def _layers_with_a_rule(network: nn.Module, inputs: Tensor) -> list[RuleLayer] | None:
    """The layers that hold all parameters, if each has a rule here and is called exactly once; else None."""
    layers: list[RuleLayer] = []
    for module in network.modules():
        if not list(module.parameters(recurse=False)):
            continue
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and _is_plain(module)):
            layers.append(module)
        else:
            return None
    if sum(len(list(layer.parameters())) for layer in layers) != len(list(network.parameters())):
        return None  # two layers share a parameter
    seen: list[_Layer] = []
    with torch.no_grad():
        _record(network, layers, inputs, seen)
    called_once = len(seen) == len(layers) and {id(layer.module) for layer in seen} == {id(m) for m in layers}
    flat = all(layer.output.ndim == 2 for layer in seen if isinstance(layer.module, nn.Linear))
    return layers if called_once and flat else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.groups == 1 and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _record(network: nn.Module, layers: Sequence[RuleLayer], inputs: Tensor, seen: list[_Layer]) -> Tensor:
    """Logits, with a record in ``seen`` of each call of a layer."""

    def hook(module: RuleLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()
        # A copy goes on, so that an in-place ReLU does not change what the gradient is taken with respect to.
        copy = output.clone()
        seen.append(_Layer(module, args[0].detach(), output, copy))
        return copy

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        return network(inputs)
    finally:
        for handle in handles:
            handle.remove()


def _layer_rules(
    layers: Sequence[RuleLayer], network: nn.Module, inputs: Tensor, variant: Variant, chunk_size: int
) -> dict[Tensor, Tensor]:
    sums = _zeros(network.parameters())
    for chunk in inputs.split(chunk_size):
        seen: list[_Layer] = []
        with torch.enable_grad():
            logits = _record(network, layers, chunk, seen)
        _add_squared_gradients(sums, seen, logits, variant)
    return _averages(sums, len(inputs))


def _add_squared_gradients(sums: dict[Tensor, Tensor], seen: list[_Layer], logits: Tensor, variant: Variant) -> None:
    """Add Σ_x Σ_k (∂ v_k·z)² of the parameters of each layer, δ the gradient of its output.

    The gradient of a linear layer is δ hᵀ, whose square splits into δ² and h²: the columns are added up
    before the one matrix product. That of a convolution is a sum over positions, squared column by column.
    """
    squared_deltas: dict[RuleLayer, Tensor] = {}
    hidden = []
    for layer in seen:
        if layer.passed_on is not logits:
            hidden.append(layer)
            squared_deltas[layer.module] = torch.zeros_like(layer.output)
        elif variant == "classif_logits":  # the last layer's δ is v_k itself
            squared_deltas[layer.module] = _bernoulli_variance(_residual(logits.detach())[0])
        else:
            squared_deltas[layer.module] = torch.ones_like(logits)
    outputs = [layer.output for layer in hidden]
    for column in _root_columns(logits.detach(), variant) if hidden else ():
        deltas = torch.autograd.grad(logits, outputs, column, retain_graph=True, materialize_grads=True)
        for layer, delta in zip(hidden, deltas, strict=True):
            if isinstance(layer.module, nn.Conv2d):
                _add_convolution(sums, layer.module, layer.inputs, delta)
            else:
                squared_deltas[layer.module].addcmul_(delta, delta)
    for layer in seen:
        if isinstance(layer.module, nn.Linear):
            _add_linear(sums, layer.module, layer.inputs, squared_deltas[layer.module])


@torch.no_grad()
def _add_linear(sums: dict[Tensor, Tensor], module: nn.Linear, inputs: Tensor, squared_delta: Tensor) -> None:
    if inputs.is_floating_point():
        sums[module.weight].addmm_(squared_delta.t(), inputs.square())
    else:
        for operand in inputs.unbind(1):
            sums[module.weight].t().index_add_(0, operand, squared_delta)
    if module.bias is not None:
        sums[module.bias].add_(squared_delta.sum(0))


@torch.no_grad()
def _add_convolution(sums: dict[Tensor, Tensor], module: nn.Conv2d, inputs: Tensor, delta: Tensor) -> None:
    assert not isinstance(module.padding, str)
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    delta = delta.flatten(2)
    gradient = delta @ patches.transpose(1, 2)
    sums[module.weight].add_(gradient.square_().sum(0).view_as(module.weight))
    if module.bias is not None:
        sums[module.bias].add_(delta.sum(2).square_().sum(0))


@torch.no_grad()
def _per_sample(network: nn.Module, inputs: Tensor, variant: Variant, chunk_size: int) -> dict[Tensor, Tensor]:
    """Any network that ``torch.func`` can differentiate, one gradient per input and column."""
    parameters = dict(network.named_parameters())
    detached = {name: parameter.detach() for name, parameter in parameters.items()}

    def gradient(x: Tensor, column: Tensor) -> dict[str, Tensor]:
        def projection(weights: dict[str, Tensor]) -> Tensor:
            return (torch.func.functional_call(network, weights, (x.unsqueeze(0),)).squeeze(0) * column).sum()

        return torch.func.grad(projection)(detached)

    sums = _zeros(parameters.values())
    for chunk in inputs.split(chunk_size):
        for column in _root_columns(network(chunk), variant):
            for name, gradients in torch.func.vmap(gradient)(chunk, column).items():
                sums[parameters[name]].add_(gradients.square_().sum(0))
    return _averages(sums, len(inputs))


def _nngeometry(network: nn.Module, inputs: Tensor, variant: Variant, chunk_size: int) -> dict[Tensor, Tensor]:
    """The reference; token pairs go in as the network's dense two-hot, since nngeometry hooks layers."""
    like = next(network.parameters())
    two_hot = getattr(network, "two_hot", None)
    dense = two_hot(inputs) if two_hot and not inputs.is_floating_point() else inputs.to(like.dtype)
    loader = DataLoader(TensorDataset(dense), batch_size=chunk_size)
    default = torch.get_default_dtype()
    torch.set_default_dtype(like.dtype)  # nngeometry makes its buffers in the default dtype
    try:
        with torch.enable_grad():
            matrix = FIM(network, loader, PMatDiag, variant=variant, device=like.device)
    finally:
        torch.set_default_dtype(default)
    values: dict[Tensor, Tensor] = {}
    for name, start in matrix.generator.layer_collection.p_pos.items():
        for parameter in network.get_submodule(name).parameters(recurse=False):
            values[parameter] = matrix.get_diag()[start : start + parameter.numel()]
            start += parameter.numel()
    return values
