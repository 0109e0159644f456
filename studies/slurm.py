"""Runs of studies on a SLURM cluster: a job of an array for each."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lit_grok.slurm import executor, gather, submit
from studies.runs import Run, train_one

_OPTION = "--launcher slurm"
#: A run that is not done by then fails; the same command goes on from its last checkpoint.
_MINUTES = 24 * 60


def train_on_cluster(runs: Sequence[Run], root: Path, ended: Callable[[Run, str | None], None]) -> None:
    """Train runs as SLURM jobs of one core each, and wait for them.

    Args:
        runs: Those that are missing.
        root: Where runs are, on a disk that all machines see.
        ended: Called with each run when it has ended, and with what `train_one` says of it.

    Raises:
        lit_grok.schema.UsageError: Where SLURM is not to be had, or does not take them.
    """
    if not runs:
        return
    cluster = executor(_OPTION, root.absolute() / ".slurm")
    cluster.update_parameters(name="lit_grok", timeout_min=_MINUTES, cpus_per_task=1)
    jobs = submit(_OPTION, cluster, train_one, [(run, root.absolute()) for run in runs])
    for i, failure, returned in gather(jobs):
        ended(runs[i], failure or returned)
