"""How evenly a network spaces what it has to tell apart."""

from typing import NamedTuple

import torch
from torch import Tensor


class RepresentationUniformity(NamedTuple):
    """Steps of a representation over a grid of symbols."""

    #: Mean distance between examples of which one symbol goes to the next, in units of the features.
    step: Tensor
    #: The same over the mean norm of the features.
    relative_step: Tensor


def representation_uniformity(features: Tensor, symbols: int) -> RepresentationUniformity:
    """How far the representation moves when one of several symbols goes to the next.

    With φ(s₁, …, s_m) the features of the example whose symbols are s₁ … s_m, each from 0 to S − 1,

        step = ⟨ ‖φ(…, s_q + 1, …) − φ(…, s_q, …)‖ ⟩,

    the mean over all m places q and all m·S^(m−1)·(S − 1) such pairs; relative_step = step / ⟨‖φ‖⟩.

    Source: our reading of arXiv 2504.03162, which measures the main embedding difference ⟨‖φ(i + 1) − φ(i)‖⟩ of a token
    embedding φ (Definition 4.2) and says in its conclusion that for networks without one it is to be understood as
    uniformity of the representation, which it does not measure. Symbols are no residues: the last is not next to the
    first.

    Args:
        features: Shape (S^m, d), examples in lexicographic order, the first symbol slowest.
        symbols: S, at least 2.

    Returns:
        Two numbers, float64; NaN for a relative step where all features are zero.

    Raises:
        ValueError: Where the number of examples is not a power of S, or S is less than 2.

    Example:
        >>> grid = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
        >>> found = representation_uniformity(grid * torch.tensor([1.0, 5.0]), symbols=3)
        >>> found.step.item()  # half of the steps have the length 1, half 5
        3.0
    """
    count = len(features)
    if symbols < 2:
        raise ValueError(f"symbols={symbols}: must be at least 2")
    places = 0
    while symbols**places < count:
        places += 1
    if places < 1 or symbols**places != count:
        raise ValueError(f"{count} features: not a power of symbols={symbols}, so not those of all examples")
    norm = features.double().norm(dim=1).mean()
    grid = features.double().view(*[symbols] * places, -1)
    step = torch.stack([grid.diff(dim=place).norm(dim=-1).mean() for place in range(places)]).mean()
    return RepresentationUniformity(step, step / norm)
