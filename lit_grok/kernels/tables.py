"""Rows of tables, one table for each replica; on a GPU as products, where their gradient is asked for.

The gradient of a look-up sorts its indices there, which takes longer than the product, and no CUDA graph can hold it.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def look_up(tables: Tensor, rows: Tensor) -> Tensor:
    """Rows (R, B, …) of tables (R, T, …), where those of each replica, integers (R, B), are below T.

    Example:
        >>> look_up(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
        [2.0, 3.0]
    """
    flat = tables.flatten(2)
    if tables.is_cuda and tables.requires_grad:
        found = _product(flat, rows.unsqueeze(2))
    else:
        first = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=rows.device)
        found = F.embedding(rows + first.view(-1, 1), flat.flatten(0, 1))
    return found.unflatten(2, tables.shape[2:])


def look_up_sum(tables: Tensor, rows: Tensor) -> Tensor:
    """Sums (R, B, H) over n different rows each of tables (R, T, H), which integers (R, B, n) below T name.

    Example:
        >>> look_up_sum(torch.tensor([[[1.0], [20.0], [300.0]]]), torch.tensor([[[0, 2], [1, 2]]])).flatten().tolist()
        [301.0, 320.0]
    """
    if tables.is_cuda and tables.requires_grad:
        return _product(tables, rows)
    first = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=rows.device)
    places = rows.permute(2, 0, 1) + first.view(-1, 1)
    return reduce(torch.add, F.embedding(places, tables.flatten(0, 1)).unbind())


def _product(tables: Tensor, rows: Tensor) -> Tensor:
    replicas, count, _ = tables.shape
    return torch.bmm(tables.new_zeros(replicas, rows.shape[1], count).scatter_(2, rows, 1.0), tables)
