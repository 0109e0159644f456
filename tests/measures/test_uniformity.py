import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.uniformity import (
    authors_embedding_difference,
    embedding_differences,
    embedding_spread,
    mean_embedding_difference,
    relative_embedding_difference,
    smallest_relative_difference,
)


def circle(P, f, radius=1.0, d=2):
    angle = 2 * torch.pi * f * torch.arange(P, dtype=torch.float64) / P
    embeddings = torch.zeros(P, d, dtype=torch.float64)
    embeddings[:, 0], embeddings[:, 1] = radius * angle.cos(), radius * angle.sin()
    return embeddings


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step", [0, 1, 2, -3, 6, 7, 20])
def test_equals_the_definition_written_out(step):
    P, embeddings = 7, noise(3, 2, 7, 5)
    slow = [
        [sum(math.dist(e[(i + step) % P].tolist(), e[i].tolist()) for i in range(P)) / P for e in block]
        for block in embeddings
    ]
    torch.testing.assert_close(
        mean_embedding_difference(embeddings, step), torch.tensor(slow, dtype=torch.float64), atol=1e-12, rtol=1e-12
    )


def test_one_is_the_step_of_the_paper_and_steps_are_residues():
    embeddings = noise(11, 4)
    assert mean_embedding_difference(embeddings) == mean_embedding_difference(embeddings, 1)
    for other in (-1, 10, 12):
        torch.testing.assert_close(mean_embedding_difference(embeddings, other), mean_embedding_difference(embeddings))


@settings(deadline=None, max_examples=30)
@given(P=st.sampled_from([5, 31, 97]), f=st.integers(1, 96), radius=st.floats(1e-3, 1e3))
def test_a_circle_has_the_chord_of_every_step_and_its_shortest_at_the_inverse_of_its_frequency(P, f, radius):
    f = f % (P - 1) + 1
    embeddings = circle(P, f, radius, d=4)
    chords = torch.tensor([2 * radius * abs(math.sin(math.pi * f * k / P)) for k in range(1, P // 2 + 1)]).double()
    torch.testing.assert_close(embedding_differences(embeddings), chords, atol=0, rtol=1e-6)
    inverse = pow(f, -1, P)
    smallest = smallest_relative_difference(embeddings)
    assert smallest.step == min(inverse, P - inverse)
    assert smallest.value.item() == pytest.approx(2 * math.sin(math.pi / P), rel=1e-9)


@pytest.mark.parametrize("P", [2, 3, 8, 9])
def test_every_step_up_to_half(P):
    embeddings = noise(2, P, 3)
    expected = torch.stack([mean_embedding_difference(embeddings, k) for k in range(1, P // 2 + 1)], dim=-1)
    differences = embedding_differences(embeddings)
    assert differences.shape == (2, P // 2)
    torch.testing.assert_close(differences, expected)


def test_close_embeddings_far_from_the_origin_keep_their_digits():
    P = 97
    embeddings = circle(P, 3, radius=2.0**-20) + 1024.0
    torch.testing.assert_close(
        mean_embedding_difference(embeddings).item(), 2.0**-19 * math.sin(3 * math.pi / P), atol=0, rtol=1e-5
    )


def test_random_embeddings_have_root_two_of_their_norm_at_every_step():
    embeddings = noise(97, 512, dtype=torch.float32)
    relative = embedding_differences(embeddings) / embeddings.double().norm(dim=-1).mean()
    torch.testing.assert_close(relative, torch.full_like(relative, math.sqrt(2)), atol=0.03, rtol=0)
    assert relative_embedding_difference(embeddings) == relative[0]
    smallest = smallest_relative_difference(embeddings)
    assert smallest.value == relative.min()
    assert smallest.step == relative.argmin() + 1


def test_relative_difference_has_no_unit():
    embeddings = noise(4, 13, 6)
    torch.testing.assert_close(
        relative_embedding_difference(1e-30 * embeddings, 4), relative_embedding_difference(embeddings, 4)
    )


def test_constant_embeddings_do_not_differ_and_zero_ones_are_undefined():
    embeddings = torch.stack([torch.full((7, 3), 0.1), torch.zeros(7, 3)])
    assert embedding_differences(embeddings).tolist() == [[0.0] * 3] * 2
    smallest = smallest_relative_difference(embeddings)
    assert smallest.step.tolist() == [1, -1]
    torch.testing.assert_close(smallest.value, torch.tensor([0, torch.nan]).double(), equal_nan=True)
    torch.testing.assert_close(
        relative_embedding_difference(embeddings), torch.tensor([0, torch.nan]).double(), equal_nan=True
    )


@pytest.mark.parametrize("function", [embedding_differences, smallest_relative_difference])
def test_a_single_residue_is_refused(function):
    with pytest.raises(ValueError, match="single"):
        function(torch.ones(1, 4))
    assert mean_embedding_difference(torch.ones(1, 4)) == 0


@pytest.mark.parametrize("offset", [0, 9, 12])
def test_the_authors_variants_written_out(offset):
    P, tokens = 9, noise(22, 4)
    m = [
        sum(math.dist(tokens[t + 1].tolist(), tokens[t].tolist()) for t in range(a, a + P - 2)) / (P - 2)
        for a in (0, offset)
    ]
    for variant, value in {"base": sum(m) / 2, "strip": sum(m), "square": (P - 1) * sum(m)}.items():
        assert authors_embedding_difference(tokens, P, variant, offset).item() == pytest.approx(value, rel=1e-12)


def test_the_authors_values_at_initialisation():
    V, d, P = 170, 128, 97
    tokens = noise(200, V, d, dtype=torch.float32) / math.sqrt(d)
    values = [
        authors_embedding_difference(tokens, P, variant, offset).mean().item()
        for variant, offset in (("base", 0), ("strip", 60), ("square", 0))
    ]
    assert values == pytest.approx([1.41, 2.83, 272], rel=0.005)
    toeplitz = torch.rand(200, V, d, generator=torch.Generator().manual_seed(0)) / math.sqrt(d)
    assert authors_embedding_difference(toeplitz, P, "base").mean().item() == pytest.approx(math.sqrt(1 / 6), rel=0.005)


def test_the_authors_leave_out_the_last_two_differences_of_the_cycle():
    tokens = noise(11, 4)
    cycle = 11 * mean_embedding_difference(tokens)
    last = (tokens[10] - tokens[9]).norm() + (tokens[0] - tokens[10]).norm()
    torch.testing.assert_close(9 * authors_embedding_difference(tokens, 11, "base"), cycle - last)


@pytest.mark.parametrize(("P", "offset", "message"), [(2, 0, "none is left"), (5, 4, "tokens 4"), (5, -1, "tokens")])
def test_tokens_that_do_not_hold_the_operands_are_refused(P, offset, message):
    with pytest.raises(ValueError, match=message):
        authors_embedding_difference(torch.ones(8, 2), P, "base", offset)


def test_spread_is_the_inverse_condition_number():
    embeddings = noise(3, 9, 4)
    condition = torch.linalg.cond(embeddings)
    torch.testing.assert_close(embedding_spread(embeddings), 1 / condition)
    torch.testing.assert_close(embedding_spread(embeddings.mT), 1 / condition)


def test_spread_of_known_embeddings():
    assert embedding_spread(circle(13, 5)).item() == pytest.approx(1, abs=1e-12)
    assert embedding_spread(circle(13, 5, d=3)).item() == pytest.approx(0, abs=1e-12)
    assert embedding_spread(torch.eye(6)).item() == 1
    assert embedding_spread(torch.ones(6, 3)).item() == pytest.approx(0, abs=1e-12)
    assert embedding_spread(torch.zeros(6, 3)).isnan()
