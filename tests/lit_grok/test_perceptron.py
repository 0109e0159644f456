from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from lit_grok import perceptron
from lit_grok.perceptron import relu_mlp

# Widths whose products are small, and such that only the last one, or every one, is large enough for oneDNN.
SMALL, LAST, ALL = (6, 9, 4), (10, 256, 131), (70, 300, 200, 170)


def parameters(widths, replicas, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(m, n) for n, m in pairwise(widths)]
    weights = [torch.randn(replicas, m, n, generator=generator).to(dtype) / n**0.5 for m, n in sizes]
    biases = [torch.randn(replicas, m, generator=generator).to(dtype) for m, _ in sizes]
    weights[0] = weights[0].mT.contiguous().mT
    return [p.requires_grad_() for p in weights], [p.requires_grad_() for p in biases]


def inputs_of(kind, widths, replicas, size=64):
    generator = torch.Generator().manual_seed(1)
    if kind == "pairs":
        return torch.randint(0, widths[0] // 2, (replicas, size, 2), generator=generator)
    return torch.randn(replicas, size, widths[0], generator=generator)


def oracle(inputs, weights, biases):
    """Layer by layer and replica by replica, with dense two-hots."""
    outputs = []
    for r in range(len(inputs)):
        x = inputs[r]
        if not x.is_floating_point():
            P = weights[0].shape[2] // 2
            x = F.one_hot(x, P).flatten(1)
        x = x.to(weights[0].dtype)
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = F.linear(x if i == 0 else F.relu(x), weight[r], bias[r])
        outputs.append(x)
    return torch.stack(outputs)


def outputs_and_gradients(function, inputs, weights, biases):
    leaves = [*weights, *biases]
    if inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_()
        leaves.append(inputs)
    outputs = function(inputs, weights, biases)
    direction = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    return outputs, *torch.autograd.grad(outputs, leaves, direction)


@pytest.mark.parametrize("widths", [SMALL, (6, 9, 8, 4), LAST, ALL], ids=str)
@pytest.mark.parametrize("kind", ["pairs", "dense"])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("size", [64, 65, 1])
def test_outputs_and_gradients_are_those_of_plain_layers_in_double_precision(widths, kind, replicas, size):
    inputs, (weights, biases) = inputs_of(kind, widths, replicas, size), parameters(widths, replicas)
    found = outputs_and_gradients(relu_mlp, inputs, weights, biases)
    doubles = [[p.detach().double().requires_grad_() for p in group] for group in (weights, biases)]
    exact_inputs = inputs.double() if inputs.is_floating_point() else inputs
    expected = outputs_and_gradients(oracle, exact_inputs, *doubles)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=2e-5 * exact.abs().max().item())


@pytest.mark.parametrize("kind", ["pairs", "dense"])
def test_other_numbers_run_through_plain_operations(kind):
    inputs, (weights, biases) = inputs_of(kind, SMALL, 3), parameters(SMALL, 3, torch.float64)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    found = outputs_and_gradients(relu_mlp, inputs, weights, biases)
    for mine, exact in zip(found, outputs_and_gradients(oracle, inputs, weights, biases), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", [SMALL, LAST, ALL], ids=str)
def test_large_products_run_through_onednn_and_small_ones_do_not(widths, monkeypatch):
    sizes, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(a.numel() * b.shape[2]) or bmm(a, b))
    inputs, (weights, biases) = inputs_of("dense", widths, 1), parameters(widths, 1)
    relu_mlp(inputs, weights, biases)
    products = [64 * n * m for n, m in pairwise(widths)]
    if not perceptron._ONEDNN:
        pytest.fail("this build of PyTorch has no oneDNN: the fast path is not tested here")
    assert sizes == [p for p in products if p < 2**21]


@pytest.mark.parametrize("widths", [SMALL, LAST, ALL], ids=str)
@pytest.mark.parametrize("kind", ["pairs", "dense"])
def test_a_replica_is_computed_as_if_it_were_alone(widths, kind):
    inputs, (weights, biases) = inputs_of(kind, widths, 3), parameters(widths, 3)
    together = outputs_and_gradients(relu_mlp, inputs, weights, biases)
    with torch.no_grad():
        for p in (*weights, *biases):
            p[[0, 2]] = torch.nan  # the neighbours of replica 1 are lost
    beside_nan = outputs_and_gradients(relu_mlp, inputs, weights, biases)
    for mine, other in zip(together[:1], beside_nan[:1], strict=True):
        assert torch.equal(mine[1], other[1])
        assert other[[0, 2]].isnan().all()
    own = [[p.detach()[1:2].clone().requires_grad_() for p in group] for group in (weights, biases)]
    alone = outputs_and_gradients(relu_mlp, inputs[1:2], *own)
    torch.testing.assert_close(alone[0][0], together[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", ["expanded", "sliced"])
@pytest.mark.parametrize("widths", [SMALL, ALL], ids=str)
@pytest.mark.parametrize("kind", ["pairs", "dense"])
def test_tensors_of_any_stride(stride, widths, kind):
    inputs, (weights, biases) = inputs_of(kind, widths, 3), parameters(widths, 3)
    if stride == "expanded":
        weights = [w.detach()[:1].expand(3, -1, -1).requires_grad_() for w in weights]
        biases = [b.detach()[:1, :1].expand_as(b).requires_grad_() for b in biases]
        inputs = inputs[:1].expand_as(inputs)
    else:
        weights = [torch.stack([w.detach(), w.detach()], -1)[..., 0].requires_grad_() for w in weights]
        biases = [torch.stack([b.detach(), b.detach()], -1)[..., 0].requires_grad_() for b in biases]
        inputs = torch.stack([inputs, inputs], -1)[..., 0]
    found = outputs_and_gradients(relu_mlp, inputs, weights, biases)
    copies = [[p.detach().clone().requires_grad_() for p in group] for group in (weights, biases)]
    for mine, theirs in zip(found, outputs_and_gradients(oracle, inputs, *copies), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_first_weight_in_the_ordinary_memory_order(replicas):
    pairs, (weights, biases) = inputs_of("pairs", SMALL, replicas), parameters(SMALL, replicas)
    weights[0] = weights[0].detach().contiguous().requires_grad_()
    found = outputs_and_gradients(relu_mlp, pairs, weights, biases)
    for mine, theirs in zip(found, outputs_and_gradients(oracle, pairs, weights, biases), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_dead_neuron_passes_no_gradient_and_a_nan_is_kept():
    weights, biases = parameters(SMALL, 1)
    with torch.no_grad():
        weights[0][0, :, :], biases[0][0] = 0, 0
        biases[0][0, 0] = torch.nan
    pairs = inputs_of("pairs", SMALL, 1)
    outputs, grad_first, *_ = outputs_and_gradients(relu_mlp, pairs, weights, biases)
    assert outputs.isnan().all()
    assert grad_first[0, 0].ne(0).any()  # a NaN is not below zero
    assert not grad_first[0, 1:].any()  # zero is: relu′(0) = 0


@pytest.mark.parametrize("residue", [-1, 3, 2**40])
@pytest.mark.parametrize("position", [0, 1])
def test_a_residue_that_is_none_is_refused(residue, position):
    pairs = torch.zeros(2, 4, 2, dtype=torch.int64)
    pairs[1, 3, position] = residue
    with pytest.raises(IndexError):
        relu_mlp(pairs, *parameters((6, 5, 3), 2))
