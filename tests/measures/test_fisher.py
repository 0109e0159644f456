from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from lit_grok.measures.fisher import fisher_diagonal, fisher_scores, two_layer_fisher_diagonal
from lit_grok.measures.pruning import removal_steps
from lit_grok.networks import IsingCNN, ModularMLP
from lit_grok.replicas import ReplicaStack

VARIANTS = ["classif_logits", "regression"]


class ReluMLP(ModularMLP):
    def relu_layers(self):
        return [*self.hidden, self.output]


def randomised(network, seed=0, scale=0.3):
    """Seeded, and random biases too: a ModularMLP's own are zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def token_pairs(P, count, seed=0):
    return torch.randint(P, (count, 2), generator=torch.Generator().manual_seed(seed))


def spins(side, count, seed=0):
    return 2.0 * torch.randint(2, (count, side, side), generator=torch.Generator().manual_seed(seed)) - 1


def shipped(name, dtype=torch.float32):
    """A network of the project with random parameters, and inputs for it."""
    if name == "cnn":
        return randomised(IsingCNN(side=8), scale=0.1).to(dtype), spins(8, 30)
    network = randomised(ReluMLP(P=11, hidden=[16, 12] if name == "deep mlp" else [16])).to(dtype)
    pairs = token_pairs(11, 50)
    return network, network.two_hot(pairs) if name == "mlp, dense" else pairs


SHIPPED = ["mlp", "mlp, dense", "deep mlp", "cnn"]


def by_jacobian(network, inputs, variant):
    """The definition, from the Jacobian of the logits of one input at a time."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    total = 0
    for x in inputs:

        def logits(weights, x=x):
            return functional_call(network, weights, (x.unsqueeze(0),)).squeeze(0)

        jacobian = torch.cat([j.flatten(1) for j in jacrev(logits)(parameters).values()], dim=1)
        p = logits(parameters).softmax(0)
        metric = p.diag() - p.outer(p) if variant == "classif_logits" else torch.eye(len(p), dtype=p.dtype)
        total = total + torch.einsum("ci,cd,di->i", jacobian, metric, jacobian)
    return (total / len(inputs)).detach()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_agrees_with_nngeometry(name, variant, dtype, tolerance):
    network, inputs = shipped(name, dtype)
    exact = fisher_diagonal(network, inputs, variant, chunk_size=16)
    reference = fisher_diagonal(network, inputs, variant, method="nngeometry")
    assert exact.dtype == dtype
    assert exact.shape == (sum(p.numel() for p in network.parameters()),)
    assert torch.allclose(exact, reference, rtol=tolerance, atol=tolerance * reference.max().item() * 1e-3)
    assert (exact - reference).norm() <= tolerance * reference.norm()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHIPPED)
def test_agrees_with_the_jacobian(name, variant):
    network, inputs = shipped(name, torch.float64)
    inputs = inputs[:6].double() if name == "cnn" else inputs[:6]
    expected = by_jacobian(network, inputs, variant)
    torch.testing.assert_close(fisher_diagonal(network, inputs, variant), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "deep mlp", "cnn"])
def test_is_the_second_order_of_the_kl_divergence(name):
    """KL(p_θ ‖ p_{θ + ε e_i}) = ε² F_i / 2 + O(ε³), of which the odd order cancels between ±ε."""
    if name == "cnn":
        network, inputs = randomised(IsingCNN(side=4), scale=0.1).double(), spins(4, 5).double()
    else:
        hidden = [4] if name == "mlp" else [4, 3]
        network, inputs = randomised(ReluMLP(P=5, hidden=hidden)).double(), token_pairs(5, 9)
    moved = deepcopy(network)

    @torch.no_grad()
    def log_p(weights):
        for parameter, values in zip(moved.parameters(), weights.split(sizes), strict=True):
            parameter.copy_(values.view(parameter.shape))
        return moved(inputs).log_softmax(1)

    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    sizes = [p.numel() for p in network.parameters()]
    here, epsilon = log_p(flat), 3e-5  # small enough to cross no kink of a ReLU
    indices = range(0, len(flat), 1 + len(flat) // 150)
    expected = []
    for i in indices:
        step = torch.zeros_like(flat)
        step[i] = epsilon
        there = (log_p(flat + step) + log_p(flat - step)) / 2
        expected.append(2 * (here.exp() * (here - there)).sum(1).mean() / epsilon**2)
    actual = fisher_diagonal(network, inputs)[list(indices)]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-6)


class OneHotted:
    """A small network fitted on all pairs; multiplying its logits makes p one-hot to many digits."""

    def __init__(self):
        torch.manual_seed(0)
        self.pairs = torch.cartesian_prod(torch.arange(17), torch.arange(17))
        self.network = ReluMLP(P=17, hidden=[64])
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(self.network(self.pairs), self.pairs.sum(1) % 17).backward()
            optimizer.step()

    def scaled(self, factor):
        network = deepcopy(self.network)
        with torch.no_grad():
            network.output.weight.mul_(factor)
            network.output.bias.mul_(factor)
        return network


@pytest.fixture(scope="module")
def one_hotted():
    return OneHotted()


def textbook(network, pairs):
    """p − p² and (W₂²)ᵀp − (W₂ᵀp)², as they are usually written."""
    W1, _, W2, _ = (p.detach() for p in network.parameters())
    pre = network.preactivations(pairs)["hidden.0"].detach()
    p = network(pairs).detach().softmax(1)
    output, hidden = p - p**2, (pre > 0) * (p @ W2**2 - (p @ W2) ** 2)
    x, h2 = network.two_hot(pairs), pre.relu() ** 2
    blocks = [hidden.T @ x, hidden.sum(0), output.T @ h2, output.sum(0)]
    assert blocks[0].shape == W1.shape
    return torch.cat([b.flatten() for b in blocks]) / len(pairs)


def relative_errors(values, reference):
    """Relative error of every entry that float32 can hold, and that of the whole vector."""
    held = reference > 1e-30
    error = (values.double() - reference).abs()
    return error[held] / reference[held], (error.norm() / reference.norm()).item()


@pytest.mark.parametrize(
    ("factor", "worst", "textbook_worst", "textbook_whole"),
    [(1, 1e-5, 0, 0), (10, 5e-3, 10, 0), (100, 5e-3, 0.99, 0.9)],
)
def test_float32_keeps_the_small_entries(one_hotted, factor, worst, textbook_worst, textbook_whole):
    """At ×10 the textbook form puts noise into the small entries, at ×100 it has lost everything."""
    network = one_hotted.scaled(factor)
    truth = fisher_diagonal(deepcopy(network).double(), one_hotted.pairs)
    entries, whole = relative_errors(fisher_diagonal(network, one_hotted.pairs), truth)
    assert len(entries) > 500
    assert entries.max() < worst
    assert entries.quantile(0.95) < 1e-4
    assert whole < 1e-4
    entries, whole = relative_errors(textbook(network, one_hotted.pairs), truth)
    assert entries.max() > textbook_worst
    assert whole > textbook_whole


@pytest.mark.parametrize("factor", [1, 10, 100])
def test_layer_rules_keep_them_too(one_hotted, factor):
    network = one_hotted.scaled(factor)
    truth = fisher_diagonal(deepcopy(network).double(), one_hotted.pairs)
    entries, whole = relative_errors(fisher_diagonal(network, network.two_hot(one_hotted.pairs)), truth)
    assert entries.max() < 5e-4
    assert whole < 1e-4


class Tied(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.output = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.output(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Shared(nn.Module):
    """Two layers, one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.output = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.output(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Positions(nn.Module):
    """A linear layer applied at several positions of an input."""

    def __init__(self):
        super().__init__()
        self.first, self.output = nn.Linear(2, 5), nn.Linear(10, 3)

    def forward(self, x):
        return self.output(self.first(x.unflatten(1, (2, 2))).relu().flatten(1))


class Unused(nn.Module):
    """A layer that the logits do not depend on."""

    def __init__(self):
        super().__init__()
        self.idle, self.output = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        self.idle(x)
        return self.output(x)


def general_networks():
    image = (nn.Unflatten(1, (1, 2, 2)),)
    return {
        "linear": nn.Linear(4, 3),
        "no bias": nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        "in-place relu": nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        "after the logits": nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Tanh()),
        "strided conv": nn.Sequential(
            *image,
            nn.Conv2d(1, 2, 2, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, 2),
        ),
        "grouped conv": nn.Sequential(
            *image, nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 2)
        ),
        "layer norm": nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
        "tied": Tied(),
        "shared": Shared(),
        "positions": Positions(),
        "unused": Unused(),
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", general_networks())
def test_any_network(name, variant):
    torch.manual_seed(0)
    network = general_networks()[name].double()
    inputs = torch.randn(7, 4, dtype=torch.float64)
    expected = by_jacobian(network, inputs, variant)
    actual = fisher_diagonal(network, inputs, variant, chunk_size=3)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-15)


def test_tokens_of_a_network_without_the_protocol():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.output = nn.Embedding(5, 4), nn.Linear(4, 5)

        def forward(self, pairs):
            return self.output(self.embedding(pairs).sum(-2).relu())

    torch.manual_seed(0)
    network, pairs = Lookup().double(), token_pairs(5, 8)
    expected = by_jacobian(network, pairs, "classif_logits")
    torch.testing.assert_close(fisher_diagonal(network, pairs), expected, rtol=1e-10, atol=1e-15)


def test_order_is_the_logical_one_of_each_parameter():
    """The first weight lies in memory column by column; (neuron, token) is still at neuron × 2P + token."""
    network = ReplicaStack([randomised(ReluMLP(P=7, hidden=[6]))]).networks[0]
    assert not network.hidden[0].weight.is_contiguous()
    first = fisher_diagonal(network, torch.tensor([[2, 4]]), "regression")[: 6 * 14].view(6, 14)
    assert first.sum(0).nonzero().flatten().tolist() == [2, 7 + 4]


@pytest.mark.parametrize("name", SHIPPED)
def test_leaves_the_network_alone(name):
    network, inputs = shipped(name)
    network.requires_grad_(False)
    before = deepcopy(network.state_dict())
    with torch.no_grad():
        result = fisher_diagonal(network, inputs)
    assert not result.requires_grad
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("method", ["exact", "nngeometry"])
@pytest.mark.parametrize("name", SHIPPED)
def test_works_where_lightning_validates(name, method):
    network, inputs = shipped(name)
    expected = fisher_diagonal(network, inputs, method=method)
    with torch.inference_mode():
        torch.testing.assert_close(fisher_diagonal(network, inputs.clone(), method=method), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHIPPED)
def test_chunks_do_not_change_the_result(name, variant):
    network, inputs = shipped(name, torch.float64)
    whole, *rest = (fisher_diagonal(network, inputs, variant, chunk_size=size) for size in (1000, 7, 1))
    for part in rest:
        torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("own_pairs", [False, True])
def test_leading_dimensions_are_replicas(variant, own_pairs):
    networks = [randomised(ReluMLP(P=5, hidden=[6]), seed=i) for i in range(6)]
    pairs = [token_pairs(5, 9, seed=i if own_pairs else 0) for i in range(6)]
    parameters = zip(*(network.parameters() for network in networks), strict=True)
    stacks = [torch.stack(values).detach().unflatten(0, (3, 2)) for values in parameters]
    inputs = torch.stack(pairs).unflatten(0, (3, 2)) if own_pairs else pairs[0]
    stacked = two_layer_fisher_diagonal(*stacks, inputs, variant)
    alone = [fisher_diagonal(n, p, variant) for n, p in zip(networks, pairs, strict=True)]
    torch.testing.assert_close(stacked, torch.stack(alone).unflatten(0, (3, 2)))


@pytest.mark.parametrize("name", SHIPPED)
def test_collapsed_and_certain_networks_have_no_negative_entry(name):
    network, inputs = shipped(name)
    for factor in (0.0, 1e-3, 1e4):
        scaled = deepcopy(network)
        for parameter in scaled.parameters():
            parameter.data.mul_(factor)
        result = fisher_diagonal(scaled, inputs)
        assert torch.isfinite(result).all()
        assert (result >= 0).all()


def test_a_diverged_network_gives_nan():
    network, inputs = shipped("mlp")
    network.output.bias.data[0] = torch.nan
    assert fisher_diagonal(network, inputs).isnan().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "logits"}, "classif_logits, regression"),
        ({"method": "kfac"}, "exact, nngeometry"),
        ({"chunk_size": 0}, "at least 1"),
    ],
)
def test_errors_name_the_choices(options, message):
    network, inputs = shipped("mlp")
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(network, inputs, **options)
    with pytest.raises(ValueError, match="at least 1"):
        fisher_diagonal(network, inputs[:0])


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_diagonal_by_name(name, variant):
    network, inputs = shipped(name)
    scores = fisher_scores(network, (inputs, torch.zeros(len(inputs))), variant)
    assert list(scores) == [parameter for parameter, _ in network.named_parameters()]
    assert torch.equal(torch.cat([s.flatten() for s in scores.values()]), fisher_diagonal(network, inputs, variant))
    # The least informative of all entries, whatever their layer, goes first.
    steps = removal_steps(network, [0, 0.5, 1], "fisher", scores=scores)
    first, later = (
        torch.cat([scores[n][pick(steps[n])] for n in scores]) for pick in (lambda s: s <= 1, lambda s: s > 1)
    )
    assert first.max() <= later.min()
