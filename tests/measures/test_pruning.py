import copy
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lit_grok.measures import pruning
from lit_grok.measures.pruning import area, compressibility, kept_share, pruned, pruning_curve, removal_steps
from lit_grok.networks import IsingCNN, ModularMLP, Transformer

P = 11
GRID = torch.linspace(0, 1, 11, dtype=torch.float64)
SCHEMES = [
    ("layerwise", None, False),
    ("global", None, False),
    ("normalised", None, False),
    ("single_layer", "hidden.0", False),
    ("single_layer", "output", False),
    ("fisher", None, True),
    ("fisher", "output", True),
]


class TokenMLP(ModularMLP):
    def relu_layers(self):
        return [*self.hidden, self.output]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def pairs():
    return torch.cartesian_prod(torch.arange(P), torch.arange(P))[torch.randperm(P * P)[:100]]


@pytest.fixture
def targets(pairs):
    return pairs.sum(1) % P


def token_mlp(dtype=torch.float64, hidden=(30,)):
    network = TokenMLP(P, hidden).to(dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def random_scores(network):
    return {name: torch.rand(p.shape) for name, p in network.named_parameters()}


def slow_pruned(network, fraction, scheme, layer, scores):
    """Sort one list of (score, place) per ranking, and zero its beginning, one entry at a time."""
    network = copy.deepcopy(network)
    parameters = dict(network.named_parameters())
    entries = []
    for name, parameter in parameters.items():
        owner = name.rpartition(".")[0]
        if (scheme != "fisher" and parameter.ndim < 2) or (layer is not None and owner != layer):
            continue
        for place, value in enumerate(parameter.flatten().tolist()):
            score = scores[name].flatten()[place].item() if scheme == "fisher" else abs(value)
            if scheme == "normalised":
                score /= parameter.norm().item()
            entries.append((name if scheme == "layerwise" else "all", score, len(entries), name, place))
    for group in {entry[0] for entry in entries}:
        ranking = sorted(entry for entry in entries if entry[0] == group)
        for *_, name, place in ranking[: round(fraction * len(ranking))]:
            parameters[name].data[np.unravel_index(place, parameters[name].shape)] = 0
    return network


def slow_curve(network, inputs, targets, scheme, layer=None, scores=None):
    accuracies, losses = [], []
    for fraction in GRID.tolist():
        logits = slow_pruned(network, fraction, scheme, layer, scores)(inputs)
        accuracies.append((logits.argmax(1) == targets).double().mean())
        losses.append(F.cross_entropy(logits, targets).double().detach())
    return torch.stack(accuracies), torch.stack(losses)


@pytest.mark.parametrize(("scheme", "layer", "scored"), SCHEMES)
def test_what_is_zeroed_is_what_a_sort_would_zero_ties_included(scheme, layer, scored):
    network = ModularMLP(P=3, hidden=[4]).double()
    for parameter in network.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape).double()
    scores = {name: torch.randint(0, 3, p.shape) for name, p in network.named_parameters()} if scored else None
    for fraction in (0, 0.05, 1 / 3, 0.5, 0.75, 1):
        fast = pruned(network, fraction, scheme, layer=layer, scores=scores)
        slow = slow_pruned(network, fraction, scheme, layer, scores)
        for name, parameter in slow.named_parameters():
            assert torch.equal(fast[name], parameter.data), (name, fraction)


def test_equal_magnitudes_go_in_order_of_index():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, -1)
    steps = removal_steps(network, [0, 0.25, 0.5, 0.75, 1], "global")
    assert steps["0.weight"].tolist() == [[1, 1], [2, 2]]
    assert steps["1.weight"].tolist() == [[3, 3], [4, 4]]
    assert set(steps) == {"0.weight", "1.weight"}


@settings(deadline=None)
@given(
    n=st.integers(1, 60),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted),
    levels=st.integers(1, 50),
)
def test_exactly_the_rounded_number_goes_and_never_comes_back(n, fractions, levels):
    network = nn.Linear(n, 1)
    network.weight.data = torch.randint(-levels, levels, (1, n)).float()
    steps = removal_steps(network, fractions)["weight"]
    for k, fraction in enumerate(fractions):
        assert abs((steps <= k).sum().item() - Fraction(fraction) * n) <= 0.5 + 1e-12


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [2, 3, 11, 21, 101, 1001])
def test_the_number_that_goes_is_the_exact_product_rounded_half_to_even(K, precision):
    """In floating point .55 · 390 is just above 214.5."""
    grid = torch.linspace(0, 1, K, dtype=precision)
    for n in [*range(1, 401, 1 if K < 1000 else 57), 1000, 8190, 98_765]:
        steps = removal_steps(nn.Linear(n, 1), grid)["weight"].flatten()
        counts = steps.bincount(minlength=K).cumsum(0)
        assert counts.tolist() == [round(Fraction(k, K - 1) * n) for k in range(K)]


def test_row_major_order_does_not_depend_on_storage():
    network = nn.Linear(3, 2)
    nn.init.ones_(network.weight)
    rows = removal_steps(network, GRID)["weight"]
    network.weight.data = network.weight.data.t().contiguous().t()
    assert torch.equal(removal_steps(network, GRID)["weight"], rows)


def test_normalised_ignores_the_scale_of_a_layer_and_takes_a_layer_of_zeros_first():
    network = ModularMLP(P=5, hidden=[7])
    before = removal_steps(network, GRID, "normalised")
    network.output.weight.data *= 1024
    after = removal_steps(network, GRID, "normalised")
    assert all(torch.equal(before[name], after[name]) for name in before)
    network.output.weight.data.zero_()
    after = removal_steps(network, GRID, "normalised")
    assert after["output.weight"].max() < after["hidden.0.weight"].max()
    assert after["output.weight"].max() <= after["hidden.0.weight"].min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "random"}, "choose one of layerwise, global"),
        ({"scheme": "single_layer"}, "needs the name of a layer"),
        ({"scheme": "single_layer", "layer": "fc9"}, r"choose one of hidden\.0, output"),
        ({"scheme": "global", "layer": "output"}, "only single_layer and fisher"),
        ({"scheme": "fisher"}, "scores"),
        ({"scheme": "global", "scores": {}}, "scores"),
        ({"scheme": "fisher", "scores": {"output.weight": torch.ones(2, 2)}}, r"hidden\.0\.weight"),
        ({"fractions": [0.5, 0.2]}, "ascending"),
        ({"fractions": [0, 1.5]}, "ascending"),
        ({"fractions": [math.nan]}, "ascending"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        removal_steps(ModularMLP(P=3, hidden=[4]), **{"fractions": [0, 1], **arguments})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scheme", "layer", "scored"), SCHEMES)
def test_incremental_curve_is_the_dense_one(dtype, scheme, layer, scored, pairs, targets, monkeypatch):
    network = token_mlp(dtype)
    scores = random_scores(network) if scored else None
    expected = slow_curve(copy.deepcopy(network).double(), pairs, targets, scheme, layer, scores)
    monkeypatch.delattr(pruning, "vmap")  # the general path would need it
    curve = pruning_curve(network, pairs, targets, GRID, scheme, layer=layer, scores=scores)
    assert torch.equal(curve.accuracies, expected[0])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(curve.losses, expected[1], atol=tolerance, rtol=tolerance)


def test_incremental_curve_on_a_fine_grid_does_not_drift(pairs, targets):
    network = token_mlp()
    coarse = pruning_curve(network, pairs, targets, GRID)
    grid, origin = torch.cat([GRID, torch.rand(2000, dtype=torch.float64)]).sort()
    fine = pruning_curve(network, pairs, targets, grid)
    assert torch.equal(fine.accuracies[origin < len(GRID)], coarse.accuracies)
    torch.testing.assert_close(fine.losses[origin < len(GRID)], coarse.losses, atol=1e-9, rtol=1e-9)


def test_incremental_curve_may_begin_anywhere_and_repeat(pairs, targets):
    network = token_mlp()
    whole = pruning_curve(network, pairs, targets, GRID)
    some = pruning_curve(network, pairs, targets, GRID[[2, 2, 8]])
    torch.testing.assert_close(some.accuracies, whole.accuracies[[2, 2, 8]], atol=0, rtol=0)
    torch.testing.assert_close(some.losses, whole.losses[[2, 2, 8]], atol=1e-9, rtol=1e-9)


def test_logits_that_cancel_are_equal_and_the_first_class_wins(pairs, targets):
    network = token_mlp()
    for layer in network.relu_layers():
        nn.init.zeros_(layer.bias)
    curve = pruning_curve(network, pairs, targets, torch.linspace(0, 1, 1001))
    assert curve.losses[-1] == pytest.approx(math.log(P), abs=1e-15)
    assert curve.accuracies[-1] == (targets == 0).double().mean()


def test_incremental_curve_of_dead_and_denormal_neurons(pairs, targets):
    network = token_mlp(torch.float32)
    network.hidden[0].weight.data[:10] *= 2.0**-145
    network.hidden[0].weight.data[10:15] = 0
    network.output.weight.data[:, 12:20] = 0
    expected = slow_curve(copy.deepcopy(network).double(), pairs, targets, "layerwise")
    curve = pruning_curve(network, pairs, targets, GRID)
    assert torch.equal(curve.accuracies, expected[0])
    torch.testing.assert_close(curve.losses, expected[1], atol=1e-5, rtol=1e-5)


def test_layers_without_bias(pairs, targets):
    class NoBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2 * P, 20, bias=False), nn.Linear(20, P, bias=False)

        def relu_layers(self):
            return [self.first, self.second]

        def forward(self, inputs):
            return self.second(self.first(F.one_hot(inputs, P).flatten(-2).double()).relu())

    network = NoBias().double()
    expected = slow_curve(network, pairs, targets, "layerwise")
    curve = pruning_curve(network, pairs, targets, GRID)
    assert torch.equal(curve.accuracies, expected[0])
    torch.testing.assert_close(curve.losses, expected[1])


def test_a_diverged_network_has_the_curve_of_its_evaluations(pairs, targets):
    network = token_mlp()
    network.output.weight.data[3, 3] = torch.inf
    network.output.bias.data[5] = torch.nan
    expected = slow_curve(network, pairs, targets, "layerwise")
    curve = pruning_curve(network, pairs, targets, GRID)
    assert torch.equal(curve.accuracies, expected[0])
    assert curve.losses.isnan().all()


@pytest.mark.parametrize(("scheme", "layer", "scored"), SCHEMES)
@pytest.mark.parametrize("chunk_size", [1, 6])
def test_general_curve_is_the_dense_one(scheme, layer, scored, chunk_size, pairs, targets):
    network = ModularMLP(P, [12, 9]).double()
    scores = random_scores(network) if scored else None
    expected = slow_curve(network, pairs, targets, scheme, layer, scores)
    curve = pruning_curve(network, pairs, targets, GRID, scheme, layer=layer, scores=scores, chunk_size=chunk_size)
    assert torch.equal(curve.accuracies, expected[0])
    torch.testing.assert_close(curve.losses, expected[1])


def test_a_network_with_a_short_way_has_the_curve_of_its_long_one(pairs, targets):
    network = Transformer(P, layers=2, d_model=8, heads=2, d_mlp=12).double()
    expected = slow_curve(network, pairs, targets, "layerwise")
    curve = pruning_curve(network, pairs, targets, GRID)
    assert torch.equal(curve.accuracies, expected[0])
    torch.testing.assert_close(curve.losses, expected[1])


def test_both_paths_agree_on_the_two_encodings(pairs, targets):
    network = token_mlp()
    tokens = pruning_curve(network, pairs, targets, GRID)
    dense = pruning_curve(network, network.two_hot(pairs), targets, GRID)
    assert torch.equal(tokens.accuracies, dense.accuracies)
    torch.testing.assert_close(tokens.losses, dense.losses)


def test_convolutions():
    network = IsingCNN(side=8)
    snapshots, labels = torch.randn(40, 8, 8).sign(), torch.randint(0, 2, (40,))
    curve = pruning_curve(network, snapshots, labels, [0, 0.3, 0.9, 1])
    for k, fraction in enumerate([0, 0.3, 0.9, 1]):
        logits = functional_call(network, pruned(network, fraction), (snapshots,))
        assert curve.accuracies[k] == (logits.argmax(1) == labels).double().mean()
        assert curve.losses[k].item() == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)


@pytest.mark.parametrize("hidden", [[20], [20, 10]])
def test_network_and_random_state_stay_as_they_are(hidden, pairs, targets):
    network = token_mlp(torch.float32, hidden)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    curve = pruning_curve(network, pairs, targets, GRID)
    pruned(network, 0.0)["output.weight"].fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not curve.losses.requires_grad


def test_fractions_zero_and_one_are_the_network_and_its_biases(pairs, targets):
    network = token_mlp()
    curve = pruning_curve(network, pairs, targets, [0, 1])
    whole, biases = network(pairs), network.output.bias.expand(len(pairs), -1)
    for k, logits in enumerate((whole, biases)):
        assert curve.accuracies[k] == (logits.argmax(1) == targets).double().mean()
        assert curve.losses[k].item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-9)


def test_step_curve_by_hand():
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    step = (grid < 0.805).double()  # 1 up to 0.80, 0 from 0.81 on: half a cell of 0.01 is kept
    assert area(grid, step).item() == pytest.approx(0.805, abs=1e-14)
    assert compressibility(grid, step).item() == pytest.approx(1 / 0.195, abs=1e-12)
    assert kept_share(grid, step, chance=0.1).item() == pytest.approx(0.2, abs=1e-14)


def test_limits_of_compressibility():
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert compressibility(grid, torch.ones(101)) == torch.inf
    assert compressibility(grid, torch.zeros(101)).item() == pytest.approx(1)
    assert compressibility(grid, 1 - grid).item() == pytest.approx(2)
    assert area(grid**2, (grid**2).sqrt()).item() == pytest.approx(2 / 3, abs=1e-4)  # uneven spacing


def test_summaries_of_a_stack():
    curves = torch.rand(2, 3, 11).sort(-1, descending=True).values
    for summary in (area, compressibility, partial(kept_share, chance=0.1)):
        stacked = summary(GRID, curves)
        assert stacked.shape == (2, 3)
        torch.testing.assert_close(stacked[1, 2], summary(GRID, curves[1, 2]))


@pytest.mark.parametrize(("retain", "kept"), [(0.95, 1), (0.6, 0.5), (0.25, 0.25), (0.125, 0), (1, 1), (0, 0)])
def test_every_larger_share_keeps_the_accuracy_too(retain, kept):
    accuracies = torch.tensor([0.8, 0.5, 0.79, 0.2, 0.1])  # at half it has come back
    assert kept_share([0, 0.25, 0.5, 0.75, 1], accuracies, chance=0.1, retain=retain) == kept


def test_kept_share_of_a_network_at_chance_is_nan():
    flat = torch.tensor([[0.549, 0.549], [0.551, 0.551], [torch.nan, 0.9], [0.1, 0.9]])
    assert kept_share([0, 1], flat, chance=0.5).isnan().tolist() == [True, False, True, True]
    assert kept_share([0, 1], flat, chance=0.1)[:2].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_kept_shares_on_the_coarse_and_on_the_fine_grid_agree(seed):
    """Curves that fall and come back: no stretch of them is so short that the coarse grid would miss it."""
    levels = np.random.default_rng(seed).uniform(0.85, 1, 16)
    levels[0] = 1
    shares = []
    for count in (21, 101):
        grid = torch.linspace(0, 1, count, dtype=torch.float64)
        curve = torch.from_numpy(levels[np.minimum((16 * grid.numpy()).astype(int), 15)])
        defined = 1 - max(p for k, p in enumerate(grid.tolist()) if (curve[: k + 1] >= 0.95).all())
        shares.append(kept_share(grid, curve, chance=0.1).item())
        assert shares[-1] == pytest.approx(defined)
    assert shares[0] == pytest.approx(shares[1], abs=0.05)


@pytest.mark.parametrize("summary", [area, compressibility])
@pytest.mark.parametrize("fractions", [[0.1, 1], [0, 0.9], [0]])
def test_an_area_needs_the_whole_interval(summary, fractions):
    with pytest.raises(ValueError, match="0 to 1"):
        summary(fractions, torch.ones(len(fractions)))


def test_a_kept_share_needs_the_unpruned_accuracy():
    with pytest.raises(ValueError, match="from 0"):
        kept_share([0.1, 1], torch.ones(2), chance=0.1)
