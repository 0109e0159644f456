"""Fourier content of the weights that a neuron carries over the residues 0 … P − 1."""

import torch
from torch import Tensor


def inverse_participation_ratio(weights: Tensor, r: float = 2) -> Tensor:
    """Inverse participation ratio of the Fourier modes of each neuron's weights.

    IPR = Σ_k |Ŵ_k|^{2r} / (Σ_k |Ŵ_k|²)^r over the P modes of the full complex DFT. With r = 2 a cosine of any
    phase gives 1/2 (for even P, 1 at the frequency P/2), a constant 1 and white noise about 2/P.

    Source: Gromov 2024; arXiv 2502.01739, Eqs. 4 and 7.

    Args:
        weights: Shape (..., P), any unit: the ratio does not depend on their scale.
        r: Order, positive; 1 gives 1 for any weights.

    Returns:
        Shape (...,), float64; NaN for a dead neuron, whose weights are all zero.

    Raises:
        ValueError: r is not positive.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(113, dtype=torch.float64) / 113
        >>> weights = torch.stack([torch.cos(5 * angle + 0.3), torch.ones(113), torch.zeros(113)])
        >>> inverse_participation_ratio(weights)
        tensor([0.5000, 1.0000,    nan], dtype=torch.float64)
    """
    if r <= 0:
        raise ValueError(f"r={r}: the order is positive")
    power = _amplitudes(weights).square()
    return (power / power.sum(-1, keepdim=True)).pow(r).sum(-1)


def dominant_frequency(weights: Tensor) -> Tensor:
    """Frequency k, between 0 and P // 2, of the largest Fourier amplitude |Ŵ_k|.

    Args:
        weights: Shape (..., P).

    Returns:
        Integers of shape (...,), the lowest of equally large ones; −1 for a dead neuron.

    Example:
        >>> angle = 2 * torch.pi * torch.arange(113) / 113
        >>> dominant_frequency(torch.stack([torch.cos(5 * angle + 0.3), torch.zeros(113)]))
        tensor([ 5, -1])
    """
    amplitudes = _amplitudes(weights)
    lower = amplitudes[..., : amplitudes.shape[-1] // 2 + 1]
    return lower.argmax(-1).masked_fill(lower.isnan().any(-1), -1)


def share_by_frequency(frequencies: Tensor, magnitudes: Tensor, P: int) -> Tensor:
    """Share of a magnitude that the neurons of each dominant frequency hold.

    Ones as magnitudes give the share of neurons; Σ_x |a_n(x)| gives the share of the activations.

    Args:
        frequencies: Of each neuron, from :func:`dominant_frequency`, shape (..., n).
        magnitudes: Not negative, shape (..., n).
        P: Number of residues.

    Returns:
        Shape (..., P // 2 + 1), float64, of sum 1; dead neurons are left out. NaN where all are.

    Example:
        >>> share_by_frequency(torch.tensor([1, 2, 1, -1]), torch.tensor([1.0, 2.0, 1.0, 9.0]), P=5)
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    live = torch.where(frequencies >= 0, magnitudes.double(), 0.0)
    totals = live.new_zeros(*live.shape[:-1], P // 2 + 1)
    totals.scatter_add_(-1, frequencies.clamp(min=0), live)
    return totals / totals.sum(-1, keepdim=True)


def _amplitudes(weights: Tensor) -> Tensor:
    """|Ŵ_k| of the weights over their largest, so that no square underflows; NaN for a dead neuron."""
    weights = torch.as_tensor(weights).double()
    return torch.fft.fft(weights / weights.abs().amax(-1, keepdim=True)).abs()
