"""The sweeper and the SLURM launcher, where Hydra looks for such: every module of ``hydra_plugins``."""

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import DictConfig

from lit_grok import cli, slurm, sweeps
from lit_grok.schema import UsageError

_OPTION = "hydra/launcher=slurm"


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
    """A job of a SLURM array for each job of a sweep."""

    _EXECUTOR = "slurm"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait for all of them."""
        jobs = self._submit(job_overrides, initial_job_idx)
        arrays = " ".join(slurm.arrays(jobs))
        cli.log.info("SLURM has %d to run (%s), output in %s", len(jobs), arrays, self.params["submitit_folder"])
        names = sweeps.distinct([filter_overrides(overrides) for overrides in job_overrides])
        returns: dict[int, JobReturn] = {}
        try:
            for i, failure, returned in slurm.gather(jobs):
                found = sweeps.Outcome("failed", failure) if failure else returned.return_value
                returns[i] = JobReturn(overrides=filter_overrides(job_overrides[i]), status=JobStatus.COMPLETED)
                returns[i].return_value = found
                cli.log.info("%s", sweeps.line(initial_job_idx + i, names[i], found))
        except KeyboardInterrupt:
            cli.log.info("the jobs go on; scancel %s ends them, and the same command gathers what they leave", arrays)
            raise SystemExit(sweeps.INTERRUPTED) from None
        return [returns[i] for i in range(len(jobs))]

    def _submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        params = dict(self.params)
        if 60 * params["timeout_min"] <= params["signal_delay_s"]:
            raise UsageError(
                f"hydra.launcher.timeout_min={params['timeout_min']}: must be longer than "
                f"hydra.launcher.signal_delay_s={params['signal_delay_s']} seconds"
            )
        folder, requeued = params.pop("submitit_folder"), params.pop("max_num_timeout")
        executor = slurm.executor(_OPTION, folder, self._EXECUTOR, slurm_max_num_timeout=requeued)
        common = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(**{k if k in common else f"slurm_{k}": v for k, v in params.items()})
        calls = [
            (list(overrides), "hydra.sweep.dir", initial_job_idx + i, "", Singleton.get_state())
            for i, overrides in enumerate(job_overrides)
        ]
        return slurm.submit(_OPTION, executor, self, calls)
