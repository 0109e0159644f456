"""What does it cost to open the results of a run, and of a thousand? Run as `python -m benchmarks.bench_results`."""

import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

import lit_grok
from lit_grok.networks import ModularMLP
from lit_grok.recorder import Recorder
from lit_grok.replicas import ReplicaStack
from lit_grok.results import write_config, write_results

P, HIDDEN, RUNS, REPEATS = 113, 512, 1000, 10
#: Milliseconds of the processor.
LIMITS = {"all branches": 100, "evaluation alone": 20, "load_network": 100}
#: Branches with the number of their variables, their epochs and their layers.
BRANCHES = {"evaluation": (5, 400, 0), "weights": (10, 40, 4), "features": (5, 40, 6), "fim_trajectory": (8, 100, 6)}


def write_run(folder, epochs_share=1.0):
    """A run of two replicas in the shape that a default training leaves, of noise."""
    streams = ("seed", "seed_init", "seed_data", "seed_order")
    replicas = [{"init_scale": 10.0, "weight_decay": 0.0, **dict.fromkeys(streams, seed)} for seed in (0, 1)]
    recorder, rng = Recorder(replicas), np.random.default_rng(0)
    for branch, (variables, epochs, layers) in BRANCHES.items():
        for variable in range(variables):
            for epoch in range(max(2, int(epochs * epochs_share))):
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
        write_run(small, epochs_share=0.1)
        (small / "weights.safetensors").unlink()  # not read, and the largest
        for i in range(1, RUNS):
            shutil.copytree(small, small.with_name(f"{i:04}"))
        for what, branches in (("one branch", ("evaluation",)), ("all branches", ())):
            spent = milliseconds(lambda branches=branches: lit_grok.open_runs(small.parent / "*", *branches))
            tracemalloc.start()  # by itself, since it slows everything down
            lit_grok.open_runs(small.parent / "*", *branches)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            print(f"{RUNS} runs, {what}: {spent / RUNS:.1f} ms a run, at most {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
