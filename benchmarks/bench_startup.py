"""How long from typing to help, to a refusal and to the first step? Run as `python -m benchmarks.bench_startup`."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning as L

ROUNDS = 3
TRAIN = Path(__file__).parents[1] / "train.py"
#: What is typed, and at which of the project's callbacks the clock stops; without one, where the process ends.
COMMANDS = {
    "--help": (),
    "init_scal=3": (),
    "epochs=many": (),
    "datamodule.shuffle=maybe": (),
    "task=mod_add": ("+callbacks.last._target_=benchmarks.bench_startup.FirstStep",),
    "task=mod_add logger=none callbacks=base": ("+callbacks.last._target_=benchmarks.bench_startup.FirstStep",),
}


class FirstStep(L.Callback):
    """Ends the process when the first training step has been made."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Leave, without waiting for anything."""
        os._exit(0)


def seconds(*arguments: str) -> tuple[float, float]:
    """Wall and processor time of one command, in a folder of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(TRAIN), *arguments], cwd=folder, capture_output=True, check=False)
        wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    """Print the fastest of several, in alternation."""
    times = {command: [] for command in COMMANDS}
    for _ in range(ROUNDS):
        for command, more in COMMANDS.items():
            times[command].append(seconds(*command.split(), *more))
    for command, each in times.items():
        wall, processor = map(min, zip(*each, strict=True))
        print(f"{command:<40} {wall:5.2f} s, {processor:5.2f} of the processor")


if __name__ == "__main__":
    main()
