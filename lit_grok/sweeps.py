"""The jobs of a sweep (``-m``): each ends for itself and says how, and the same command goes on where it has ended.

Whatever runs them, one after the other, side by side (``hydra/launcher=joblib``) or on a cluster
(``hydra/launcher=slurm``), a job returns an `Outcome` and raises nothing, so that it leaves the others alone.

Where the command says ``run_dir``, a job knows its directory again by the configuration in it: what is complete is
skipped, and what was stopped or killed goes on from its last checkpoint.
"""

import json
import logging
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lit_grok import cli
from lit_grok.schema import UsageError

log = logging.getLogger("lit_grok")

INTERRUPTED = 130

#: What to do where some jobs are not done, and the command has said run_dir.
AGAIN = "the same command skips what is complete and goes on with what was stopped"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        status: ``skipped`` was complete before; ``stopped`` was told to save and stop.
        reason: Why it has failed, in one line.
        run_dir: Where its results are.
    """

    status: Literal["done", "skipped", "stopped", "failed"]
    reason: str = ""
    run_dir: str = ""


def job(config: DictConfig, train: Callable[[dict[str, Any]], int]) -> Outcome | None:
    """Run what one configuration asks for; outside of a sweep the process ends where that fails.

    Args:
        config: As Hydra has composed it.
        train: Trains what a resolved configuration names and returns the exit code.
    """
    if HydraConfig.get().mode is RunMode.RUN:
        with cli.usage_errors(), cli.resolved(config, cli.claim_fresh) as plain, cli.writing(plain["run_dir"]):
            code = train(plain)
        if code:
            sys.exit(code)
        return None
    alone = not HydraConfig.get().launcher["_target_"].endswith("BasicLauncher")
    if alone:
        _settle()
    cli.log_to_console(f"#{HydraConfig.get().job.num} " if alone else "")
    try:
        outcome = _job(config, train)
    except cli.Refused as stop:
        return Outcome("failed", stop.reason)
    except Exception as error:
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    if outcome.status == "stopped" and not alone:
        sys.exit(INTERRUPTED)  # whoever has stopped this process means all of it
    return outcome


def _settle() -> None:
    """Prepare a process that somebody else has started for what `train.py` does in its own."""
    warnings.filterwarnings("ignore", module="lightning")
    sys.argv = ["train.py", *HydraConfig.get().overrides.task]
    if "slurm" in HydraConfig.get().launcher["_target_"].lower():
        # The time is almost over: a training saves and stops on SIGTERM, which submitit ignores before and after it.
        signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))


def _job(config: DictConfig, train: Callable[[dict[str, Any]], int]) -> Outcome:
    from lit_grok.results import finished, has_checkpoint
    from lit_grok.resume import last_checkpoint

    with ExitStack() as locks, cli.usage_errors(), cli.resolved(config, lambda plain: _claim(plain, locks)) as plain:
        run_dir = plain["run_dir"]
        if finished(run_dir, plain["epochs"]):
            log.info("%s is complete: skipped", run_dir)
            return Outcome("skipped", run_dir=run_dir)
        if has_checkpoint(run_dir):
            plain["resume"] = str(last_checkpoint(Path(run_dir))[0])
        with cli.writing(run_dir):
            code = train(plain)
    status: dict[int, Literal["done", "stopped"]] = {0: "done", INTERRUPTED: "stopped"}
    return Outcome(status[code], run_dir=run_dir)


def _claim(config: Mapping[str, Any], locks: ExitStack) -> Path:
    """The directory that a job has had before, or a fresh one; with its number where another job has the name.

    Args:
        config: The resolved configuration.
        locks: Holds the directory as long as the job runs, so that no other process trains into it: the jobs of a
            cluster go on where the command that has started them is killed, and it may be given again meanwhile.
    """
    from filelock import FileLock, Timeout

    if not cli.names_its_directory():
        return cli.claim_fresh(config)
    asked = Path(config["run_dir"])
    for path in (asked, Path(f"{asked}-{HydraConfig.get().job.num}")):
        if _holds(path, config) is False:
            continue
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            if _holds(path, config):
                raise UsageError(f"run_dir={path}: another process trains it") from None
            continue
        except OSError as error:
            raise UsageError(f"run_dir={path}: cannot be written ({error.strerror})") from None
        locks.callback(lock.release)
        if (held := _holds(path, config)) is None:
            return cli.claim_fresh({**config, "run_dir": str(path)})
        if held:
            return path
    raise UsageError(f"run_dir={asked}: it and {path} hold something else; choose another")


def _holds(path: Path, config: Mapping[str, Any]) -> bool | None:
    """Whether a directory is that of a run with this configuration; None where it is empty or not there."""
    from lit_grok.results import essence, read_config

    try:
        found, asked = (json.dumps(essence(each), sort_keys=True) for each in (read_config(path), config))
    except FileNotFoundError:
        return False if path.exists() and (not path.is_dir() or any(path.iterdir())) else None
    return found == asked


def report(jobs: Sequence[tuple[Sequence[str], Outcome]]) -> None:
    """Say what became of the jobs, and why where one is not done; if so, end with an exit code that is not zero.

    Args:
        jobs: Arguments and outcome of each.
    """
    counts = {status: [o.status for _, o in jobs].count(status) for status in ("done", "skipped", "stopped", "failed")}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    log.info("%d job%s: %s", len(jobs), "s"[: len(jobs) - 1], summary)
    names = distinct([arguments for arguments, _ in jobs])
    for number, (_, outcome) in enumerate(jobs):
        if outcome.status in ("stopped", "failed"):
            log.info("%s", line(number, names[number], outcome))
    if counts["stopped"] or counts["failed"]:
        if any(argument.startswith("run_dir=") for argument in jobs[0][0]):
            log.info("%s", AGAIN)
        sys.exit(cli.EXIT_FAILED)


def distinct(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells each job from the others, of its arguments.

    Example:
        >>> distinct([["task=ising", "init_scale=1"], ["task=ising", "init_scale=10"]])
        ['init_scale=1', 'init_scale=10']
    """
    common = set.intersection(*map(set, jobs))
    return [shlex.join(argument for argument in arguments if argument not in common) for arguments in jobs]


def line(number: int, name: str, outcome: Outcome) -> str:
    """What became of one job.

    Example:
        >>> line(3, "init_scale=10", Outcome("failed", "epochs=0: must be at least 1"))
        '#3 init_scale=10: failed: epochs=0: must be at least 1'
    """
    more = outcome.reason or outcome.run_dir
    return f"{f'#{number} {name}'.strip()}: {outcome.status}{': ' if more else ''}{more}"
