"""Arrays of SLURM jobs through submitit: submitting them, and learning what became of each.

Jobs are watched by `squeue` and the files they leave, since `sacct` needs a database that not every cluster has.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_grok.schema import UsageError

POLL_SECONDS = 5
#: A file may take so long to be seen on another machine.
LATE_SECONDS = 20
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD")


def executor(option: str, folder: str | Path, name: str = "slurm", **options: Any) -> Any:
    """What submits jobs that can import this project.

    Args:
        option: What the user has typed to get here, for the message.
        folder: Where scripts, output and results of the jobs go.
        name: submitit's name of the kind of cluster.
        options: For ``submitit.AutoExecutor``.

    Raises:
        UsageError: Where SLURM is not on this machine.
    """
    import submitit

    if not shutil.which("srun"):
        raise UsageError(f"{option}: SLURM's commands (sbatch, srun, squeue) are not on this machine")
    here = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))  # a job starts with the environment of this one
    return submitit.AutoExecutor(cluster=name, folder=folder, **options)


def submit(option: str, executor: Any, function: Callable, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Submit a call as a job each, in as many arrays as SLURM's limit on their size asks for.

    Args:
        option: As for `executor`.
        executor: submitit's.
        function: What is called.
        calls: Its arguments.

    Returns:
        submitit's jobs.

    Raises:
        UsageError: Where SLURM refuses an array; those before it are cancelled.
    """
    import submitit

    size, jobs = _largest_array(), []
    try:
        for first in range(0, len(calls), size):
            jobs += executor.map_array(function, *zip(*calls[first : first + size], strict=True))
    except submitit.core.utils.FailedJobError as error:
        if jobs:
            subprocess.run(["scancel", *arrays(jobs)], check=False)
        raise UsageError(f"{option}: {error}") from None
    return jobs


def arrays(jobs: Sequence[Any]) -> list[str]:
    """The numbers of the arrays that jobs belong to."""
    return sorted({job.job_id.partition("_")[0] for job in jobs}, key=int)


def gather(jobs: Sequence[Any]) -> Iterator[tuple[int, str | None, Any]]:
    """What became of jobs, as they end: the number of each, why it has failed or None, and what it has returned."""
    waiting, gone = dict(enumerate(jobs)), dict[int, float]()
    while waiting:
        states = _states()
        for i, job in list(waiting.items()):
            state = states.get(job.job_id, "") if states is not None else "RUNNING"
            if job.paths.result_pickle.exists():
                error = job.exception()
                yield (i, _raised(error), None) if error else (i, None, job.result())
                del waiting[i]
            elif state in ALIVE:
                gone.pop(i, None)
            elif time.monotonic() - gone.setdefault(i, time.monotonic()) > LATE_SECONDS:
                yield i, _killed(job, state), None
                del waiting[i]
        if waiting:
            time.sleep(POLL_SECONDS)


def _largest_array() -> int:
    """How many jobs an array may have: SLURM's limit is on its indices."""
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    limits = dict(line.split("=", 1) for line in found.replace(" ", "").splitlines() if "=" in line)
    return int(limits.get("MaxArraySize", 1001))


def _killed(job: Any, state: str) -> str:
    """What to say of a job that has left no result, given its last state where SLURM still knows it."""
    said = f" ({state})" if state else ""
    output = f"its output: {job.paths.stderr}" if job.paths.stderr.exists() else "it had not begun"
    return f"SLURM job {job.job_id} was killed{said}, as by scancel or a limit; {output}"


def _states() -> dict[str, str] | None:
    """The state of every job of this user that SLURM knows, or None where it does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if found.returncode else dict(line.split() for line in found.stdout.splitlines())


def _raised(error: Exception) -> str:
    """The last line of what a job has raised."""
    return [line for line in str(error).split("-" * 22)[1].splitlines() if line.strip()][-1]
