"""The sweeper and the SLURM launcher, where Hydra looks for such: every module of ``hydra_plugins``."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import DictConfig

from lit_grok import cli, sweeps
from lit_grok.schema import UsageError

POLL_SECONDS = 5
#: A file may take so long to be seen on another machine.
LATE_SECONDS = 20
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD")


class Sweeper(BasicSweeper):
    """Hydra's own, which says in the end what became of every job."""

    def setup(self, *, config: DictConfig, **context: Any) -> None:
        """Have joblib's launcher run a job on each physical core, of which it would count twice as many."""
        if "joblib" in config.hydra.launcher["_target_"]:
            import joblib

            os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(joblib.cpu_count(only_physical_cores=True)))
        super().setup(config=config, **context)

    def sweep(self, arguments: list[str]) -> None:
        """Run every job.

        Raises:
            SystemExit: Where one has failed.
        """
        try:
            returns = [each for batch in super().sweep(arguments) for each in batch]
        except BrokenProcessPool:
            why = "a process of joblib was killed, as where the memory is full, and the others with it"
            cli.exit_with(f"{why}; where run_dir is given, {sweeps.AGAIN}", cli.EXIT_FAILED)
        except KeyboardInterrupt:
            cli.exit_with(f"stopped; where run_dir is given, {sweeps.AGAIN}", sweeps.INTERRUPTED)
        sweeps.report([(each.overrides, each.return_value) for each in returns])


class SlurmLauncher(BaseSubmititLauncher):
    """Arrays of SLURM jobs, as many as its limit on their size asks for.

    Jobs are watched by `squeue` and the files they leave, since `sacct` needs a database that not every cluster has.
    """

    _EXECUTOR = "slurm"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait for all of them."""
        jobs = self._submit(job_overrides, initial_job_idx)
        arrays = " ".join(_arrays(jobs))
        cli.log.info("SLURM has %d to run (%s), output in %s", len(jobs), arrays, self.params["submitit_folder"])
        names = sweeps.distinct([filter_overrides(overrides) for overrides in job_overrides])
        returns: dict[int, JobReturn] = {}
        try:
            for i, found in _gather(jobs):
                returns[i] = JobReturn(overrides=filter_overrides(job_overrides[i]), status=JobStatus.COMPLETED)
                returns[i].return_value = found
                cli.log.info("%s", sweeps.line(initial_job_idx + i, names[i], found))
        except KeyboardInterrupt:
            cli.log.info("the jobs go on; scancel %s ends them, and the same command gathers what they leave", arrays)
            raise SystemExit(sweeps.INTERRUPTED) from None
        return [returns[i] for i in range(len(jobs))]

    def _submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        import submitit

        params = dict(self.params)
        if 60 * params["timeout_min"] <= params["signal_delay_s"]:
            raise UsageError(
                f"hydra.launcher.timeout_min={params['timeout_min']}: must be longer than "
                f"hydra.launcher.signal_delay_s={params['signal_delay_s']} seconds"
            )
        if not shutil.which("srun"):
            raise UsageError("hydra/launcher=slurm: SLURM's commands (sbatch, srun, squeue) are not on this machine")
        here = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))  # a job starts with the environment of this one
        executor = submitit.AutoExecutor(
            cluster=self._EXECUTOR,
            folder=params.pop("submitit_folder"),
            slurm_max_num_timeout=params.pop("max_num_timeout"),
        )
        common = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(**{k if k in common else f"slurm_{k}": v for k, v in params.items()})
        calls = [
            (list(overrides), "hydra.sweep.dir", initial_job_idx + i, "", Singleton.get_state())
            for i, overrides in enumerate(job_overrides)
        ]
        size, jobs = _largest_array(), []
        try:
            for first in range(0, len(calls), size):
                jobs += executor.map_array(self, *zip(*calls[first : first + size], strict=True))
        except submitit.core.utils.FailedJobError as error:
            if jobs:
                subprocess.run(["scancel", *_arrays(jobs)], check=False)
            raise UsageError(f"hydra/launcher=slurm: {error}") from None
        return jobs


def _arrays(jobs: Sequence[Any]) -> list[str]:
    return sorted({job.job_id.partition("_")[0] for job in jobs}, key=int)


def _largest_array() -> int:
    """How many jobs an array may have: SLURM's limit is on its indices."""
    found = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    limits = dict(line.split("=", 1) for line in found.replace(" ", "").splitlines() if "=" in line)
    return int(limits.get("MaxArraySize", 1001))


def _gather(jobs: Sequence[Any]) -> Iterator[tuple[int, sweeps.Outcome]]:
    """What became of the jobs, with their numbers, as they end."""
    waiting, gone = dict(enumerate(jobs)), dict[int, float]()
    while waiting:
        states = _states()
        for i, job in list(waiting.items()):
            state = states.get(job.job_id, "") if states is not None else "RUNNING"
            if job.paths.result_pickle.exists():
                yield i, _result(job)
                del waiting[i]
            elif state in ALIVE:
                gone.pop(i, None)
            elif time.monotonic() - gone.setdefault(i, time.monotonic()) > LATE_SECONDS:
                yield i, _killed(job, state)
                del waiting[i]
        if waiting:
            time.sleep(POLL_SECONDS)


def _killed(job: Any, state: str) -> sweeps.Outcome:
    """What to say of a job that has left no result, given its last state where SLURM still knows it."""
    said = f" ({state})" if state else ""
    output = f"its output: {job.paths.stderr}" if job.paths.stderr.exists() else "it had not begun"
    return sweeps.Outcome("failed", f"SLURM job {job.job_id} was killed{said}, as by scancel or a limit; {output}")


def _states() -> dict[str, str] | None:
    """The state of every job of this user that SLURM knows, or None where it does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if found.returncode else dict(line.split() for line in found.stdout.splitlines())


def _result(job: Any) -> sweeps.Outcome:
    """What a job has returned, or the last line of what it has raised."""
    if error := job.exception():
        raised = [line for line in str(error).split("-" * 22)[1].splitlines() if line.strip()]
        return sweeps.Outcome("failed", raised[-1])
    return job.result().return_value
