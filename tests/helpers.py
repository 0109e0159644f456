"""Callbacks that the tests name on the command line."""

import base64
import os
import resource
import shutil
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import torch

from callbacks import AnalysisCallback
from lit_grok.modules import LitModularArithmetic
from lit_grok.networks import ModularMLP
from lit_grok.trainer import watched


class Vandal(AnalysisCallback):
    """Ruins the network and the data that it was given, and uses up random numbers."""

    def measure(self, network, batch):
        noise = torch.rand(()).item() + np.random.rand()  # noqa: NPY002
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0).add_(noise)
        network.train().to(torch.float64)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for tensor in batch:
            tensor.zero_()
        return {"noise": noise}


class Constant(AnalysisCallback):
    """Measures a number, and notes when."""

    def measure(self, network, batch):
        return {"number": 1.5}


class FailsWhile(AnalysisCallback):
    """Fails at an epoch as long as a file is there."""

    def __init__(self, epoch, file="failing", **options):
        super().__init__(**options)
        self.epoch, self.file = epoch, Path(file)

    def measure_replicas(self, module, batch):
        if self.file.exists() and module.trainer.current_epoch + 1 >= self.epoch:
            raise RuntimeError("no such luck")
        return super().measure_replicas(module, batch)

    def measure(self, network, batch):
        return {"first": float(next(network.parameters()).flatten()[0])}


class WarmsUp(AnalysisCallback):
    """Takes twenty readings of a clock more to measure for the first time."""

    cold = True

    def measure(self, network, batch):
        if self.cold:
            _ = [time.process_time() for _ in range(20)]
        self.cold = False
        return {"number": 1.5}


class SignalWhile(L.Callback):
    """Sends a signal to this process in the middle of an epoch, as long as a file is there."""

    def __init__(self, epoch, number, file="signalling", batch=1):
        self.epoch, self.number, self.file, self.batch = epoch, signal.Signals[number], Path(file), batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.file.exists() and trainer.current_epoch + 1 == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


class CopiesRun(L.Callback):
    """Copies the run in the middle of an epoch, once: what is there is what a kill would leave."""

    def __init__(self, epoch, to):
        self.epoch, self.to = epoch, Path(to)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch + 1 == self.epoch and batch_idx == 1 and not self.to.exists():
            shutil.copytree(trainer.default_root_dir, self.to)


class FillsDisk(L.Callback):
    """Leaves no room for another file, from an epoch on, as long as a file is there."""

    def __init__(self, epoch, disk, file="filling"):
        self.epoch, self.disk, self.file = epoch, Path(disk), Path(file)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.file.exists() and trainer.current_epoch + 1 == self.epoch:
            fill_disk(self.disk)


def fill_disk(folder):
    """Up to the last byte, or with a limit for what else is written, where that stands for the end of the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        return
    for size in (1 << 12, 1):
        with suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
            while True:
                file.write(b"x" * size)


class Poison(L.Callback):
    """Puts NaN into the weights of one replica after an epoch."""

    def __init__(self, epoch, replica):
        self.epoch, self.replica = epoch, replica

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            for values in pl_module.stack.stacked().values():
                values[self.replica] = torch.nan


class Unstacked(ModularMLP):
    """A network that runs under vmap."""

    forward_stack = None


def files_with(folder, secret):
    """The files below a folder, and their names, in which a secret stands, plainly or in base64."""
    secret = secret.encode()
    spellings = [secret, secret.hex().encode()]
    spellings += [base64.b64encode(b"x" * shift + secret)[4:-4] for shift in range(3)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [p for p in files if any(s in str(p).encode() + p.read_bytes() for s in spellings)]


#: What every record of a summary.json has, at least.
SUMMARY_FIELDS = [
    "task",
    "init_scale",
    "seed",
    "weight_decay",
    "status",
    "grokked",
    "t_train",
    "t_test",
    "t_grok",
    "epochs",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "max_train_accuracy",
    "max_test_accuracy",
    "weight_norm",
    "seconds",
]


class Undrawable(Constant):
    """Measures a number and cannot draw it."""

    def draw(self, run):
        raise KeyError("no such curve")


class Logs(L.Callback):
    """Logs a value in a hook: the epochs completed at its end, in a step a number of its own."""

    def __init__(self, hook="on_train_epoch_end", every=1, values=1, name="mine", **options):
        def log(trainer, pl_module, *args):
            epoch = trainer.current_epoch + 1
            if epoch % every == 0:
                value = float(epoch * (1 + args[-1]) if args else epoch)
                self.log(name, torch.full((values,), value) if values > 1 else value, **options)

        setattr(self, hook, log)


class LogsInModule(LitModularArithmetic):
    """Logs from the LightningModule."""

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("twice", 2.0 * (self.trainer.current_epoch + 1))


class NotesEvaluation(L.Callback):
    """Keeps what Lightning's callbacks find, and on which way the steps go."""

    seen: ClassVar[list] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append((watched(trainer), {k: v.item() for k, v in trainer.callback_metrics.items()}))


def wandb_ids(run_dir):
    """The identifiers of the W&B runs below a directory; one that was resumed within a second has two folders."""
    folders = Path(run_dir).glob("wandb/offline-run-*")
    return sorted({folder.name.split("-")[3] for folder in folders})  # offline-run-DATE-ID, then perhaps a number


def wandb_records(run_dir):
    """What each W&B run below a directory has written, in its own format: https://github.com/google/leveldb's log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process may still be writing when a run has finished
    for path in sorted(Path(run_dir).glob("wandb/offline-run-*/*.wandb")):
        content, position, whole, records = path.read_bytes(), 7, b"", []
        while position + 7 <= len(content):
            if (left := 2**15 - position % 2**15) < 7:  # a block ends with what no header fits into
                position += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, position)
            whole += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or the last part
                records.append(Record.FromString(whole))
                whole = b""
        yield records


def wandb_names(run_dir):
    """The names under which W&B runs have curves, end values and configuration."""
    names = {"history": set(), "summary": set(), "config": set()}
    for records in wandb_records(run_dir):
        for record in records:
            parts = {"history": record.history.item, "summary": record.summary.update}
            parts["config"] = [*record.run.config.update, *record.config.update]
            for kind, items in parts.items():
                names[kind] |= {item.key or item.nested_key[0] for item in items}
    return names
