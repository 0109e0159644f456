"""What does it cost to open the results of a run, and of a thousand? Run as `python -m benchmarks.bench_results`."""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import lit_grok
from lit_grok.networks import ModularMLP
from lit_grok.recorder import Recorder
from lit_grok.replicas import ReplicaStack
from lit_grok.results import write_config, write_results

P, HIDDEN, REPEATS = 113, 512, 10
#: How many copies of one small run are gathered, and what that run is: four replicas with all analyses.
RUNS = (10, 100, 1000)
SMALL = ("task=mod_add", "P=23", "network.hidden=[32]", "init_scale=[1,10]", "seed=0:2", "epochs=200", "logger=none")
#: Milliseconds of the processor.
LIMITS = {"all branches": 100, "evaluation alone": 20, "load_network": 100}
#: Branches with the number of their variables, their epochs and their layers.
BRANCHES = {"evaluation": (5, 400, 0), "weights": (10, 40, 4), "features": (5, 40, 6), "fim_trajectory": (8, 100, 6)}


def write_run(folder):
    """A run of two replicas in the shape that a default training leaves, of noise."""
    streams = ("seed", "seed_init", "seed_data", "seed_order")
    replicas = [{"init_scale": 10.0, "weight_decay": 0.0, **dict.fromkeys(streams, seed)} for seed in (0, 1)]
    recorder, rng = Recorder(replicas), np.random.default_rng(0)
    for branch, (variables, epochs, layers) in BRANCHES.items():
        for variable in range(variables):
            for epoch in range(epochs):
                shape, dims = ((2, layers), ["layer"]) if layers else ((2,), [])
                recorder.add(f"{branch}/x{variable}", rng.random(shape), epoch, dims)
    folder.mkdir(parents=True)
    network = {"_target_": "lit_grok.networks.ModularMLP", "P": P, "hidden": [HIDDEN]}
    write_config(folder, {"task": "mod_add", "network": network})
    stack = ReplicaStack([ModularMLP(P, [HIDDEN]) for _ in replicas])
    write_results(folder, recorder.tree(), stack.stacked())


def milliseconds(function):
    """Time one call: of the processor, since other processes are not to count."""
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def main():
    """Print the times of one run beside their limits, and time and peak memory of opening many."""
    with tempfile.TemporaryDirectory() as name:
        run, small = Path(name) / "run", Path(name) / "runs" / "0000"
        write_run(run)
        calls = {
            "all branches": lambda: lit_grok.open_run(run),
            "evaluation alone": lambda: lit_grok.open_run(run, "evaluation"),
            "load_network": lambda: lit_grok.load_network(run, init_scale=10, seed=0),
        }
        for what, call in calls.items():
            call()
            print(f"{what}: {min(milliseconds(call) for _ in range(REPEATS)):.1f} ms (limit {LIMITS[what]} ms)")
        command = [sys.executable, "train.py", *SMALL, f"run_dir={small}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (small / "weights.safetensors").unlink()  # not read
        copies = 1
        for runs in RUNS:
            for i in range(copies, runs):
                shutil.copytree(small, small.with_name(f"{i:04}"))
            copies = runs
            for what, branches in (("one branch", ("evaluation",)), ("all branches", ())):
                gather(runs, what, small.parent / "*", branches)


def gather(runs, what, pattern, branches):
    """Print what opening so many runs takes."""
    spent = milliseconds(lambda: lit_grok.open_runs(pattern, *branches))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the process, so far
    print(f"{runs} runs, {what}: {spent / 1e3:.2f} s, {spent / runs:.1f} ms a run, {peak / 1e3:.0f} MB so far")


if __name__ == "__main__":
    main()
