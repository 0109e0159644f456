import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from lit_grok.measures.weights import HasNeurons
from lit_grok.networks import (
    DigitMLP,
    EmbeddingMLP,
    HasFourierWeights,
    HasObservables,
    HasPenultimate,
    HasPreactivations,
    HasResidueEmbeddings,
    HasStackedForward,
    IsingCNN,
    ModularMLP,
    OneHotMLP,
    ResNet18,
    Transformer,
    scale_parameters,
)
from lit_grok.networks.tokens import operand_tokens


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def spins(generator, *shape):
    return 2.0 * torch.randint(0, 2, shape, generator=generator) - 1


# The numbers of SCIENCE.md §1 and the same counted by hand for other sizes


def test_parameter_counts_of_the_paper():
    assert size(IsingCNN(side=16)) == 6798
    assert size(ModularMLP(P=113, hidden=[512])) == 174193


@pytest.mark.parametrize("side", [4, 8, 20])
def test_ising_parameters_of_other_sides(side):
    convolutions = 2 * (9 + 1) + 4 * (2 * 9 + 1)
    assert size(IsingCNN(side)) == convolutions + 100 * (4 * (side // 4) ** 2 + 1) + 2 * 101


@pytest.mark.parametrize(("P", "hidden"), [(2, [1]), (7, [5]), (11, [6, 4]), (13, [3, 8, 5])])
def test_mlp_parameters_of_other_widths(P, hidden):
    widths = [2 * P, *hidden, P]
    expected = sum((i + 1) * o for i, o in itertools.pairwise(widths))
    network = ModularMLP(P, hidden)
    assert size(network) == expected
    assert network(torch.tensor([[0, P - 1]])).shape == (1, P)


@pytest.mark.parametrize("side", [0, -4, 2, 6, 15])
def test_sides_that_cannot_be_pooled_twice_are_refused(side):
    with pytest.raises(ValueError, match=f"side={side}"):
        IsingCNN(side)


@pytest.mark.parametrize(("P", "hidden"), [(1, [4]), (0, [4]), (5, []), (5, [0]), (5, [4, -1])])
def test_impossible_perceptrons_are_refused(P, hidden):
    with pytest.raises(ValueError, match=f"P={P}"):
        ModularMLP(P, hidden)


# What they compute


def test_ising_forward_is_the_layers_one_by_one(generator):
    network = IsingCNN(8).double()
    x = spins(generator, 5, 8, 8).double()
    h = F.max_pool2d(F.conv2d(x[:, None], network.conv1.weight, network.conv1.bias, padding=1).relu(), 2)
    h = F.max_pool2d(F.conv2d(h, network.conv2.weight, network.conv2.bias, padding=1).relu(), 2)
    h = (h.reshape(5, -1) @ network.fc1.weight.T + network.fc1.bias).relu()
    expected = h @ network.fc2.weight.T + network.fc2.bias
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x[:, None]), expected)  # with the channel, too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [[16], [16, 9], [8, 7, 6]])
def test_token_pairs_equal_the_dense_two_hot(hidden, dtype, generator):
    network = ModularMLP(7, hidden).to(dtype)
    for layer in network.relu_layers():
        torch.nn.init.normal_(layer.bias, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    dense = torch.zeros(49, 14, dtype=dtype)
    for row, (a, b) in zip(dense, pairs, strict=True):
        row[a] = row[7 + b] = 1
    torch.testing.assert_close(network.two_hot(pairs), dense, rtol=0, atol=0)
    torch.testing.assert_close(network(pairs), network(dense))
    assert network(pairs).dtype == dtype

    gradients = []
    for inputs in (pairs, dense):
        network.zero_grad()
        network(inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(*gradients)


def test_mlp_forward_written_out():
    network = ModularMLP(5, [6]).double()
    w, b = network.hidden[0].weight, torch.randn(6, dtype=torch.float64)
    network.hidden[0].bias.data = b
    for x, y in [(0, 0), (3, 4), (4, 3)]:
        hidden = (w[:, x] + w[:, 5 + y] + b).relu()
        expected = network.output.weight @ hidden + network.output.bias
        torch.testing.assert_close(network(torch.tensor([[x, y]]))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_stack_is_forward_of_each_replica(dtype, generator):
    networks = [scale_parameters(IsingCNN(8), s).to(dtype) for s in (0.1, 1, 10)]
    parameters = {
        name: torch.stack([n.get_parameter(name).detach() for n in networks])
        for name, _ in networks[0].named_parameters()
    }
    inputs = spins(generator, 3, 6, 8, 8)
    together = networks[0].forward_stack(parameters, inputs)
    assert together.dtype == dtype
    for r, network in enumerate(networks):
        small = 1e-6 * network(inputs[r]).abs().max().item()  # the rounding of terms that may cancel
        torch.testing.assert_close(together[r], network(inputs[r]), rtol=1e-5, atol=small)
        alone = network.forward_stack({n: p[r : r + 1] for n, p in parameters.items()}, inputs[r : r + 1])
        torch.testing.assert_close(alone[0], network(inputs[r]), rtol=1e-5, atol=small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [[6], [6, 4]])
def test_forward_stack_of_modular_addition_is_forward_of_each_replica(dtype, hidden):
    networks = [scale_parameters(ModularMLP(7, hidden), s).to(dtype) for s in (0.1, 1, 10)]
    for network in networks:
        for layer in network.relu_layers():
            torch.nn.init.normal_(layer.bias)
    parameters = {
        name: torch.stack([n.get_parameter(name).detach() for n in networks])
        for name, _ in networks[0].named_parameters()
    }
    pairs = torch.randint(0, 7, (3, 5, 2))
    for inputs in (pairs, networks[0].two_hot(pairs)):
        together = networks[0].forward_stack(parameters, inputs)
        for r, network in enumerate(networks):
            torch.testing.assert_close(together[r], network(pairs[r]), rtol=1e-5, atol=1e-5)


def test_preactivations_are_what_the_next_layer_sees(generator):
    ising, mlp = IsingCNN(8), ModularMLP(7, [6, 5])
    x = spins(generator, 4, 8, 8)
    layers = ising.preactivations(x)
    assert {k: tuple(v.shape) for k, v in layers.items()} == {"conv1": (4, 128), "conv2": (4, 64), "fc1": (4, 100)}
    torch.testing.assert_close(ising.fc2(layers["fc1"].relu()), ising(x))
    torch.testing.assert_close(layers["conv1"].view(4, 2, 8, 8), ising.conv1(x[:, None]))

    pairs = torch.tensor([[1, 2], [6, 0]])
    layers = mlp.preactivations(pairs)
    assert list(layers) == ["hidden.0", "hidden.1"]
    torch.testing.assert_close(mlp.output(layers["hidden.1"].relu()), mlp(pairs))
    torch.testing.assert_close(mlp.hidden[1](layers["hidden.0"].relu()), layers["hidden.1"])
    assert (layers["hidden.0"] < 0).any()  # before the nonlinearity, not after it


def test_protocols():
    ising, mlp = IsingCNN(8), ModularMLP(7, [6])
    assert all(isinstance(n, HasPreactivations) for n in (ising, mlp))
    assert isinstance(ising, HasObservables)
    assert isinstance(ising, HasStackedForward)
    assert isinstance(mlp, HasFourierWeights)
    assert not isinstance(ising, HasFourierWeights)
    assert not isinstance(mlp, HasObservables)


def test_fourier_weights_belong_to_the_residues():
    network = ModularMLP(7, [6, 5])
    weights = network.fourier_weights()
    assert {name: tuple(w.shape) for name, w in weights.items()} == {"a": (6, 7), "b": (6, 7), "output": (5, 7)}
    pairs = torch.tensor([[2, 6]])
    first = weights["a"][:, 2] + weights["b"][:, 6]
    torch.testing.assert_close(first, network.preactivations(pairs)["hidden.0"][0])  # biases are zero
    torch.testing.assert_close(weights["output"][:, 3], network.output.weight[3])


def test_observables_of_known_snapshots():
    up = torch.ones(8, 8)
    checkerboard = up * (1 - 2 * (torch.arange(64).view(8, 8) // 8 + torch.arange(8)).remainder(2))
    halves = torch.cat([up[:4], -up[4:]])
    values = IsingCNN.observables(torch.stack([up, -up, checkerboard, halves]))
    assert values["magnetisation"].tolist() == [1, -1, 0, 0]
    assert values["abs_magnetisation"].tolist() == [1, 1, 0, 0]
    assert values["energy"].tolist() == [-2, -2, 2, -2 + 2 * 2 * 8 / 64]  # two walls of eight broken bonds
    with_channel = IsingCNN.observables(torch.stack([up, halves])[:, None])
    assert with_channel["energy"].tolist() == [-2, -1.5]


# How they start


def test_ising_starts_as_pytorch_does():
    torch.manual_seed(3)
    network = IsingCNN(8)
    torch.manual_seed(3)
    layers = [torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(16, 100), torch.nn.Linear(100, 2)]
    expected = [p for layer in layers for p in layer.parameters()]
    assert all(torch.equal(p, e) for p, e in zip(network.parameters(), expected, strict=True))
    for layer, fan_in in zip(layers, (9, 18, 16, 100), strict=True):
        assert layer.bias.abs().max() <= 1 / math.sqrt(fan_in)
        assert layer.bias.abs().max() > 0


def test_mlp_starts_xavier_normal_with_zero_biases():
    torch.manual_seed(0)
    network = ModularMLP(113, [512])
    for layer in network.relu_layers():
        fan_out, fan_in = layer.weight.shape
        expected = math.sqrt(2 / (fan_in + fan_out))
        values = layer.weight.detach()
        assert values.std().item() == pytest.approx(expected, rel=0.02)
        assert values.mean().abs().item() < 5 * expected / math.sqrt(values.numel())
        kurtosis = (values / values.std()).pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=0.1)  # normal; a uniform one has 1.8
        assert not layer.bias.any()


@pytest.mark.parametrize("scale", [0.0, 0.1, 10])
@pytest.mark.parametrize("build", [lambda: IsingCNN(8), lambda: ModularMLP(7, [6])])
def test_init_scale_multiplies_every_parameter(build, scale):
    network = build()
    before = copy.deepcopy(network.state_dict())
    assert scale_parameters(network, scale) is network
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] * scale)
    assert all(p.requires_grad and p.is_leaf for p in network.parameters())


# What others see


def test_parameters_are_what_other_libraries_expect():
    network = ModularMLP(7, [6, 5])
    assert torch.nn.utils.parameters_to_vector(network.parameters()).shape == (6 * 14 + 6 + 30 + 5 + 35 + 7,)
    assert {n: tuple(v.shape) for n, v in network.state_dict().items()} == {
        "hidden.0.weight": (6, 14),
        "hidden.0.bias": (6,),
        "hidden.1.weight": (5, 6),
        "hidden.1.bias": (5,),
        "output.weight": (7, 5),
        "output.bias": (7,),
    }


# Networks on embedded tokens


def written_out(network, pairs):
    """The transformer of PRIME §2.1 by the formula, one example, one head and one position at a time."""
    state = {name: p.detach().double() for name, p in network.named_parameters()}
    P, offset = network.P, network.operand_offset
    heads, layers = network.blocks[0].attention.heads, len(network.blocks)

    def normal(x, name):
        if f"{name}.weight" not in state:
            return x
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    logits = []
    for a, b in pairs.tolist():
        tokens = [a, b + offset, P + offset]
        x = [state["token_embedding.weight"][t] + state["position_embedding.weight"][i] for i, t in enumerate(tokens)]
        for layer in range(layers):
            name = f"blocks.{layer}"
            q, k, v = (
                [
                    (state[f"{name}.attention.{part}.weight"] @ normal(y, f"{name}.attention_norm")).chunk(heads)
                    for y in x
                ]
                for part in ("query", "key", "value")
            )
            mixed = []
            for t in range(3):
                parts = []
                for h in range(heads):
                    scores = torch.stack([q[t][h] @ k[s][h] / len(k[s][h]) ** 0.5 for s in range(t + 1)])
                    parts.append(sum(w * v[s][h] for s, w in enumerate(scores.softmax(0))))
                mixed.append(state[f"{name}.attention.output.weight"] @ torch.cat(parts))
            x = [y + m for y, m in zip(x, mixed, strict=True)]
            act = F.relu if network.blocks[0].activation == "relu" else F.gelu
            for t, y in enumerate(x):
                h = state[f"{name}.mlp_in.weight"] @ normal(y, f"{name}.mlp_norm") + state[f"{name}.mlp_in.bias"]
                x[t] = y + state[f"{name}.mlp_out.weight"] @ act(h) + state[f"{name}.mlp_out.bias"]
        logits.append(state["unembedding.weight"] @ normal(x[2], "final_norm"))
    return torch.stack(logits)


def shaken(network):
    """With biases and norms that are not zeros and ones."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return network


SHAPES = [
    {"layers": 1},
    {"layers": 1, "activation": "gelu", "operand_offset": 7},
    {"layers": 2, "heads": 1, "operand_offset": 3},
    {"layers": 2, "normalisation": "layer"},
    {"layers": 3, "normalisation": "layer", "operand_offset": 7},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_transformer_written_out(shape):
    network = shaken(Transformer(P=7, **{"d_model": 8, "heads": 2, "d_mlp": 10} | shape))
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    torch.testing.assert_close(network.double()(pairs), written_out(network, pairs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.float()(pairs).double(), written_out(network, pairs), rtol=0, atol=1e-5)


EMBEDDED = [
    *(lambda shape=shape: Transformer(P=11, **{"d_model": 16, "heads": 2, "d_mlp": 12} | shape) for shape in SHAPES),
    lambda: EmbeddingMLP(P=11, d_model=6, hidden=[9]),
    lambda: EmbeddingMLP(P=11, d_model=6, hidden=[9, 7], operand_offset=11),
    lambda: OneHotMLP(P=11, d_model=14, hidden=[9, 7]),
    lambda: OneHotMLP(P=11, d_model=30, hidden=[9], operand_offset=11),
]


@pytest.mark.parametrize("build", EMBEDDED)
@pytest.mark.parametrize("count", [5, 40])  # fewer and more than residues
def test_the_short_way_is_exact_and_so_are_its_gradients(build, count):
    networks = [shaken(build()).double() for _ in range(3)]
    parameters = {
        name: torch.stack([n.get_parameter(name).detach() for n in networks]).requires_grad_()
        for name, _ in networks[0].named_parameters()
    }
    pairs = torch.randint(0, 11, (3, count, 2))
    together = networks[0].forward_stack(parameters, pairs)
    alone = torch.stack([network(x) for network, x in zip(networks, pairs, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(alone)
    found = torch.autograd.grad((together * weights).sum(), list(parameters.values()), materialize_grads=True)
    (alone * weights).sum().backward()
    for name, gradient in zip(parameters, found, strict=True):
        expected = torch.stack([n.get_parameter(name).grad for n in networks])
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_parameter_counts_of_the_second_paper():
    assert [size(Transformer(layers=layers)) for layers in (1, 2)] == [222_592, 419_840]
    assert size(EmbeddingMLP()) == 98 * 128 + 385 * 512 + 513 * 512 + 513 * 97
    assert size(OneHotMLP()) == 385 * 512 + 513 * 512 + 513 * 97


def test_the_transformer_starts_as_the_authors_does():
    torch.manual_seed(0)
    for name, parameter in Transformer().named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        else:  # six standard deviations
            assert parameter.std().mul(128**0.5).sub(1).abs() < 6 / (2 * parameter.numel()) ** 0.5, name
    assert EmbeddingMLP().token_embedding.weight.std().mul(128**0.5).sub(1).abs() < 0.04


def test_a_toeplitz_embedding_moves_by_one_shift_from_token_to_token():
    torch.manual_seed(0)
    table = Transformer(embedding_init="toeplitz").token_embedding.weight.detach()
    assert torch.equal(table[1:, 1:], table[:-1, :-1])
    assert torch.equal(table[:, :98], table[:, :98].T)
    drawn = table[0] * 128**0.5
    assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() < 1
    steps = (table[1:] - table[:-1]).norm(dim=1)
    assert steps.mean().item() == pytest.approx((1 / 6) ** 0.5, rel=0.1)
    with pytest.raises(ValueError, match="needs d_model ≥ 98, the number of tokens, and has d_model=64"):
        Transformer(d_model=64, embedding_init="toeplitz")


def test_tokens():
    pairs = torch.tensor([[3, 5], [96, 0]])
    assert operand_tokens(pairs, 97).tolist() == [[3, 5, 97], [96, 0, 97]]
    assert operand_tokens(pairs, 97, 97).tolist() == [[3, 102, 194], [96, 97, 194]]
    assert Transformer(P=379).token_embedding.num_embeddings == 380
    for P, offset in ((1, 0), (5, -1)):
        with pytest.raises(ValueError, match=f"P={P}, operand_offset={offset}"):
            Transformer(P=P, operand_offset=offset)


@pytest.mark.parametrize("kind", [Transformer, EmbeddingMLP, OneHotMLP])
def test_no_residue_is_taken_for_the_last_token(kind):
    network = kind(P=11)
    parameters = {name: p.detach()[None] for name, p in network.named_parameters()}
    for pair in ([0, 11], [-1, 0]):
        with pytest.raises(IndexError, match="0 to 10"):
            network.forward_stack(parameters, torch.tensor([[pair]]))


def test_what_embedding_networks_tell_analyses():
    pairs = torch.tensor([[1, 2], [6, 0]])
    for network in (Transformer(P=7, layers=2), EmbeddingMLP(P=7), OneHotMLP(P=7)):
        for protocol in (HasPreactivations, HasFourierWeights, HasResidueEmbeddings, HasStackedForward, HasNeurons):
            assert isinstance(network, protocol)
        *_, last = network.preactivations(pairs).values()
        assert last.shape == (2, 512)
        assert all(w.shape[1] == 7 for w in network.fourier_weights().values())
    network = EmbeddingMLP(P=7, operand_offset=7)
    first = network.preactivations(pairs)["hidden.0"]
    weights = network.fourier_weights()
    rest = network.hidden[0].bias + network.hidden[0].weight[:, 256:] @ network.token_embedding.weight[-1]
    torch.testing.assert_close(first[0], weights["a"][:, 1] + weights["b"][:, 2] + rest)
    assert list(network.residue_embeddings()) == ["a", "b"]
    torch.testing.assert_close(network.residue_embeddings()["b"], network.token_embedding.weight[7:14])
    transformer = Transformer(P=7)
    hidden = transformer.preactivations(pairs)["blocks.0"].relu()
    through = hidden @ transformer.fourier_weights()["output"]
    silent = copy.deepcopy(transformer)
    silent.blocks[0].mlp_out.weight.data.zero_()
    torch.testing.assert_close(transformer(pairs), silent(pairs) + through, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"d_model": 10, "heads": 4}, "d_model=10, heads=4"),
        ({"activation": "tanh"}, "activation=tanh: unknown; allowed: relu, gelu"),
        ({"normalisation": "batch"}, "normalisation=batch: unknown; allowed: none, layer"),
        ({"embedding_init": "circulant"}, "embedding_init=circulant: unknown; allowed: normal, toeplitz"),
    ],
)
def test_transformers_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Transformer(P=7, **options)


def test_perceptrons_on_tokens_that_cannot_be():
    with pytest.raises(ValueError, match="d_model=10: 12 one-hot tokens need at least as much"):
        OneHotMLP(P=11, d_model=10)
    with pytest.raises(ValueError, match=r"hidden=\[\]"):
        EmbeddingMLP(P=11, hidden=[])


# The residual network


def convolutions(stem, width, channels):
    """(inputs, outputs, kernel, stride) of every convolution in the order of Table 1 of He et al., written out."""
    w = width
    return [
        (channels, w, *stem),
        *[(w, w, 3, 1)] * 4,
        *[(w, 2 * w, 3, 2), (2 * w, 2 * w, 3, 1), (w, 2 * w, 1, 2), (2 * w, 2 * w, 3, 1), (2 * w, 2 * w, 3, 1)],
        *[(2 * w, 4 * w, 3, 2), (4 * w, 4 * w, 3, 1), (2 * w, 4 * w, 1, 2), (4 * w, 4 * w, 3, 1), (4 * w, 4 * w, 3, 1)],
        *[(4 * w, 8 * w, 3, 2), (8 * w, 8 * w, 3, 1), (4 * w, 8 * w, 1, 2), (8 * w, 8 * w, 3, 1), (8 * w, 8 * w, 3, 1)],
    ]


@pytest.mark.parametrize(
    ("stem", "first", "width", "channels"),
    [("imagenet", (7, 2), 64, 3), ("small", (3, 1), 4, 1), ("small", (3, 1), 3, 3)],
)
@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_resnet_layers_are_those_of_the_table(stem, first, width, channels, normalisation):
    network = ResNet18(1000, width, channels, stem, normalisation)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    found = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in layers]
    expected = convolutions(first, width, channels)
    assert found == expected
    assert all(m.bias is None and m.padding == (m.kernel_size[0] // 2,) * 2 for m in layers)
    weights = sum(i * o * k * k for i, o, k, _ in expected)
    norms = sum(2 * o for _, o, _, _ in expected)
    assert size(network) == weights + norms + 1000 * (8 * width + 1)
    assert any(True for _ in network.buffers()) == (normalisation == "batch")
    if width == 64:
        assert size(network) == 11_689_512


def test_resnet_written_out(generator):
    """In evaluation mode, with functions on its state and no layer of its own."""
    network = ResNet18(classes=7, width=4, stem="imagenet").double().eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    state = network.state_dict()

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = torch.rand(3, 48, 48, generator=generator).double()
    h = norm(F.conv2d(x[:, None], state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    h = F.max_pool2d(h, 3, 2, 1)
    for stage, block in itertools.product(range(1, 5), range(2)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        g = norm(F.conv2d(h, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
        g = norm(F.conv2d(g, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride == 2:
            h = norm(F.conv2d(h, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
        h = (g + h).relu()
    features = h.mean((2, 3))
    assert features.shape == (3, 32)
    torch.testing.assert_close(network.penultimate(x), features)
    torch.testing.assert_close(network(x), features @ state["fc.weight"].T + state["fc.bias"])
    assert isinstance(network, HasPenultimate)


def test_resnet_reads_grey_levels_and_repeats_them_in_every_colour(generator):
    levels = torch.randint(0, 256, (2, 16, 16), dtype=torch.uint8, generator=generator)
    numbers = (levels.float() / 255 - 0.449) / 0.226
    for channels in (1, 3):
        network = ResNet18(classes=3, width=2, channels=channels, stem="small").eval()
        torch.testing.assert_close(network(levels), network(numbers))
        torch.testing.assert_close(network(levels), network(numbers[:, None].expand(-1, channels, -1, -1)))


def test_resnet_starts_kaiming_normal():
    torch.manual_seed(0)
    network = ResNet18(classes=10, width=16)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            values = layer.weight.detach()
            expected = math.sqrt(2 / (values.shape[0] * values[0, 0].numel()))
            assert values.std().item() == pytest.approx(expected, rel=6 / math.sqrt(values.numel())), name
        elif isinstance(layer, torch.nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_groups_of_channels():
    groups = {w: ResNet18(classes=2, width=w, normalisation="group").bn1.num_groups for w in (1, 4, 6, 8, 12, 64)}
    assert groups == {1: 1, 4: 4, 6: 2, 8: 8, 12: 4, 64: 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "classes=1: must be at least 2"),
        ({"width": 0}, "width=0: must be at least 1"),
        ({"channels": 2}, "channels=2: allowed: 1"),
        ({"stem": "large"}, "stem=large: unknown; allowed: imagenet, small"),
        ({"normalisation": "layer"}, "normalisation=layer: unknown; allowed: batch, group"),
    ],
)
def test_impossible_residual_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet18(**{"classes": 5, **options})


DIGITS = [{}, {"hidden": [70, 35], "init": "xavier_normal"}, {"side": 5, "hidden": [4], "classes": 3}]


@pytest.mark.parametrize("shape", DIGITS, ids=str)
def test_the_perceptron_of_digits_written_out(shape):
    network = shaken(DigitMLP(**shape)).double()
    images = torch.rand(6, network.side, network.side, dtype=torch.double)
    x = images.reshape(6, -1)
    for layer in network.hidden:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(network.penultimate(images), x)
    torch.testing.assert_close(network(images), x @ network.output.weight.T + network.output.bias)
    assert [v.shape[1] for v in network.preactivations(images).values()] == shape.get("hidden", [200, 200])
    networks = [shaken(DigitMLP(**shape)).double() for _ in range(3)]
    parameters = {n: torch.stack([k.get_parameter(n) for k in networks]) for n, _ in network.named_parameters()}
    together = network.forward_stack(parameters, images.expand(3, *images.shape))
    torch.testing.assert_close(together, torch.stack([each(images) for each in networks]))


def test_how_the_perceptron_of_digits_starts():
    torch.manual_seed(0)
    assert size(DigitMLP()) == 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    network = DigitMLP(hidden=[70, 35], init="xavier_normal")
    for layer, (i, o) in zip((*network.hidden, network.output), ((784, 70), (70, 35), (35, 10)), strict=True):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx((2 / (i + o)) ** 0.5, rel=6 / (2 * i * o) ** 0.5)
    with pytest.raises(ValueError, match="init=orthogonal: unknown; allowed: default, xavier_normal"):
        DigitMLP(init="orthogonal")
    with pytest.raises(ValueError, match=r"hidden=\[\]"):
        DigitMLP(hidden=[])


def test_observables_of_a_stroke():
    images = torch.zeros(5, 28, 28)
    images[0, 4:24, 13] = 1  # upright
    images[1, 14, 4:24] = 0.5  # lying
    images[2, range(4, 24), range(23, 3, -1)] = 1  # /
    images[3, range(4, 24), range(4, 24)] = 1  # \\
    found = DigitMLP.observables(images)
    spread = (399 / 12) ** 0.5  # of 20 equally spaced places
    assert found["ink"].tolist() == pytest.approx([20 / 784, 10 / 784, 20 / 784, 20 / 784, 0])
    assert found["width"].tolist() == pytest.approx([0, spread, spread, spread, 0], abs=1e-6)
    assert found["height"].tolist() == pytest.approx([spread, 0, spread, spread, 0], abs=1e-6)
    assert found["slant"].tolist() == pytest.approx([0, 0, 1, -1, 0], abs=1e-6)
