"""How evenly the embeddings φ(i) of the residues i = 0 … P − 1 are laid out in space."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class SmallestDifference(NamedTuple):
    """The smallest value over the steps s, float64, and the lowest s that attains it; NaN and −1 if undefined."""

    value: Tensor
    step: Tensor


def mean_embedding_difference(embeddings: Tensor, step: int = 1) -> Tensor:
    """Mean distance between the embeddings of residues that differ by ``step``, round the cycle.

    MED_s = (1/P) Σ_{i=0}^{P−1} ‖φ((i + s) mod P) − φ(i)‖₂. The paper's MED is that of s = 1.

    Source: arXiv 2504.03162, Definition 4.2; the wrap-around φ(P) = φ(0) as in its Theorem 3.8.

    Args:
        embeddings: Shape (..., P, d), any unit.
        step: s, any integer; s, −s and s + P give the same.

    Returns:
        Shape (...,), float64, in the unit of the embeddings.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> mean_embedding_difference(square), mean_embedding_difference(square, step=2)
        (tensor(1., dtype=torch.float64), tensor(1.4142, dtype=torch.float64))
    """
    # Differences before norms: a Gram matrix would lose the short ones in the rounding of the long ones.
    x = torch.as_tensor(embeddings).double()
    return (x.roll(-step, -2) - x).norm(dim=-1).mean(-1)


def embedding_differences(embeddings: Tensor) -> Tensor:
    """Mean distance between the embeddings of residues that differ by s, for every s = 1 … P // 2.

    The other steps repeat these, as MED_{P−s} = MED_s. An embedding on a circle of radius ρ with a frequency k has
    MED_s = 2ρ |sin(πks/P)|: what a network has learned shows at some s whatever its frequency, and at s = 1 only
    if that is low.

    Source: arXiv 2504.03162, Definition 4.2, for any step.

    Args:
        embeddings: Shape (..., P, d), P ≥ 2, any unit.

    Returns:
        Shape (..., P // 2), float64, in the unit of the embeddings; the entry s − 1 is that of s.

    Raises:
        ValueError: There are fewer than two residues.

    Example:
        >>> angle = 2 * torch.pi * 2 * torch.arange(5) / 5
        >>> embedding_differences(torch.stack([angle.cos(), angle.sin()], dim=-1))
        tensor([1.9021, 1.1756], dtype=torch.float64)
    """
    x = torch.as_tensor(embeddings)
    P = x.shape[-2]
    if P < 2:
        raise ValueError("a single residue has no differences")
    return torch.stack([mean_embedding_difference(x, step) for step in range(1, P // 2 + 1)], dim=-1)


def authors_embedding_difference(
    tokens: Tensor, P: int, variant: Literal["base", "strip", "square"], offset: int = 0
) -> Tensor:
    """What the paper's code plots as MED: not its definition, and not the same for every split.

    With m(t₀) = (1/(P − 2)) Σ_{t=t₀}^{t₀+P−3} ‖E_{t+1} − E_t‖₂, which leaves out the last two of the P differences
    of the cycle, and the tokens of the second operand beginning at d = ``offset``:

    - ``base`` (random split, and every perceptron): (m(0) + m(d)) / 2,
    - ``strip``: m(0) + m(d),
    - ``square``: (P − 1) (m(0) + m(d)).

    Source: the code of arXiv 2504.03162, transformer/{base, str, rec}.py.

    Args:
        tokens: The whole embedding, a row E_t for each of the V tokens, shape (..., V, d_model).
        P: Number of residues, at least 3.
        variant: Which of the three.
        offset: First token of the second operand; 0 if both operands share their tokens.

    Returns:
        Shape (...,), float64, in the unit of the embeddings.

    Raises:
        ValueError: P is less than 3, or an operand's tokens are not all among the V.

    Example:
        >>> line = torch.arange(8.0).unsqueeze(-1)
        >>> [authors_embedding_difference(line, 7, variant).item() for variant in ("base", "strip", "square")]
        [1.0, 2.0, 12.0]
    """
    x = torch.as_tensor(tokens).double()
    if P < 3:
        raise ValueError(f"P={P}: there are P − 2 differences, and none is left")
    if offset < 0 or offset + P > x.shape[-2]:
        raise ValueError(f"tokens {offset} … {offset + P - 1} are not all among the {x.shape[-2]} of the embedding")
    first, second = (x[..., t : t + P - 1, :].diff(dim=-2).norm(dim=-1).mean(-1) for t in (0, offset))
    return {"base": 0.5, "strip": 1.0, "square": P - 1.0}[variant] * (first + second)


def relative_embedding_difference(embeddings: Tensor, step: int = 1) -> Tensor:
    """MED_s over the mean norm of the embeddings, which no common factor of them changes.

    MED_s / ((1/P) Σ_i ‖φ(i)‖₂): about √2 for independent random embeddings in many dimensions, whose differences
    have twice the variance, and 2 |sin(πks/P)| on a circle about the origin with a frequency k.

    Args:
        embeddings: Shape (..., P, d), any unit.
        step: s, any integer.

    Returns:
        Shape (...,), float64, between 0 and 2; NaN where every embedding is zero.

    Example:
        >>> relative_embedding_difference(10 * torch.eye(50))
        tensor(1.4142, dtype=torch.float64)
    """
    return mean_embedding_difference(embeddings, step) / _mean_norm(embeddings)


def smallest_relative_difference(embeddings: Tensor) -> SmallestDifference:
    """Smallest of the relative differences over the steps s = 1 … P // 2, whichever frequency was learned.

    min_s MED_s / ((1/P) Σ_i ‖φ(i)‖₂): on a circle about the origin with a frequency k prime to P the minimum is
    2 sin(π/P), at the s of ±k⁻¹ mod P.

    Args:
        embeddings: Shape (..., P, d), P ≥ 2, any unit.

    Returns:
        Two tensors of shape (...,): the value, float64, NaN where every embedding is zero, and its s, there −1.

    Raises:
        ValueError: There are fewer than two residues.

    Example:
        >>> angle = 2 * torch.pi * 2 * torch.arange(7) / 7
        >>> smallest_relative_difference(torch.stack([angle.cos(), angle.sin()], dim=-1))
        SmallestDifference(value=tensor(0.8678, dtype=torch.float64), step=tensor(3))
    """
    x = torch.as_tensor(embeddings)
    smallest = (embedding_differences(x) / _mean_norm(x).unsqueeze(-1)).min(-1)
    return SmallestDifference(smallest.values, (smallest.indices + 1).masked_fill(smallest.values.isnan(), -1))


def embedding_spread(embeddings: Tensor) -> Tensor:
    """How evenly the embeddings spread over their directions: σ_min / σ_max of the matrix (P, d) of embeddings.

    σ are its min(P, d) singular values, and the ratio is the inverse of its condition number: 1 if all directions
    are equally strong, 0 if some are not used, as on a circle in more than two dimensions. The matrix is
    not centred: a mean that all embeddings share is one of its directions, and is part of what a layer sees.

    Args:
        embeddings: Shape (..., P, d), any unit.

    Returns:
        Shape (...,), float64, between 0 and 1, up to rounding; NaN where every embedding is zero.

    Example:
        >>> embedding_spread(torch.tensor([[2.0, 0.0], [0.0, -1.0], [0.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    sigma = torch.linalg.svdvals(torch.as_tensor(embeddings).double())
    return sigma[..., -1] / sigma[..., 0]


class FourierPlane(NamedTuple):
    """Embeddings in a plane, (P, 2), and the frequency at which they turn in it."""

    coordinates: Tensor
    frequency: int


def fourier_plane(embeddings: Tensor) -> FourierPlane:
    """The embeddings projected on the plane of their largest Fourier component.

    With a_k and b_k the coefficients of cos(2πkx/P) and sin(2πkx/P), vectors of d dimensions, k is the frequency, from
    1 on, of the largest |a_k|² + |b_k|², and the plane is spanned by a_k and what of b_k is orthogonal to it.

    Args:
        embeddings: A row for each residue, shape (P, d), P ≥ 3, d ≥ 2.

    Returns:
        Coordinates, float64, in units of the embeddings, and k.

    Example:
        >>> angle = 2 * torch.pi * 2 * torch.arange(5, dtype=torch.float64) / 5
        >>> plane = fourier_plane(torch.stack([angle.cos(), torch.ones(5), angle.sin()], dim=1))
        >>> plane.frequency, plane.coordinates[:2].round(decimals=4)
        (2, tensor([[ 1.0000,  0.0000],
                [-0.8090,  0.5878]], dtype=torch.float64))
    """
    embeddings = torch.as_tensor(embeddings).double()
    coefficients = torch.fft.rfft(embeddings, dim=0)
    frequency = int(coefficients[1:].abs().square().sum(1).argmax()) + 1
    largest = coefficients[frequency]
    directions = torch.linalg.qr(torch.stack([largest.real, -largest.imag], dim=1))
    signs = directions.R.diagonal().sign()
    return FourierPlane(embeddings @ (directions.Q * torch.where(signs == 0, 1.0, signs)), frequency)


def _mean_norm(embeddings: Tensor) -> Tensor:
    return torch.as_tensor(embeddings).double().norm(dim=-1).mean(-1)
