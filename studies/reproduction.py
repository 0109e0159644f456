"""From a study's name to its figures and verdicts: what is missing is trained, everything else is read."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

import studies
from lit_grok.files import write
from lit_grok.results import SUMMARY
from studies import gallery
from studies.runs import TRAIN, Run, train_here
from studies.study import (
    COSTS,
    RESULTS,
    Study,
    gather,
    known_seconds,
    merge,
    read_summary,
    summarise,
    write_summary,
)

Launcher = Literal["local", "slurm"]


def listing(root: Path, seeds: Sequence[int]) -> str:
    """Every study: its figures, its question, what it costs, and how many of its runs are there."""
    costs, rows = Costs(root, elsewhere=RESULTS), []
    for study in studies.all_studies():
        runs = study.runs(seeds)
        there = [run for run in runs if run.complete(root)]
        left = costs.hours(runs)
        rows.append(
            (
                study.name,
                ", ".join(study.figures) or "–",
                study.title,
                str(len(study.claims)),
                f"{len(there)}/{len(runs)}" if runs else "none needed",
                "–" if not runs else "not timed yet" if left is None else f"{left:.1f} h",
            )
        )
    table = as_table(("study", "figures", "question", "claims", "runs", "one core"), rows)
    return f"{table}\nHours are those of this machine where it has trained or timed a sweep, else another's."


def as_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for the terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, justify="left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(file=(text := StringIO()), width=110).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


class Costs:
    """What runs take on this machine: measured where one of the sweep is complete, else estimated by a dry run.

    Args:
        root: Where runs are, and the estimates.
        elsewhere: Where `keep` has written what they took on another machine, which is better than nothing.
    """

    def __init__(self, root: Path, elsewhere: Path | None = None):
        self._root, self._file = root, root / COSTS
        self._estimates = (known_seconds(elsewhere) if elsewhere else {}) | known_seconds(root)

    def seconds(self, run: Run) -> float | None:
        """Of one run, on one core."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # damaged: it is trained again
            return float(json.loads((self._root / run.name / SUMMARY).read_text())[0]["seconds"])
        return self._estimates.get(run.sweep.name)

    def hours(self, runs: Sequence[Run]) -> float | None:
        """Of many; None where one of them is unknown."""
        known = self._of_sweeps(runs)
        if any(run.sweep.name not in known for run in runs):
            return None
        return sum(known[run.sweep.name] for run in runs) / 3600

    def _of_sweeps(self, runs: Sequence[Run]) -> dict[str, float]:
        """Seconds of a seed of each sweep of which they are known, the median."""
        known: dict[str, list[float]] = {}
        for run in runs:
            found = self.seconds(run)
            if found is not None:
                known.setdefault(run.sweep.name, []).append(found)
        return {name: statistics.median(found) for name, found in known.items()}

    def keep(self, runs: Sequence[Run], folder: Path) -> None:
        """Write what sweeps take beside their summaries, and leave those of others there as they are."""
        known = known_seconds(folder) | {name: round(found) for name, found in self._of_sweeps(runs).items()}
        write(folder / COSTS, json.dumps(known, indent=1, sort_keys=True) + "\n")

    def estimate(self, run: Run) -> None:
        """Time a few epochs of a sweep of which it is not known what it takes."""
        command = [sys.executable, str(TRAIN), *run.overrides, "logger=none", "threads=1", "dry_run=true"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self._estimates[run.sweep.name] = seconds_of(said)
        write(self._file, json.dumps(self._estimates))


def seconds_of(said: str) -> float:
    r"""The time that a dry run has estimated.

    Example:
        >>> seconds_of("epochs 5\ntime        about 0:01:15: training 0:01:00\n"), seconds_of("time  about 0.4 s: x")
        (75.0, 0.4)
    """
    time = re.search(r"^time\s+about (?:(\d+) days?, )?(?:(\d+):(\d+):(\d+)|([\d.]+) s)", said, re.MULTILINE)
    if time is None:
        raise ValueError(f"a dry run that says no time: {said!r:.200}")
    days, hours, minutes, seconds, short = (float(part or 0) for part in time.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds + short


def plan(chosen: Sequence[Study], seeds: Sequence[int]) -> list[Run]:
    """The runs of several studies, each once, one seed of all before the next."""
    found: dict[str, Run] = {}
    for seed in seeds:
        for study in chosen:
            for run in study.runs([seed]):
                found.setdefault(run.name, run)
    return list(found.values())


def describe(runs: Sequence[Run], root: Path) -> str:
    """What would be trained, and how long that takes on one core."""
    costs, rows, total = Costs(root), [], 0.0
    missing = {run.name for run in runs if not run.complete(root)}
    unknown = {run.sweep.name: run for run in runs if run.name in missing and costs.seconds(run) is None}
    for count, run in enumerate(unknown.values(), 1):
        sys.stderr.write(f"timing a few epochs of {run.sweep.name} ({count} of {len(unknown)})\n")
        costs.estimate(run)
    for run in runs:
        done = run.name not in missing
        seconds = costs.seconds(run) or 0.0
        total += 0.0 if done else seconds
        rows.append((run.typed, "complete" if done else f"{seconds / 60:.0f} min"))
    return f"{as_table(('run', 'state'), rows)}\n{total / 3600:.1f} h on one core are missing"


def train(runs: Sequence[Run], root: Path, jobs: int, launcher: Launcher) -> dict[str, str]:
    """Train what is missing, one line for each run that ends; returns why those failed that did."""
    missing = [run for run in runs if not run.complete(root)]
    failures: dict[str, str] = {}

    def ended(run: Run, failure: str | None) -> None:
        if failure:
            failures[run.typed] = failure
        count = len(failures)
        sys.stdout.write(f"{'failed' if failure else 'done'}: {run.typed}{f' ({count} failed)' if count else ''}\n")
        sys.stdout.flush()

    if missing:
        sys.stdout.write(f"{len(missing)} of {len(runs)} runs are missing; training them in {root}\n")
        if launcher == "local":
            sys.stdout.write(f"how far they are: tail -n 1 {root}/.*.log\n")
        sys.stdout.flush()
    if launcher == "slurm":
        from studies.slurm import train_on_cluster

        train_on_cluster(missing, root, ended)
    else:
        train_here(missing, root, jobs, ended)
    return failures


def conclude(study: Study, seeds: Sequence[int], root: Path, results: Path) -> str:
    """Judge a study from the runs there are; returns its table of verdicts. The gallery draws it from its summary.

    Args:
        study: The study.
        seeds: Of which its runs are read.
        root: Where runs are.
        results: Where its summary goes; what that holds of other seeds is kept.
    """
    summary = summarise(study, gather(study, seeds, root))
    with contextlib.suppress(FileNotFoundError):
        summary = merge(study, summary, read_summary(study.name, results))
    write_summary(summary, results)
    Costs(root).keep(study.runs(seeds), results)
    return f"{study.title}\n{verdicts(summary['claims'])}"


def verdicts(claims: Iterable[Mapping[str, Any]]) -> str:
    """Claims with their numbers as a table for the terminal."""
    rows = [
        (
            f"{claim['says']} ({claim['source']})",
            f"{claim['statistic']}: {claim['asks']}",
            str(claim["n"]),
            gallery.found(claim),
            claim["verdict"],
        )
        for claim in claims
    ]
    return as_table(("claim", "statistic, and where it is to lie", "n", "found", "verdict"), rows)
