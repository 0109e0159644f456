import numpy as np
import pytest
import torch

from callbacks import EmbeddingUniformityCallback
from lit_grok.networks import EmbeddingMLP, Transformer
from lit_grok.results import open_run

P = 13


def on_a_circle(network, frequency):
    """Its residues on a circle of radius 3, at this frequency, in some plane."""
    angle = 2 * torch.pi * frequency * torch.arange(P) / P
    plane = torch.linalg.qr(torch.randn(network.token_embedding.embedding_dim, 2)).Q
    with torch.no_grad():
        network.token_embedding.weight[:P] = 3 * torch.stack([angle.cos(), angle.sin()], 1) @ plane.T
    return network


def test_a_circle():
    network = on_a_circle(Transformer(P=P, d_model=16, heads=2, d_mlp=8), 5)
    values = EmbeddingUniformityCallback().measure(network, None)
    assert values["med"].operand.values.tolist() == ["both"]
    chord = [2 * np.sin(np.pi * 5 * k / P) for k in range(P)]
    found = {name: value.item() for name, value in values.items()}
    assert found["med"] == pytest.approx(3 * abs(chord[1]), rel=1e-5)
    assert found["relative_med"] == pytest.approx(abs(chord[1]), rel=1e-5)
    assert found["mean_norm"] == pytest.approx(3, rel=1e-5)
    assert found["spread"] == pytest.approx(0, abs=1e-6)  # it lies in a plane
    step = next(k for k in range(1, P) if 5 * k % P in (1, P - 1))
    assert found["smallest_step"] == step
    assert found["smallest_relative_med"] == pytest.approx(2 * np.sin(np.pi / P), rel=1e-5)

    final = EmbeddingUniformityCallback().measure_final(network, None)
    np.testing.assert_allclose(final["difference"][0], [3 * abs(chord[k]) for k in range(1, P // 2 + 1)], rtol=1e-5)
    assert final["difference"].step.values.tolist() == list(range(1, P // 2 + 1))
    assert final["plane_frequency"].item() == 5
    np.testing.assert_allclose(np.linalg.norm(final["plane"][0], axis=1), 3, rtol=1e-5)


def test_random_embeddings_are_a_root_of_two_apart():
    torch.manual_seed(0)
    values = EmbeddingUniformityCallback().measure(Transformer(P=97, d_model=512), None)
    assert values["relative_med"].item() == pytest.approx(2**0.5, abs=0.02)
    assert values["smallest_relative_med"].item() == pytest.approx(2**0.5, abs=0.03)


def test_operands_of_their_own():
    network = EmbeddingMLP(P=P, d_model=8, hidden=[6], operand_offset=P)
    with torch.no_grad():
        network.token_embedding.weight[:P] *= 7
    values = EmbeddingUniformityCallback().measure(network, None)
    assert values["med"].operand.values.tolist() == ["a", "b"]
    assert values["mean_norm"][0] > 3 * values["mean_norm"][1]


@pytest.mark.rendered
def test_a_run_and_its_figures(command):
    run = command.prime("callbacks.uniformity._target_=callbacks.EmbeddingUniformityCallback", "seed=0:2")
    found = open_run(run)
    assert found["uniformity"].med.dims == ("replica", "epoch", "operand")
    assert found["uniformity"].smallest_step.max() <= 5
    assert {path.name for path in (run / "figures").glob("uniformity*.png")} == {
        "uniformity_development.png",
        "uniformity_plane.png",
    }
