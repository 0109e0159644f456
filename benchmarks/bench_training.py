"""Milliseconds per epoch under train.py against a plain PyTorch loop that trains and evaluates the same."""

import copy
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import lightning as L
import numba
import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from threadpoolctl import ThreadpoolController
from torch.utils.data import DataLoader, TensorDataset

import train
from callbacks import AnalysisCallback, EvaluationCallback
from lit_grok import cli, loggers
from lit_grok.kernels.perceptron import one_thread_a_product
from lit_grok.replicas import build_stack

EPOCHS = {"ising": 500, "mod_add": 40, "mnist": 100}
DENSE_EPOCHS = 3
NOWHERE = tempfile.TemporaryDirectory()  # for what is built and writes nothing
ROUNDS = int(os.environ.get("ROUNDS", 5))


class Stopwatch(L.Callback):
    """Seconds an epoch, from the first step or a later one to the last evaluation, without set-up and final figures."""

    def __init__(self, skipped: int = 0):
        self.skipped = skipped

    def on_train_epoch_start(self, trainer, pl_module):
        """Start, after the evaluation at that epoch."""
        if trainer.current_epoch == self.skipped:
            self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        """Stop, after the evaluation of the last epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.seconds = (time.perf_counter() - self._start) / (trainer.max_epochs - self.skipped)


def configure(task: str, run_dir: str, *overrides: str) -> dict:
    """The resolved configuration of one run."""
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        config = compose("train", [f"task={task}", f"epochs={EPOCHS[task]}", f"run_dir={run_dir}", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def under_lightning(task: str, *overrides: str, skipped: int = 0) -> float:
    """Milliseconds per epoch of what train.py trains, with W&B offline, after so many that are not counted."""
    with tempfile.TemporaryDirectory() as run_dir:
        config = configure(task, run_dir, *overrides)
        replicas = cli.replicas(config)
        module, datamodule, trainer = train.build(config, replicas)
        make_loggers = instantiate(config["logger"], _partial_=True)
        labels = [module.label(r) for r in range(len(replicas))]
        trainer.loggers = make_loggers(labels=labels, run_dir=run_dir, config=config, replicas=replicas)
        stopwatch = Stopwatch(skipped)
        trainer.callbacks.append(stopwatch)
        trainer.fit(module, datamodule=datamodule)
        loggers.finish(trainer.loggers, [], exit_code=0)
        if module.interrupted:  # by a signal, which ends a training in good order: its time is none
            raise KeyboardInterrupt
    return stopwatch.seconds * 1000


def share_of_analyses(task: str, epoch_ms: float) -> dict[str, float]:
    """What each default analysis adds to a whole default run, as a share of the run without analyses.

    Mean time of a measurement in a short run, times how often the default cadence asks for one; and the time of the
    end, with the figures, as it is.
    """
    with tempfile.TemporaryDirectory() as run_dir:
        config = configure(task, run_dir, "logger=none")
        module, datamodule, trainer = train.build(config, cli.replicas(config))
        trainer.loggers = []
        names = [name for name in config["callbacks"] if name != "checkpoint"]  # which Lightning puts last
        analyses = {
            name: callback
            for name, callback in zip(names, trainer.callbacks, strict=False)
            if isinstance(callback, AnalysisCallback) and not isinstance(callback, EvaluationCallback)
        }
        for callback in analyses.values():
            callback._measure, callback.on_train_end = timed(callback._measure), timed(callback.on_train_end)
        trainer.fit(module, datamodule=datamodule)
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        epochs = compose("train", [f"task={task}"]).epochs
    shares = {}
    for name, callback in analyses.items():
        count = sum(callback.is_due(epoch) for epoch in range(epochs + 1))
        calls = callback._measure.seconds[1:] or callback._measure.seconds  # the first one compiles
        spent = count * sum(calls) / len(calls) + sum(callback.on_train_end.seconds)
        shares[name] = spent * 1000 / (epochs * epoch_ms)
    return shares


def timed(function: Callable) -> Callable:
    """The same function, which notes in its attribute ``seconds`` how long each call takes."""

    def call(*arguments):
        start = time.perf_counter()
        function(*arguments)
        call.seconds.append(time.perf_counter() - start)

    call.seconds = []
    return call


def plain_loop(task: str, device: str = "cpu", graph: bool = False, **adam: bool) -> Callable[[], float]:
    """A plain PyTorch loop on the same batches, with the same evaluations; returns its milliseconds per epoch.

    On CUDA ``graph`` replays the steps of an epoch; the first two epochs, which record them, are not counted there.
    """
    config = configure(task, NOWHERE.name, "logger=none")
    kind = torch.optim.AdamW if config["optimizer"]["_target_"].endswith("AdamW") else torch.optim.Adam
    rates = {"lr": config["learning_rate"], "weight_decay": config["weight_decay"]}
    if "betas" in config["optimizer"]:
        rates["betas"] = config["optimizer"]["betas"]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if config["loss"] == "mse":
            return F.mse_loss(logits, F.one_hot(targets, logits.shape[1]).float())
        return F.cross_entropy(logits, targets)

    replicas = cli.replicas(config)
    _, datamodule, _ = train.build(config, replicas)
    batches = [(x[0].to(device), y[0].to(device)) for x, y in datamodule.train_dataloader()]
    splits = [tuple(t[0].to(device) for t in datamodule.split(name)) for name in ("train", "test")]
    skipped = 0 if device == "cpu" else 2

    def run() -> float:
        network = copy.deepcopy(build_stack(config["network"], replicas).networks[0]).to(device)
        optimizer = kind(network.parameters(), **rates, **adam)
        curves = []

        def steps() -> None:
            for x, y in batches:
                optimizer.zero_grad()
                loss(network(x), y).backward()
                optimizer.step()

        epoch_of_steps = steps
        for epoch in range(1, EPOCHS[task] + 1):
            if epoch == 2 and graph:
                recorded = torch.cuda.CUDAGraph()
                with torch.cuda.graph(recorded):
                    steps()
                epoch_of_steps = recorded.replay
            if epoch == skipped + 1:
                start = time.perf_counter()
            epoch_of_steps()
            if epoch % config["log_every"] == 0:
                with torch.no_grad():
                    for x, y in splits:
                        logits = network(x)
                        accuracy = (logits.argmax(1) == y).float().mean().item()
                        curves.append((epoch, loss(logits, y).item(), accuracy))
        return (time.perf_counter() - start) / (EPOCHS[task] - skipped) * 1000

    return run


def dense_data_loaders() -> tuple[torch.nn.Module, dict[str, DataLoader], dict]:
    """Modular addition as it is usually written: the network, per-sample DataLoaders of dense two-hots, the settings.

    One loader trains; two with large batches evaluate both splits.
    """
    config = configure("mod_add", NOWHERE.name, "logger=none")
    replicas = cli.replicas(config)
    _, datamodule, _ = train.build(config, replicas)
    network = build_stack(config["network"], replicas).networks[0]
    loaders = {}
    for name, split, size in (("fit", "train", config["batch_size"]), ("train", "train", 1024), ("test", "test", 1024)):
        pairs, targets = (t[0] for t in datamodule.split(split))
        loaders[name] = DataLoader(TensorDataset(network.two_hot(pairs), targets), batch_size=size)
    return network, loaders, config


def dense_plain() -> float:
    """Milliseconds per epoch of a plain loop over dense two-hots from per-sample DataLoaders."""
    network, loaders, config = dense_data_loaders()
    optimizer = torch.optim.Adam(network.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"])
    start = time.perf_counter()
    for _ in range(DENSE_EPOCHS):
        for x, y in loaders["fit"]:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for name in ("train", "test"):
                for x, y in loaders[name]:
                    logits = network(x)
                    F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item()
    return (time.perf_counter() - start) / DENSE_EPOCHS * 1000


class DenseModule(L.LightningModule):
    """The same as a LightningModule of a few lines, with Lightning's own validation loop."""

    def __init__(self, network: torch.nn.Module, config: dict):
        super().__init__()
        self.network, self.config = network, config

    def training_step(self, batch, batch_idx):
        """Loss of one batch."""
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Loss and accuracy of one split."""
        x, y = batch
        logits = self.network(x)
        self.log("loss", F.cross_entropy(logits, y))
        self.log("accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        """Adam with the settings of the task."""
        rates = {"lr": self.config["learning_rate"], "weight_decay": self.config["weight_decay"]}
        return torch.optim.Adam(self.network.parameters(), **rates)


def dense_lightning() -> float:
    """Milliseconds per epoch of Lightning on dense two-hots from per-sample DataLoaders."""
    network, loaders, config = dense_data_loaders()
    stopwatch = Stopwatch()
    trainer = L.Trainer(
        max_epochs=DENSE_EPOCHS,
        accelerator="cpu",
        callbacks=[stopwatch],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    evaluations = [loaders["train"], loaders["test"]]
    trainer.fit(DenseModule(network, config), train_dataloaders=loaders["fit"], val_dataloaders=evaluations)
    return stopwatch.seconds * 1000


def products_alone(config: dict) -> Callable[[], float]:
    """The matrix products of an epoch of modular addition and of its evaluations, compiled, and nothing else."""
    rng, P, H, B = np.random.default_rng(0), config["P"], config["network"]["hidden"][0], config["batch_size"]
    pairs, train = P * P, int(P * P * config["datamodule"]["train_fraction"])
    x, chunk = (rng.normal(size=(n, H)).astype(np.float32) for n in (B, 256))
    weight, d = rng.normal(size=(P, H)).astype(np.float32), rng.normal(size=(B, P)).astype(np.float32)
    out, out_chunk, grad, grad_x = d.copy(), np.empty((256, P), np.float32), weight.copy(), x.copy()

    @numba.njit
    def epoch(steps, chunks, x, weight, d, out, grad, grad_x, chunk, out_chunk):
        for _ in range(steps):
            np.dot(x, weight.T, out)
            np.dot(d.T, x, grad)
            np.dot(d, weight, grad_x)
        for _ in range(chunks):
            np.dot(chunk, weight.T, out_chunk)

    def run() -> float:
        arrays = x, weight, d, out, grad, grad_x, chunk, out_chunk
        epoch(1, 1, *arrays)
        start = time.perf_counter()
        for _ in range(5):
            epoch(-(-train // B), -(-pairs // 256), *arrays)
        return (time.perf_counter() - start) / 5 * 1000

    return run


def product_kernels() -> str:
    """Of which processor BLAS takes this one to be; OPENBLAS_CORETYPE overrides it, and a wrong one costs much."""
    libraries = [info for info in ThreadpoolController().info() if info["user_api"] == "blas"]
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return ", ".join(sorted({info["architecture"] for info in libraries})) + (
        f" (OPENBLAS_CORETYPE={forced})" if forced else ""
    )


def jax_loop(task: str, replicas: int) -> Callable[[], float]:
    """The same training in JAX, milliseconds per epoch of each replica."""
    from benchmarks import jax_loop

    config = configure(task, NOWHERE.name, "logger=none", f"seed=0:{replicas}")
    described = cli.replicas(config)
    _, datamodule, _ = train.build(config, described)
    networks = list(build_stack(config["network"], described).networks)
    run = jax_loop.loop(config, networks, {n: datamodule.split(n) for n in ("train", "test")}, EPOCHS[task])
    return lambda: run() / replicas


def has_jax() -> bool:
    """Whether JAX is there to compare with."""
    return all(find_spec(name) for name in ("jax", "optax"))


def main() -> None:
    """Alternate all contenders and print the best of each."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one thread each, whatever its library thinks
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    one_thread_a_product()
    quiet()
    print(f"kernels of the compiled matrix products: {product_kernels()}")
    for task in EPOCHS:
        ours, ten = "train.py", "train.py, ten replicas, each"
        contenders = {
            ours: lambda task=task: under_lightning(task, "callbacks=base", "threads=1"),
            ten: lambda task=task: under_lightning(task, "callbacks=base", "threads=1", "seed=0:10") / 10,
            "plain loop, torch.optim's Adam(W)": plain_loop(task),
            "plain loop, torch.optim's Adam(W, fused=True)": plain_loop(task, fused=True),
        }
        if has_jax():
            contenders |= {
                "JAX, jit(scan)": jax_loop(task, 1),
                "JAX, jit(vmap(scan)), ten replicas, each": jax_loop(task, 10),
            }
        if task == "mod_add":
            contenders["its matrix products alone"] = products_alone(configure(task, NOWHERE.name))
            contenders["plain loop, dense two-hot, DataLoader"] = dense_plain
            contenders["Lightning, dense two-hot, DataLoader"] = dense_lightning
        best = fastest(contenders)
        print(f"{task}, one thread, {ROUNDS} rounds")
        for name, ms in best.items():
            ratio = ms / best[ten if "ten" in name else ours]
            print(f"  {name:45s} {ms:8.2f} ms per epoch   {ratio:.2f} × train.py, which takes {1 / ratio:.2f} × this")
        shares = share_of_analyses(task, best[ours])
        each = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"  default analyses over a default run: +{sum(shares.values()):.0%} ({each})")
    os.sched_setaffinity(0, cores)
    for task in ("ising", "mod_add"):
        for what, callbacks in (("without analyses", "base"), ("with the default analyses", task)):
            options = task, f"callbacks={callbacks}", "seed=0:10"
            runs = {n: lambda n=n, o=options: under_lightning(*o, f"threads={n}") for n in (1, len(cores))}
            best = fastest(runs, rounds=ROUNDS if callbacks == "base" else 1)  # whose runs take minutes
            print(f"{task}, ten replicas {what}: {len(cores)} threads are {best[1] / best[len(cores)]:.2f} × one")


def quiet() -> None:
    """No word of Lightning's beside the figures."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def fastest(contenders: dict, rounds: int = ROUNDS) -> dict:
    """The best of several rounds of each, one after the other in every round."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            best[name] = min(best[name], run())
    return best


if __name__ == "__main__":
    main()
