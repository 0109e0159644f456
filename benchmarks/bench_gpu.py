"""What does a GPU give? Replicas at once against one at a time in PyTorch and against JAX, and what bounds it.

``python -m benchmarks.bench_gpu runs`` times three whole runs instead; without a GPU there is nothing to measure.
Settings come from the environment: TASKS (mod_add,ising,prime), REPLICAS (1,10,80,320).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks import bench_training
from benchmarks.bench_training import NOWHERE, configure, has_jax, jax_loop, plain_loop, quiet, under_lightning
from lit_grok import cli
from lit_grok.measures.fisher import fisher_diagonal, two_layer_fisher_diagonal, two_layer_parameters

TASKS = os.environ.get("TASKS", "mod_add,ising,prime").split(",")
REPLICAS = [int(count) for count in os.environ.get("REPLICAS", "1,10,80,320").split(",")]
EPOCHS = {"mod_add": 22, "ising": 1002, "prime": 102}  # of which the first two, which record the graph, do not count
WARM_UP = {"mod_add": 2, "ising": 2, "prime": 12}  # and the warm-up of the learning rate
#: The runs that are to end within so many minutes.
RUNS = (
    (3, "80 replicas of modular addition, 1000 epochs", "task=mod_add", "seed=0:80"),
    (10, "100 replicas of the Ising task, 100 000 epochs", "task=ising", "seed=0:100", "epochs=100_000"),
    (5, "10 transformers, 30 000 epochs", "task=prime", "seed=0:10", "epochs=30_000"),
)


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each by itself; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        """Count one operation."""
        found = op(*args, **(kwargs or {}))
        named = dict(zip((a.name for a in op._schema.arguments), args, strict=False)) | (kwargs or {})
        changed = {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        read, written = tensors(named), tensors([named.get(name) for name in changed])
        memory = {t.untyped_storage().data_ptr() for t in read}
        made = [t for t in tensors(found) if t.untyped_storage().data_ptr() not in memory]
        if written or made:
            self.bytes += sum(t.nbytes for t in (*read, *written, *made))
            self.operations += 1
        return found


def tensors(tree: object) -> list[torch.Tensor]:
    """All in a tree of arguments or results."""
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def ceilings(device: str) -> tuple[float, float]:
    """Bytes a second of a large copy, and single-precision operations a second of a large product."""
    side, rounds = (8192, 20) if device == "cuda" else (1024, 5)
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    copy, product = seconds(partial(b.copy_, a), rounds), seconds(partial(torch.mm, a, b), rounds)
    return 2 * a.nbytes / copy, 2 * side**3 / product


def seconds(function: Callable[[], object], rounds: int) -> float:
    """Mean seconds of a call, the device being waited for at the end."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    function()
    wait()
    start = time.perf_counter()
    for _ in range(rounds):
        function()
    wait()
    return (time.perf_counter() - start) / rounds


def step_of(task: str, replicas: int, device: str) -> tuple[float, float, int, int]:
    """Bytes, operations of products and convolutions, and kernels of one step of a stack; the steps of an epoch."""
    config = configure(task, NOWHERE.name, "logger=none", f"seed=0:{replicas}", "callbacks=base")
    module, datamodule, _ = train.build(config, cli.replicas(config))
    module = module.to(device)
    optimizer = module.make_optimizer()
    loader = datamodule.train_dataloader()
    batch = [t.to(device) for t in next(iter(loader))]
    traffic = Traffic()

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as flops, traffic:
        step()
    return traffic.bytes, flops.get_total_flops(), traffic.operations, len(loader)


def throughput(device: str) -> None:
    """Every contender on every task."""
    bandwidth, rate = ceilings(device)
    print(f"copy {bandwidth / 1e12:.2f} TB/s, product {rate / 1e12:.1f} TFLOP/s in single precision")
    accelerator = "gpu" if device == "cuda" else device
    for task in TASKS:
        graphs = {"CUDA graph": True, "eager": False} if device == "cuda" else {"eager": False}
        alone = {name: plain_loop(task, device, graph, **_adam(device))() for name, graph in graphs.items()}
        print(f"{task}: one at a time, plain PyTorch: {', '.join(f'{n} {ms:.3f} ms' for n, ms in alone.items())}")
        _, one, _, steps = step_of(task, 1, device)
        for count in REPLICAS:
            options = "callbacks=base", "logger=none", f"accelerator={accelerator}", f"seed=0:{count}"
            ours = under_lightning(task, *options, skipped=WARM_UP[task])
            moved, _, kernels, _ = step_of(task, count, device)
            operations = count * one  # of several replicas PyTorch counts grouped convolutions wrongly
            floor = steps * max(moved / bandwidth, operations / rate) * 1000
            bound = "memory" if moved / bandwidth > operations / rate else "products"
            line = (
                f"  {count:4d} at once: {ours / count:8.4f} ms an epoch and replica, "
                f"{min(alone.values()) * count / ours:6.1f} × one at a time; {steps} steps of {kernels} kernels, "
                f"{moved / 1e6:.0f} MB, {operations / 1e9:.2f} GFLOP: {bound} alone {floor:.2f} of {ours:.2f} ms"
            )
            if has_jax() and task != "prime":
                line += f"; JAX {jax_loop(task, count)():.4f} ms"
            print(line, flush=True)


def _adam(device: str) -> dict[str, bool]:
    return {"fused": True, "capturable": True} if device == "cuda" else {"fused": True}


def fisher(device: str, replicas: int = 80) -> None:
    """The exact Fisher diagonal of a stack, of all at once on the device and of each on the CPU's threads."""
    config = configure("mod_add", NOWHERE.name, "logger=none", f"seed=0:{replicas}")
    module, datamodule, _ = train.build(config, cli.replicas(config))
    pairs, stack = datamodule.split("train")[0], module.stack
    alone = seconds(lambda: stack.each(lambda r: fisher_diagonal(stack.networks[r], pairs[r])), 1)
    stack, pairs = stack.to(device), pairs.to(device)
    layers = two_layer_parameters(stack.networks[0], stack.stacked(), pairs)
    together = seconds(lambda: two_layer_fisher_diagonal(*layers, pairs), 1)
    print(f"exact Fisher diagonal of {replicas} replicas: {together:.2f} s on {device}, {alone:.2f} s on the CPU")


def whole_runs(device: str) -> None:
    """The runs that have a time to keep, as a user would start them."""
    for minutes, what, *options in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            accelerator = "gpu" if device == "cuda" else device
            command = [sys.executable, "train.py", *options, f"accelerator={accelerator}", f"run_dir={folder}/run"]
            start = time.perf_counter()
            done = subprocess.run([*command, "logger=none"], stdout=subprocess.DEVNULL, check=False)
            took = (time.perf_counter() - start) / 60
        print(
            f"{what}, default analyses: {took:.1f} minutes (asked: {minutes}), exit code {done.returncode}", flush=True
        )


def main(device: str = "cuda", *parts: str) -> None:
    """Throughput and the Fisher information, or the whole runs."""
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    torch.backends.cudnn.allow_tf32 = False  # as train.py has it
    bench_training.EPOCHS |= EPOCHS
    quiet()
    if "runs" in parts:
        whole_runs(device)
        return
    throughput(device)
    fisher(device)


if __name__ == "__main__":
    main("cuda", *sys.argv[1:])
