"""Each replica by itself, in pieces that depend on its examples alone."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lit_grok import pieces
from lit_grok.networks import Transformer
from lit_grok.pieces import piece_sizes
from lit_grok.replicas import ReplicaStack

P = 29


def loss(logits, targets, reduction):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return [Transformer(P=P, layers=layers, d_model=16, heads=2, d_mlp=24) for layers in (2, 2, 2)]


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(0, P, shape, generator=generator) for shape in ((3, 2500, 2), (3, 2500)))


def stack_of(networks, threads=1):
    return ReplicaStack([copy.deepcopy(network) for network in networks], threads)


@pytest.mark.parametrize("count", [1, 2, 1023, 1024, 1025, 2049, 4097, 9409])
def test_sizes(count):
    sizes = piece_sizes(count)
    assert sum(sizes) == count
    assert max(sizes) <= 1024
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes).bit_count() == 1
    assert len(sizes) == 1 or count / (len(sizes) // 2) > 1024  # no more of them than it takes


def test_the_gradient_is_that_of_the_whole_batch(networks, batch):
    stack = stack_of(networks).double()
    inputs, targets = batch
    found, grad = pieces.gradient(stack, loss, inputs, targets)
    expected = loss(stack(inputs), targets, "sum") / 2500
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(grad, stack.flat.grad, rtol=1e-9, atol=1e-12)


def test_the_evaluation_is_that_of_all_examples(networks, batch):
    stack = stack_of(networks)
    inputs, targets = batch
    targets = targets.clone()
    with torch.no_grad():
        logits = stack(inputs)
    targets[0] = logits[0].argmax(-1)
    losses, accuracies = pieces.evaluate(stack, loss, inputs, targets)
    each = loss(logits, targets, "none").view(3, -1).mean(1)
    torch.testing.assert_close(losses, each, rtol=1e-5, atol=0)
    torch.testing.assert_close(accuracies, (logits.argmax(-1) == targets).float().mean(1))
    assert accuracies[0] > 0.999


def test_bits_do_not_depend_on_the_company_nor_on_the_threads(networks, batch):
    inputs, targets = batch
    _, together = pieces.gradient(stack_of(networks), loss, inputs, targets)
    _, threads = pieces.gradient(stack_of(networks, threads=2), loss, inputs, targets)
    _, turned = pieces.gradient(stack_of(networks[::-1]), loss, inputs.flip(0), targets.flip(0))
    assert torch.equal(together, threads)
    assert torch.equal(together, turned.flip(0))
    evaluated = pieces.evaluate(stack_of(networks), loss, inputs, targets)
    for r in range(3):
        one = stack_of(networks[r : r + 1])
        own = inputs[r : r + 1], targets[r : r + 1]
        assert torch.equal(pieces.gradient(one, loss, *own)[1][0], together[r])
        for alone, among in zip(pieces.evaluate(one, loss, *own), evaluated, strict=True):
            assert alone[0] == among[r]


def test_a_hook_sees_the_whole_stack(networks):
    stack = stack_of(networks)
    assert stack.runs_in_pieces
    stack.register_forward_hook(lambda *_: None)
    assert not stack.runs_in_pieces
