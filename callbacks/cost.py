"""What a run takes: refused at once where there is not so much, and told by a dry run."""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import psutil
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from callbacks.base import AnalysisCallback, clock
from datamodules.base import ReplicaDataModule
from lit_grok.cli import UsageError
from lit_grok.results import CHECKPOINT, build_network

log = logging.getLogger("lit_grok")

#: Float32 copies of the parameters that a run holds at its peak: weights, gradients, two moments, the last finite
#: weights, and what building and saving copy (10.0 measured: modular addition with Adam, 20 and 80 replicas).
COPIES = 10
#: The same on disk: a checkpoint has weights, moments and last finite weights, and stands beside the one before.
COPIES_ON_DISK = 10
#: Seconds that a first measurement may spend on compiling and filling caches: it is worth another one.
WARM_UP = 30.0
#: A curve is held in an array that grows by doubling, and copied when it is saved.
COPIES_OF_RESULTS = 4


def refuse_too_many(
    replicas: int,
    network: nn.Module,
    analyses: Mapping[str, AnalysisCallback],
    trainer: L.Trainer,
    data: ReplicaDataModule | None = None,
) -> None:
    """Compare what replicas need at least with what there is, before they are made.

    Args:
        replicas: R.
        network: One of them.
        analyses: The analyses by their names in the configuration.
        trainer: Where it trains, for how long, and into which directory.
        data: The data of one of them, where each has a split of its own.

    Raises:
        UsageError: Where memory or disk do not suffice; the message has the estimate.
    """
    parameters = sum(p.numel() for p in network.parameters())
    each_takes, free = _memory(network, data), _free_memory(trainer)
    if replicas * each_takes > free:
        raise UsageError(
            f"{replicas} replicas of {parameters} parameters take about {_size(replicas * each_takes)} of memory, and "
            f"{_size(free)} are free: at most {free // each_takes} fit at once "
            "(replicas_at_once=auto trains stacks of so many, one after the other)"
        )
    epochs, directory = trainer.max_epochs or 0, Path(trainer.default_root_dir)
    needs = {f"callbacks.{name}": replicas * each.disk(parameters, epochs) for name, each in analyses.items()}
    needs["checkpoints"] = replicas * 4 * COPIES_ON_DISK * parameters
    there = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())  # of a run that is resumed
    total, largest, free = sum(needs.values()), max(needs, key=needs.__getitem__), shutil.disk_usage(directory).free
    if total - there > free:
        raise UsageError(
            f"{replicas} replica(s) of {parameters} parameters take about {_size(total)} of disk, "
            f"{_size(needs[largest])} of it for {largest}, and the disk has {_size(free)} left: "
            "train fewer at once, or measure less often"
        )


def at_once(config: Mapping[str, Any], replicas: Sequence[Mapping[str, Any]]) -> int:
    """How many replicas a stack may have: ``auto`` is as many as fit into memory, with a fifth of it to spare.

    Args:
        config: The resolved configuration.
        replicas: All of them.
    """
    asked = config["replicas_at_once"]
    if asked != "auto":
        return asked or len(replicas)
    trainer, data = instantiate(config["trainer"], callbacks=[], logger=False), None
    if len({replica["seed_data"] for replica in replicas}) > 1:  # then each has a copy of its own
        data = instantiate(config["datamodule"])
        data.prepare_data()
    return max(1, int(0.8 * _free_memory(trainer)) // _memory(build_network(config["network"]), data))


def _memory(network: nn.Module, data: ReplicaDataModule | None) -> int:
    """Bytes that one replica takes while it trains."""
    return 4 * COPIES * sum(p.numel() for p in network.parameters()) + _bytes(data)


class CostCallback(L.Callback):
    """Refuse results that would not fit, once their size is known; in a dry run, say what everything takes, and stop.

    Args:
        analyses: The analyses by their names in the configuration.
        dry_run: Train a few epochs alone and say what all of them would take.
        seconds: How long those few are to last; there are three at least.
    """

    def __init__(self, analyses: Mapping[str, AnalysisCallback], dry_run: bool, seconds: float = 5.0):
        self.analyses, self.dry_run, self.seconds = analyses, dry_run, seconds
        self._epochs: list[float] = []
        self._start = 0.0  # on the wall's clock
        self._epoch_start = 0.0  # on one that stands still while something is measured
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where and when the training starts."""
        self._first, self._start = trainer.current_epoch, time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Once everything has been measured for the first time, refuse what would become too much."""
        if trainer.current_epoch == self._first:
            self._refuse_too_long(trainer)
        self._epoch_start = clock(pl_module) - self._measuring()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Note how long the epoch took, and stop the training when that is known well enough."""
        if not self.dry_run:
            return
        self._epochs.append(clock(pl_module) - self._measuring() - self._epoch_start)
        known = len(self._epochs) >= 3 and time.perf_counter() - self._start > self.seconds
        if known or trainer.current_epoch + 1 == trainer.max_epochs:
            self._measure_again(trainer, pl_module)
            pl_module.interrupted = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what it would take."""
        if not self.dry_run:
            return
        for line in self._report(trainer, pl_module):
            log.info(line)

    def _measure_again(self, trainer: L.Trainer, module: Any) -> None:
        """Measure what has not been measured twice, at the next epoch of its cadence: a first one compiles."""
        coming = range(trainer.current_epoch + 1, (trainer.max_epochs or 0) + 1)
        for analysis in self.analyses.values():
            epoch = next(filter(analysis.is_due, coming), None)
            if epoch is not None and analysis.measured < 2 and analysis.total <= WARM_UP:
                analysis.measure_at(trainer, module, epoch)

    def _measuring(self) -> float:
        """Seconds that the analyses have taken so far."""
        return sum(analysis.total for analysis in self.analyses.values())

    def _refuse_too_long(self, trainer: L.Trainer) -> None:
        results = {
            name: each.bytes * each.measurements(trainer.max_epochs or 0) for name, each in self.analyses.items()
        }
        total, largest = sum(results.values()), max(results, key=results.__getitem__)
        free = min(_free_memory(trainer) / COPIES_OF_RESULTS, shutil.disk_usage(trainer.default_root_dir).free)
        if total > free:
            raise UsageError(
                f"the results of {trainer.max_epochs} epochs take about {_size(total)}, {_size(results[largest])} "
                f"of it for callbacks.{largest}, and memory and disk have room for {_size(free)}: measure less often"
            )

    def _report(self, trainer: L.Trainer, module: Any) -> Iterator[str]:
        last, replicas, directory = trainer.max_epochs or 0, len(module.replicas), Path(trainer.default_root_dir)
        parameters = sum(p.numel() for p in module.stack.networks[0].parameters())
        yield f"replicas    {replicas}"
        yield f"parameters  {parameters} per replica"
        yield f"epochs      {last - self._first} of {trainer.num_training_batches} step(s)"

        times = {name: each.measurements(last) - each.measurements(self._first) for name, each in self.analyses.items()}
        # The fastest epoch, as of an analysis the fastest measurement: whatever disturbs one makes it longer. But a GPU
        # is handed its first ones faster than it computes them.
        epoch = min(self._epochs) if module.stack.flat.is_cpu else median(self._epochs)
        seconds = {"training": epoch * (last - self._first)}
        for name, each in self.analyses.items():
            during = each.seconds * times[name] if times[name] else 0.0
            seconds[name] = during + self._seconds_at_the_end(each, trainer, module)
        yield f"{_listed('time', 'about', seconds, _duration)}; without drawing"

        results = sum(each.bytes * times[name] for name, each in self.analyses.items())
        memory = {"training": _peak_memory(trainer), "results": COPIES_OF_RESULTS * results}
        yield f"{_listed('memory', 'about', memory, _size)}; {_size(_free_memory(trainer))} more are free"

        disk = {name: replicas * each.disk(parameters, last) for name, each in self.analyses.items()}
        disk |= {"results": results, "checkpoints": 2 * (directory / CHECKPOINT).stat().st_size}
        yield f"{_listed('disk', 'at most', disk, _size)}; {_size(shutil.disk_usage(directory).free)} are free"

    def _seconds_at_the_end(self, analysis: AnalysisCallback, trainer: L.Trainer, module: Any) -> float:
        """How long an analysis measures the trained networks, without its drawings."""
        start = clock(module)
        with isolate_rng():
            analysis.measure_final_replicas(module, trainer.datamodule.split(analysis.split))  # type: ignore[attr-defined]
        return clock(module) - start


def _bytes(data: ReplicaDataModule | None) -> int:
    """Size of both splits."""
    if data is None:
        return 0
    data.setup()
    return sum(tensor.nbytes for split in (data.split("train"), data.split("test")) for tensor in split)


def _listed(name: str, about: str, parts: Mapping[str, float], format: Callable[[float], str]) -> str:
    """The sum, and what it is made of: every part that is a hundredth of it or more."""
    total = sum(parts.values())
    shown = sorted((part for part in parts.items() if part[1] > total / 100), key=lambda part: -part[1])
    return f"{name:<12}{about} {format(total)}: {', '.join(f'{part} {format(value)}' for part, value in shown)}"


def _free_memory(trainer: L.Trainer) -> int:
    """Bytes that are free where the training takes place."""
    device = trainer.strategy.root_device
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _peak_memory(trainer: L.Trainer) -> int:
    """The most bytes that this process has held there."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(count: float) -> str:
    """Bytes as one says them.

    Example:
        >>> _size(6_960_000), _size(696_772_000_000)
        ('7.0 MB', '696.8 GB')
    """
    unit = next((unit for unit in ("PB", "TB", "GB", "MB") if count >= _UNITS[unit]), "kB")
    return f"{count / _UNITS[unit]:.1f} {unit}"


_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}


def _duration(seconds: float) -> str:
    """Seconds as one says them.

    Example:
        >>> _duration(0.4), _duration(75), _duration(100_000)
        ('0.4 s', '0:01:15', '1 day, 3:46:40')
    """
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))
