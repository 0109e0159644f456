"""How finely a network of ReLU units divides the space about its inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

VERTICES_AT_ONCE = 4096  # bounds the memory that the pre-activations take


def local_complexity(
    preactivations: Callable[[Tensor], Tensor], points: Tensor, radius: float, n_dirs: int, generator: torch.Generator
) -> Tensor:
    """Number of ReLU units whose hyperplane cuts a small cross-polytope about each sample.

    The vertices are x ± r v_i, i = 1 … n_dirs, with random orthonormal v_i of each sample's own. A unit is counted if
    it is active (pre-activation above 0) at some of the 2 n_dirs vertices and not at all of them: for a unit that is
    affine on the polytope this is exact.

    Source: Humayun, Balestriero and Baraniuk 2024, Deep Networks Always Grok and Here Is Why.

    Args:
        preactivations: Maps points (M, …) to the pre-activations of all units, of all layers, (M, units).
        points: Samples, shape (N, …), floating point; the last dimensions together are the D coordinates.
        radius: r, positive, in the unit of the points.
        n_dirs: Number of directions, from 1 to D.
        generator: Draws the directions.

    Returns:
        Integers of shape (N,), between 0 and the number of units.

    Raises:
        ValueError: The radius is not positive, or there are no directions or more than D.

    Example:
        >>> points = torch.tensor([[0.5, 0.0], [3.0, 0.0]])
        >>> local_complexity(lambda x: torch.stack([x[:, 0], x[:, 0] - 3], dim=1), points, 1.0, 2, torch.Generator())
        tensor([1, 1])
    """
    shape, flat = points.shape[1:], points.flatten(1)
    D = flat.shape[1]
    if not radius > 0:
        raise ValueError(f"radius={radius}: a radius is positive")
    if not 1 <= n_dirs <= D:
        raise ValueError(f"n_dirs={n_dirs}: there are 1 to {D} orthonormal directions")
    counts = []
    with torch.no_grad():
        for x in flat.split(max(1, VERTICES_AT_ONCE // (2 * n_dirs))):
            gaussian = torch.randn(len(x), D, n_dirs, generator=generator, device=generator.device, dtype=x.dtype)
            v = torch.linalg.qr(gaussian).Q.mT.to(x.device)  # (samples, n_dirs, D)
            vertices = x.unsqueeze(1) + radius * torch.cat([v, -v], dim=1)
            active = preactivations(vertices.reshape(-1, *shape)).unflatten(0, (len(x), -1)) > 0
            counts.append((active.any(1) & ~active.all(1)).sum(1))
    return torch.cat(counts)
