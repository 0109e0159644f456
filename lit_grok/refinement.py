"""A phase diagram that is looked at closely where it changes.

``python -m lit_grok.refinement 'runs/phases/*' task=mod_add P=59`` draws the diagram of all these runs and prints the
commands that train what lies between neighbouring cells of different status, one for each weight decay. Piped into
``sh`` they run; the same command then goes one level deeper: a boundary is located twice as well every time at the cost
of the cells along it, where a finer grid would pay for all.
"""

import argparse
import math
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from omegaconf import OmegaConf

from lit_grok.choices import composed
from lit_grok.cli import usage_errors
from lit_grok.figures.common import save
from lit_grok.figures.phases import phase_diagram
from lit_grok.files import ReadError, WriteError
from lit_grok.measures.grokking import most_frequent
from lit_grok.report import differences
from lit_grok.results import essence, open_runs, read_config
from lit_grok.schema import spelled

Cell = tuple[float, float]

_KEYS = ("init_scale", "weight_decay", "seed", "run_dir")  # what the printed commands say themselves
_NAME = "refined"
_ZERO = 10  # 0 is taken to lie so many times below its neighbour


def between(statuses: Mapping[Cell, str], resolution: float = 1.1) -> list[Cell]:
    """The cells to train next: midway between neighbours of a row or a column whose statuses differ.

    Midway is the geometric mean; 0 counts as a tenth of its neighbour.

    Args:
        statuses: By (init_scale, weight_decay); the cells need not be a whole grid.
        resolution: Neighbours closer than this ratio are left alone.

    Returns:
        Cells that are not there yet, in order.

    Example:
        >>> grid = {(0.1, 1e-4): "steady", (10.0, 1e-4): "grokked", (0.1, 1e-2): "steady", (10.0, 1e-2): "collapsed"}
        >>> between(grid)
        [(1.0, 0.0001), (1.0, 0.01), (10.0, 0.001)]
    """
    found: set[Cell] = set()
    for along in (0, 1):
        lines: dict[float, list[float]] = defaultdict(list)
        for cell in statuses:
            lines[cell[1 - along]].append(cell[along])
        for line, places in lines.items():
            for low, high in pairwise(sorted(places)):
                ends = [(place, line) if along == 0 else (line, place) for place in (low, high)]
                low = low or high / _ZERO
                middle = float(f"{math.sqrt(low * high):.3g}")
                if statuses[ends[0]] != statuses[ends[1]] and high > resolution * low and low < middle < high:
                    found.add((middle, line) if along == 0 else (line, middle))
    return sorted(found - set(statuses))


def majority(run: xr.DataTree) -> dict[Cell, str]:
    """The status of most replicas of each cell, of several the first in the alphabet.

    Args:
        run: What ``open_runs`` gives.
    """
    keys = [np.atleast_1d(run.coords[name].values) for name in ("init_scale", "weight_decay")]
    found: dict[Cell, list[str]] = defaultdict(list)
    for scale, decay, status in zip(*keys, np.atleast_1d(run.to_dataset().status.values), strict=True):
        found[float(scale), float(decay)].append(str(status))
    return {cell: most_frequent(statuses)[0] for cell, statuses in found.items()}


def commands(run: xr.DataTree, overrides: Sequence[str], folder: Path, resolution: float = 1.1) -> Iterator[str]:
    """The command lines that train the cells between those of a phase diagram, one for each weight decay.

    Args:
        run: What ``open_runs`` gives of the diagram so far.
        overrides: What its runs have in common.
        folder: Where the new runs go, ``refined_LEVEL_DECAY`` each.
        resolution: As in `between`.
    """
    rows: dict[float, list[float]] = defaultdict(list)
    for scale, decay in between(majority(run), resolution):
        rows[decay].append(scale)
    levels = [int(found[1]) for path in folder.glob(f"{_NAME}_*") if (found := re.match(rf"{_NAME}_(\d+)_", path.name))]
    seeds = ",".join(map(str, sorted({int(seed) for seed in np.atleast_1d(run.coords["seed"].values)})))
    for decay, scales in rows.items():
        run_dir = folder / f"{_NAME}_{max(levels, default=0) + 1}_{decay:g}"
        cells = f"init_scale=[{','.join(f'{scale:g}' for scale in scales)}]", f"weight_decay={decay:g}"
        yield shlex.join(["python", "train.py", *overrides, *cells, f"seed=[{seeds}]", f"run_dir={run_dir}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the diagram, print the commands of the next level; returns the exit code.

    Args:
        argv: Runs and overrides; those of the command line where it is None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lit_grok.refinement", description="Locate the boundaries of a phase diagram."
    )
    parser.add_argument("runs", help="the runs so far: a pattern such as 'runs/phases/*'")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="what they have in common, as typed for train.py"
    )
    parser.add_argument("--resolution", type=float, default=1.1, help="leave closer neighbours alone (default: 1.1)")
    given = parser.parse_args(argv)
    try:
        run = open_runs(given.runs)
        folder = Path(os.path.commonpath([Path(path).absolute().parent for path in run.run_dir.values.tolist()]))
        _refuse_strangers(run, given.overrides)
        _refuse_another_setting(read_config(run.run_dir.values[0]), given.overrides)
        picture = save(phase_diagram(run), folder, "phases")
        lines = list(commands(run, given.overrides, folder, given.resolution))
    except (FileNotFoundError, ReadError, ValueError, WriteError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    what = f"{len(lines)} commands for those between" if lines else "neighbours are alike, or close: nothing to train"
    sys.stderr.write(f"{picture}: {len(majority(run))} cells, {what}\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _refuse_strangers(run: xr.DataTree, overrides: Sequence[str]) -> None:
    """Refuse runs that differ in something else, and overrides that the commands say themselves."""
    if own := [word for word in overrides if word.partition("=")[0] in _KEYS]:
        where = "the commands say themselves which cells they train, with which seeds, and where"
        raise ValueError(f"{own[0]}: {where}; leave it out")
    known = {"replica", *_KEYS, *(f"seed_{name}" for name in ("init", "data", "order"))}
    if others := sorted(str(name) for name in set(run.to_dataset().coords) - known):
        raise ValueError(f"these runs differ in {', '.join(others)} as well: a diagram is of one setting")


def _refuse_another_setting(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse overrides that make another configuration than that of the runs, and such that make none."""
    with usage_errors():
        asked = OmegaConf.to_container(composed([*overrides, "run_dir=runs"]), resolve=True)
    differ = {
        key: pair
        for key, pair in differences(essence(config), essence(dict(asked))).items()  # type: ignore[arg-type]
        if key.partition(".")[0] not in (*_KEYS, "seeds") and ... not in pair  # a key that came later, or went
    }
    if differ:
        have = ", ".join(f"{key}={spelled(there)} (not {spelled(here)})" for key, (there, here) in differ.items())
        say = " ".join(f"{key}={spelled(there)}" for key, (there, _) in differ.items())
        raise ValueError(f"these runs have {have}: say {say}")


if __name__ == "__main__":
    sys.exit(main())
