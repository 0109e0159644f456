import pytest
import torch
from torch import nn

from lit_grok.measures.weights import dead_neurons, layer_norms, layers, norm, zero_share
from lit_grok.networks import IsingCNN, ModularMLP, ResNet18, Transformer


def test_layers_hold_every_parameter_once():
    network = IsingCNN()
    vectors = layers(network)
    assert list(vectors) == ["conv1", "conv2", "fc1", "fc2"]
    assert sum(len(v) for v in vectors.values()) == 6798
    torch.testing.assert_close(vectors["conv1"], torch.cat([network.conv1.weight.flatten(), network.conv1.bias]).data)


def test_layers_are_copies():
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    layers(network)[""].zero_()
    assert torch.equal(network.weight, before)


def test_norm_adds_up():
    network = ModularMLP(P=7, hidden=[5])
    total = sum(p.double().square().sum() for p in network.parameters()) ** 0.5
    torch.testing.assert_close(norm(network), total.detach())
    squares = sum(value.square() for value in layer_norms(network).values())
    torch.testing.assert_close(squares.sqrt(), norm(network))


def test_norm_of_tiny_weights_does_not_underflow():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(2.0**-100)
    assert norm(network).item() == 2.0**-100


def test_zero_share_over_the_last_dimension():
    torch.testing.assert_close(
        zero_share(torch.tensor([[0.0, -0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0**-149]])),
        torch.tensor([0.5, 0.0], dtype=torch.float64),
    )


def test_dead_by_incoming_or_by_outgoing_weights():
    network = ModularMLP(P=5, hidden=[4, 3])
    first, second, output = network.hidden[0], network.hidden[1], network.output
    first.weight.data[0] = 0
    first.bias.data[0] = 1.0  # constant, so dead all the same
    second.weight.data[:, 2] = 0
    second.weight.data[1] = 0
    output.weight.data[:, 1] = 0
    assert {name: mask.tolist() for name, mask in dead_neurons(network).items()} == {
        "hidden.0": [True, False, True, False],
        "hidden.1": [False, True, False],
    }


def test_dead_neurons_of_a_network_that_is_no_chain():
    network = Transformer(P=5, layers=2, d_model=4, heads=2, d_mlp=3)
    network.blocks[0].mlp_in.weight.data[1] = 0
    network.blocks[1].mlp_out.weight.data[:, 2] = 0
    network.blocks[0].attention.value.weight.data[0] = 0  # no neuron
    assert {name: mask.tolist() for name, mask in dead_neurons(network).items()} == {
        "blocks.0.mlp_in": [False, True, False],
        "blocks.1.mlp_in": [False, False, True],
    }


def test_dead_channels_of_a_residual_network():
    network = ResNet18(classes=3, width=2, stem="small")
    network.layer2[1].conv1.weight.data[3] = 0
    found = dead_neurons(network)
    assert len(found) == 8
    assert found["layer2.1.conv1"].tolist() == [False, False, False, True]
    assert sum(int(mask.sum()) for mask in found.values()) == 1


def test_a_dead_neuron_changes_nothing():
    network = ModularMLP(P=5, hidden=[6])
    network.hidden[0].weight.data[1] = 0
    network.output.weight.data[:, 4] = 0
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    activations = torch.relu(network.preactivations(pairs)["hidden.0"])
    varies = ((activations - activations[0])[:, None] * network.output.weight).abs().amax((0, 1)) > 0
    assert not (varies & dead_neurons(network)["hidden.0"]).any()


def test_a_flattened_channel_is_a_block_of_inputs():
    network = IsingCNN(side=4)
    network.fc1.weight.data[:, 2] = 0  # one position per channel at side 4
    network.conv2.weight.data[:, 0] = 0
    assert {name: mask.nonzero().flatten().tolist() for name, mask in dead_neurons(network).items()} == {
        "conv1": [0],
        "conv2": [2],
        "fc1": [],
    }
    network = IsingCNN(side=8)
    network.fc1.weight.data[:, 4:8] = 0
    assert dead_neurons(network)["conv2"].tolist() == [False, True, False, False]
    image = torch.randn(3, 8, 8)
    before = network(image)
    network.conv2.weight.data[1] += 1
    assert torch.equal(network(image), before)


def test_a_layer_that_does_not_follow_is_named():
    with pytest.raises(ValueError, match=r"1\.weight has 3 inputs, which 0\.weight's 2"):
        dead_neurons(nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)))
