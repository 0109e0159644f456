"""Pairs of residues as the tokens of a network that embeds them."""

import torch
from torch import Tensor


def vocabulary(P: int, operand_offset: int = 0) -> int:
    """Number of tokens: P residues, as many more as the offset sets the second operand apart, and "=".

    Raises:
        ValueError: Where P is below 2 or the offset negative.

    Example:
        >>> vocabulary(97), vocabulary(97, operand_offset=97)
        (98, 195)
    """
    if P < 2 or operand_offset < 0:
        raise ValueError(f"P={P}, operand_offset={operand_offset}: P is at least 2, and the offset at least 0")
    return P + operand_offset + 1


def operand_tokens(pairs: Tensor, P: int, operand_offset: int = 0) -> Tensor:
    """Tokens a, b + operand_offset and "=", the last of the vocabulary.

    Args:
        pairs: Residues (a, b), integers of shape (…, 2).
        P: Number of residues.
        operand_offset: Token of the second operand 0.

    Returns:
        Shape (…, 3).

    Example:
        >>> operand_tokens(torch.tensor([3, 5]), P=97, operand_offset=60)
        tensor([  3,  65, 157])
    """
    a, b = pairs.unbind(-1)
    return torch.stack((a, b + operand_offset, torch.full_like(a, vocabulary(P, operand_offset) - 1)), -1)


def toeplitz_(table: Tensor) -> None:
    """Draw embeddings whose neighbours differ by one shift: E[t, i] = v[|t − i|] / √d with v uniform in [0, 1).

    Appendix E of arXiv 2504.03162 starts from such a matrix; its steps ‖E[t + 1] − E[t]‖ are √(1/6) = 0.41 on average,
    those of embeddings drawn from N(0, 1 / d) √2.

    Args:
        table: Filled in place, shape (tokens, d) with no more tokens than dimensions.

    Raises:
        ValueError: Where there are more tokens than dimensions.

    Example:
        >>> table = torch.empty(3, 4)
        >>> toeplitz_(table)
        >>> bool(table[0, 1] == table[1, 2] == table[2, 1])
        True
    """
    tokens, d = table.shape
    if tokens > d:
        raise ValueError(f"a Toeplitz embedding needs d_model ≥ {tokens}, the number of tokens, and has d_model={d}")
    drawn = torch.rand(d, dtype=table.dtype, device=table.device)
    distance = (torch.arange(tokens).unsqueeze(1) - torch.arange(d)).abs().to(table.device)
    with torch.no_grad():
        table.copy_(drawn[distance] / d**0.5)


def embeddings_of_operands(table: Tensor, P: int, operand_offset: int = 0) -> dict[str, Tensor]:
    """Embeddings (P, d) of the residues, of ``both`` operands or, where an offset sets them apart, of ``a`` and ``b``.

    Args:
        table: Those of all tokens, shape (tokens, d).
        P: Number of residues.
        operand_offset: Token of the second operand 0.
    """
    a, b = table[:P], table[operand_offset : operand_offset + P]
    return {"a": a, "b": b} if operand_offset else {"both": a}
