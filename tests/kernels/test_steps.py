"""Whole training steps in compiled code against automatic differentiation in double precision."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lit_grok import optimizers
from lit_grok.networks import DigitMLP, IsingCNN, ModularMLP, Transformer
from lit_grok.networks.transformer import Attention
from lit_grok.replicas import ReplicaStack

NETWORKS = {
    "mlp": lambda: ModularMLP(7, [9]),
    "deep mlp": lambda: ModularMLP(7, [9, 20, 6]),
    "wide mlp": lambda: ModularMLP(23, [130]),
    "digits": lambda: DigitMLP(5, [9], 3),
    "deep digits": lambda: DigitMLP(6, [9, 20, 6], 10),
    "ising": lambda: IsingCNN(8),
    "ising 12": lambda: IsingCNN(12),
    "transformer": lambda: Transformer(7, d_model=8, heads=2, d_mlp=12),
    "transformer with two sets of tokens": lambda: Transformer(7, d_model=8, heads=1, d_mlp=16, operand_offset=7),
    "wide transformer": lambda: Transformer(23, d_model=24, heads=3, d_mlp=40),
    "transformer with overlapping tokens": lambda: Transformer(7, d_model=9, heads=3, d_mlp=17, operand_offset=3),
}


def examples(network, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(network, ModularMLP | Transformer):
        return torch.randint(network.P, (size, 2), generator=generator), torch.randint(network.P, (size,))
    if isinstance(network, DigitMLP):
        images = torch.rand(size, network.side, network.side, generator=generator)
        return images, torch.randint(network.output.out_features, (size,), generator=generator)
    spins = 2 * torch.randint(2, (size, network.side, network.side), generator=generator) - 1
    return spins.to(torch.int8), torch.randint(2, (size,), generator=generator)


def stack_of(name, replicas=1, scale=1.5):
    torch.manual_seed(3)
    stack = ReplicaStack([NETWORKS[name]() for _ in range(replicas)])
    with torch.no_grad():
        for values in stack.stacked().values():
            values.mul_(scale).add_(0.01 * torch.randn(values.shape))  # no bias is zero, so that none goes unseen
    return stack


def loss_of(logits, targets, squared):
    if squared:
        return (logits - F.one_hot(targets, logits.shape[1])).square().mean()
    return F.cross_entropy(logits, targets)


def exact(stack, inputs, targets, squared):
    """Loss, accuracy and gradients by name, in double precision."""
    network = stack.copy(0).double()
    logits = network(inputs)
    loss = loss_of(logits, targets, squared)
    loss.backward()
    accuracy = (logits.argmax(1) == targets).double().mean()
    return loss.item(), accuracy.item(), {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("size", [1, 5, 64, 300])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_gradient_and_accuracy_are_exact(name, size, squared):
    stack = stack_of(name)
    inputs, targets = examples(stack.networks[0], size)
    loss, accuracy, gradients = exact(stack, inputs, targets, squared)
    steps = stack.compiled_steps(squared)
    theta, grad = stack.flat.detach(), torch.full_like(stack.flat, 7.0)
    for part in stack.split(grad):
        part.fill_(torch.nan)  # whatever was there is overwritten
    found = steps.gradient(theta.numpy()[0], grad.numpy()[0], steps.prepare(inputs), targets.numpy())
    assert found == pytest.approx(loss, rel=1e-5, abs=1e-6)
    for (key, expected), part in zip(gradients.items(), stack.split(grad), strict=True):
        torch.testing.assert_close(part[0].double(), expected, rtol=1e-4, atol=2e-5, msg=key)
    found = steps.evaluate(theta.numpy()[0], steps.prepare(inputs), targets.numpy())
    assert found == pytest.approx((loss, accuracy), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["deep mlp", "deep digits", "ising", "transformer"])
def test_an_epoch_is_as_many_steps_as_there_are_batches_the_last_one_shorter(name):
    stack = stack_of(name)
    slow = copy.deepcopy(stack)
    inputs, targets = examples(stack.networks[0], 50)
    fast, other = (optimizers.Adam([s.flat], lr=0.01, weight_decay=0.1) for s in (stack, slow))
    steps = stack.compiled_steps(False)
    x, y = steps.prepare(inputs), targets.numpy()
    theta, grad = stack.flat.detach().numpy()[0], torch.zeros_like(stack.flat).numpy()[0]
    steps.train(theta, grad, *fast.row_updates(stack.flat)[0], x, y, 16)
    fast.count_steps(stack.flat, 4)
    for start in (0, 16, 32, 48):
        batch = steps.prepare(inputs[start : start + 16]), y[start : start + 16]
        slow.flat.grad = torch.zeros_like(slow.flat)
        steps.gradient(slow.flat.detach().numpy()[0], slow.flat.grad.numpy()[0], *batch)
        other.step()
    assert torch.equal(stack.flat, slow.flat)
    assert not torch.equal(stack.flat, stack_of(name).flat)
    assert all(torch.equal(v, other.state[slow.flat][k]) for k, v in fast.state[stack.flat].items())


def evaluate_logits(logits, targets, squared=False):
    """By a network whose logits are its last bias."""
    network = ModularMLP(len(logits), [1])
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        network.output.bias.copy_(torch.tensor(logits))
    stack = ReplicaStack([network])
    pairs = torch.zeros(len(targets), 2, dtype=torch.int64)
    steps = stack.compiled_steps(squared)
    return steps.evaluate(stack.flat.detach().numpy()[0], steps.prepare(pairs), np.array(targets))


def test_of_equal_logits_the_first_counts_and_what_is_not_a_number_never_does():
    assert evaluate_logits([1.0, 1.0, 0.0], [0])[1] == 1
    assert evaluate_logits([1.0, 1.0, 0.0], [1])[1] == 0
    assert evaluate_logits([np.nan, 1.0, 0.0], [1])[1] == 0
    assert np.isnan(evaluate_logits([np.nan, 1.0, 0.0], [1])[0])


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("logits", [[1e4, 0, -1e4], [-80.0, 0, 80], [90.0, 1, 0], [3e38, 0, 0]], ids=str)
def test_losses_of_extreme_logits(logits, squared):
    for target in range(3):
        single, double = (torch.tensor([logits], dtype=dtype) for dtype in (torch.float32, torch.float64))
        expected = loss_of(single, torch.tensor([target]), squared).item()  # infinite where single precision ends
        if np.isfinite(expected):
            expected = loss_of(double, torch.tensor([target]), squared).item()
        assert evaluate_logits(logits, [target], squared)[0] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mlp", "output"), ("ising", "fc2"), ("transformer", "unembedding"), ("transformer", "blocks.0.mlp_in")],
)
def test_a_network_that_is_not_finite_says_so(name, layer):
    stack = stack_of(name)
    inputs, targets = examples(stack.networks[0], 8)
    with torch.no_grad():
        stack.stacked()[f"{layer}.weight"].fill_(torch.nan)
    steps = stack.compiled_steps(False)
    loss, accuracy = steps.evaluate(stack.flat.detach().numpy()[0], steps.prepare(inputs), targets.numpy())
    assert np.isnan(loss)
    assert accuracy == 0


def test_images_of_another_size_or_precision_are_left_to_pytorch():
    steps = stack_of("digits").compiled_steps(False)
    assert steps.prepare(torch.rand(4, 5, 5)).shape == (4, 25)
    assert steps.prepare(torch.rand(4, 6, 6)) is None
    assert steps.prepare(torch.rand(4, 5, 5).double()) is None


@pytest.mark.parametrize("residue", [-1, 7, 2**40])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_residue_that_is_none_is_refused(name, residue, position):
    stack = stack_of(name, 2)
    pairs = torch.zeros(2, 4, 2, dtype=torch.int64)
    pairs[1, 3, position] = residue
    with pytest.raises(IndexError, match="0 to 6"):
        stack.compiled_steps(False).prepare(pairs[1])
    with pytest.raises(IndexError, match="0 to 6"):
        stack(pairs)


def test_dense_inputs_are_left_to_pytorch():
    stack = stack_of("mlp")
    dense = stack.networks[0].two_hot(torch.zeros(4, 2, dtype=torch.int64))
    assert stack.compiled_steps(False).prepare(dense) is None


@pytest.mark.parametrize("name", ["mlp", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_what_is_no_pair_of_integers_is_left_to_pytorch(name, dtype):
    steps = stack_of(name).compiled_steps(False)
    assert steps.prepare(torch.zeros(4, 2, dtype=dtype)) is None
    assert steps.prepare(torch.zeros(4, 1, dtype=torch.int64)) is None
    pairs = torch.zeros(2, 4, dtype=torch.int64).t()  # stored the other way round
    assert steps.prepare(pairs).flags.c_contiguous


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_attention_on_one_token_alone(factor):
    """Scores far beyond what an exponential can hold, the largest now of the first token, now of another."""
    stack = stack_of("transformer")
    with torch.no_grad():
        stack.stacked()["blocks.0.attention.query.weight"].mul_(factor)
        stack.stacked()["token_embedding.weight"][:, -1] *= 8  # so that it is itself the one, for one of the signs
    inputs, targets = examples(stack.networks[0], 64)
    loss, accuracy, _ = exact(stack, inputs, targets, False)
    steps = stack.compiled_steps(False)
    found = steps.evaluate(stack.flat.detach().numpy()[0], steps.prepare(inputs), targets.numpy())
    assert np.isfinite(loss)
    assert found == pytest.approx((loss, accuracy), rel=1e-3)
    grad = torch.zeros_like(stack.flat).numpy()[0]
    steps.gradient(stack.flat.detach().numpy()[0], grad, steps.prepare(inputs), targets.numpy())
    assert np.isfinite(grad).all()


class OwnForward(ModularMLP):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class OwnStackedForward(IsingCNN):
    def forward_stack(self, parameters, inputs):
        return 2 * super().forward_stack(parameters, inputs)


class OtherFilters(IsingCNN):
    def __init__(self, side):
        super().__init__(side)
        self.conv1 = nn.Conv2d(1, 2, 5, padding=2)


def with_hook(stack):
    stack.register_forward_hook(lambda *_: None)
    return stack


def with_own_forward(network):
    network.forward = lambda inputs: inputs
    return network


def with_other_layer(network):
    network.output = OwnLinear(9, 7)
    return network


class OwnLinear(nn.Linear):
    """A layer that does something else."""


class OwnAttention(Attention):
    """Attention that does something else."""


def with_own_attention(network):
    network.blocks[0].attention = OwnAttention(128, 4)
    return network


def with_layer(name, layer):
    network = Transformer(7)
    network.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], layer)
    return network


def with_two_blocks(network):
    network.blocks.append(network.blocks[0])
    return network


def with_sizes(**sizes):
    network = Transformer(7)
    for name, value in sizes.items():
        setattr(network.blocks[0].attention if name == "heads" else network, name, value)
    return network


@pytest.mark.parametrize(
    "build",
    [
        lambda: ReplicaStack([OwnForward(7, [9])]),
        lambda: ReplicaStack([OwnStackedForward(8)]),
        lambda: ReplicaStack([OtherFilters(8)]),
        lambda: ReplicaStack([with_own_forward(ModularMLP(7, [9]))]),
        lambda: ReplicaStack([with_other_layer(ModularMLP(7, [9]))]),
        lambda: ReplicaStack([nn.utils.parametrizations.weight_norm(layer) or layer for layer in [nn.Linear(2, 2)]]),
        lambda: with_hook(ReplicaStack([ModularMLP(7, [9])])),
        lambda: ReplicaStack([ModularMLP(7, [9])]).double(),
        lambda: ReplicaStack([Transformer(7, layers=2)]),
        lambda: ReplicaStack([Transformer(7, activation="gelu")]),
        lambda: ReplicaStack([Transformer(7, normalisation="layer")]),
        lambda: ReplicaStack([with_own_attention(Transformer(7))]),
        lambda: ReplicaStack([with_layer("unembedding", nn.Linear(128, 7))]),
        lambda: ReplicaStack([with_layer("unembedding", nn.Linear(128, 20, bias=False))]),
        lambda: ReplicaStack([with_layer("token_embedding", nn.Embedding(9, 128))]),
        lambda: ReplicaStack([with_layer("position_embedding", nn.Embedding(1, 128))]),
        lambda: ReplicaStack([with_layer("blocks.0.attention.query", nn.Linear(128, 64, bias=False))]),
        lambda: ReplicaStack([with_layer("blocks.0.mlp_norm", nn.LayerNorm(128, elementwise_affine=False))]),
        lambda: ReplicaStack([with_two_blocks(Transformer(7))]),
        lambda: ReplicaStack([with_sizes(heads=3)]),
        lambda: ReplicaStack([with_sizes(operand_offset=7)]),
        lambda: ReplicaStack([Transformer(401)]),
    ],
    ids=[
        *("forward", "stacked forward", "filters", "instance", "layer", "parametrised", "hook", "precision"),
        *("layers", "activation", "normalisation", "attention", "bias", "classes", "tokens", "positions", "queries"),
        *("own norm", "same block twice", "heads", "offset", "longer that way"),
    ],
)
def test_a_network_that_has_been_changed_is_left_to_pytorch(build):
    assert build().compiled_steps(False) is None


def test_the_networks_as_they_are_run_compiled():
    for name in NETWORKS:
        assert stack_of(name).compiled_steps(False) is not None
