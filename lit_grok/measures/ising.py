"""Observables of two-dimensional Ising snapshots."""

import math

from torch import Tensor

CRITICAL_TEMPERATURE = 2 / math.log(1 + math.sqrt(2))  # Onsager 1944, square lattice, J = 1


def energy(spins: Tensor) -> Tensor:
    """Energy per site with periodic boundaries and J = 1.

    E / N = −(1/N) Σ_⟨ij⟩ s_i s_j, each bond counted once (two per site).

    Args:
        spins: ±1, shape (..., L, L), any real dtype.

    Returns:
        Shape (...,), between −2 and 2, in units of J.

    Example:
        >>> import torch
        >>> energy(torch.ones(4, 4)).item()
        -2.0
    """
    s = spins.float() if not spins.is_floating_point() else spins
    return -(s * (s.roll(1, -1) + s.roll(1, -2))).mean((-2, -1))


def magnetisation(spins: Tensor) -> Tensor:
    """Magnetisation per site, (1/N) Σ_i s_i.

    Args:
        spins: ±1, shape (..., L, L), any real dtype.

    Returns:
        Shape (...,), between −1 and 1.

    Example:
        >>> import torch
        >>> magnetisation(-torch.ones(4, 4)).item()
        -1.0
    """
    s = spins.float() if not spins.is_floating_point() else spins
    return s.mean((-2, -1))
