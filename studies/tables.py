"""Tables of docs/findings.md: what every setting of the first paper's sweeps ends with, median and range over seeds."""

from collections import Counter
from pathlib import Path

import numpy as np
import xarray as xr

from studies.readings import end, grid, learned
from studies.study import RESULTS, read_summary, results_of

#: Of modular addition: the study that has kept it, the sweep, and what it is called.
_ENCODINGS = (
    ("weight_decay", "mod_add", "3e-5, 64, fixed"),
    ("batch_order", "reshuffled", "3e-5, 64, reshuffled"),
    ("batch_size", "batch_200", "3e-5, 200, fixed"),
    ("batch_size", "batch_200_reshuffled", "3e-5, 200, reshuffled"),
    ("weight_decay", "decay", "3e-4, 64, fixed"),
    ("weight_decay", "decay_200", "3e-4, 200, fixed"),
    ("weight_decay", "more_decay", "4e-4, 64, fixed"),
)
_QUANTITIES = {
    "C": "pruning/final_compressibility",
    "mean IPR": "ipr/mean_ipr",
    "train loss": "evaluation/train_loss",
}


def grokking_table(folder: Path = RESULTS) -> str:
    """Status and times of every task and init_scale."""
    rows = []
    for task, tree in results_of(read_summary("grokking", folder)).items():
        status = grid(tree, "status")
        times = [learned(tree, grid(tree, name)) for name in ("t_train", "t_test")]
        quantities = [*times, end(tree, "evaluation/test_accuracy")]
        for scale in status.init_scale.values:
            found = [str(one) for one in status.sel(init_scale=scale).values if isinstance(one, str)]
            counts = ", ".join(f"{name} ×{count}" for name, count in Counter(found).most_common())
            rows.append((task, f"{scale:g}", counts, *(spread(one.sel(init_scale=scale)) for one in quantities)))
    return _table(("task", "init_scale", "status", "t_train", "t_test", "test accuracy at the end"), rows)


def encoding_table(folder: Path = RESULTS) -> str:
    """What the network that adds ends with, for every weight decay, batch size and order, and init_scale."""
    rows = []
    for study, sweep, label in _ENCODINGS:
        results = results_of(read_summary(study, folder))
        if sweep not in results:
            continue
        quantities = [end(results[sweep], path) for path in _QUANTITIES.values()]
        for scale in quantities[0].init_scale.values:
            own = [one.sel(init_scale=scale) for one in quantities]
            count = int(np.isfinite(own[0]).sum())
            rows.append((label, f"{scale:g}", str(count), *map(spread, own)))
    return _table(("weight decay, batch size, batches", "init_scale", "seeds", *_QUANTITIES), rows)


def spread(values: xr.DataArray) -> str:
    """Median and range.

    Example:
        >>> spread(xr.DataArray([1.0, 4.0, 2.0])), spread(xr.DataArray([3.0, 3.0])), spread(xr.DataArray([np.nan]))
        ('2 (1–4)', '3', '–')
    """
    known = values.values[np.isfinite(values.values.astype(float))].astype(float)
    if not known.size:
        return "–"
    low, middle, high = (f"{one:.3g}" if abs(one) < 1000 else f"{one:.0f}" for one in np.quantile(known, [0, 0.5, 1]))
    return middle if low == high else f"{middle} ({low}–{high})"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown; what a row shares with the one above is not repeated in its first column."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    before = ""
    for first, *rest in rows:
        lines.append(f"| {' | '.join(('' if first == before else first, *rest))} |")
        before = first
    return "\n".join(lines)
