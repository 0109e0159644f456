"""Milliseconds per epoch under train.py against a plain PyTorch loop that trains and evaluates the same."""

import copy
import logging
import tempfile
import time
from collections.abc import Callable

import lightning as L
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

import train
from callbacks import AnalysisCallback, EvaluationCallback
from lit_grok import cli, loggers

EPOCHS = {"ising": 500, "mod_add": 8}
ROUNDS = 5


class Stopwatch(L.Callback):
    """Seconds from the first step to the last evaluation, without set-up and final figures."""

    def on_train_start(self, trainer, pl_module):
        """Start, after the evaluation at epoch 0."""
        self.seconds = -time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        """Stop, after the evaluation of the last epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.seconds += time.perf_counter()


def configure(task: str, run_dir: str, *overrides: str) -> dict:
    """The resolved configuration of one run."""
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        config = compose("train", [f"task={task}", f"epochs={EPOCHS[task]}", f"run_dir={run_dir}", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def under_lightning(task: str, *overrides: str) -> float:
    """Milliseconds per epoch of what train.py trains, with W&B offline."""
    with tempfile.TemporaryDirectory() as run_dir:
        config = configure(task, run_dir, *overrides)
        replicas = cli.replicas(config)
        module, datamodule, trainer = train.build(config, replicas)
        make_loggers = instantiate(config["logger"], _partial_=True)
        labels = [module.label(r) for r in range(len(replicas))]
        trainer.loggers = make_loggers(labels=labels, run_dir=run_dir, config=config, replicas=replicas)
        stopwatch = Stopwatch()
        trainer.callbacks.append(stopwatch)
        trainer.fit(module, datamodule=datamodule)
        loggers.finish(trainer.loggers, [], exit_code=0)
    return stopwatch.seconds / EPOCHS[task] * 1000


def share_of_analyses(task: str, epoch_ms: float) -> dict[str, float]:
    """What each default analysis adds to a whole default run, as a share of the run without analyses.

    Mean time of a measurement in a short run, times how often the default cadence asks for one; and the time of the
    end, with the figures, as it is.
    """
    spent: dict[str, list[float]] = {}
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
        for name, callback in analyses.items():
            callback._measure = timed(callback._measure, spent.setdefault(name, []))
        ends = {name: timed(callback.on_train_end, []) for name, callback in analyses.items()}
        for name, callback in analyses.items():
            callback.on_train_end = ends[name]
        trainer.fit(module, datamodule=datamodule)
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        epochs = compose("train", [f"task={task}"]).epochs
    shares = {}
    for name, callback in analyses.items():
        count = sum(callback.is_due(epoch) for epoch in range(epochs + 1))
        calls = spent[name][1:] or spent[name]  # the first one compiles
        shares[name] = (count * sum(calls) / len(calls) + sum(ends[name].seconds)) * 1000 / (epochs * epoch_ms)
    return shares


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The same function, which notes how long each call takes."""

    def call(*arguments):
        start = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - start)

    call.seconds = seconds
    return call


def plain_loop(task: str, **adam: bool) -> Callable[[], float]:
    """A plain PyTorch loop on the same batches, with the same evaluations; returns its milliseconds per epoch."""
    config = configure(task, "unused", "logger=none")
    replicas = cli.replicas(config)
    _, datamodule, _ = train.build(config, replicas)
    batches = [(x[0], y[0]) for x, y in datamodule.train_dataloader()]
    splits = [tuple(t[0] for t in datamodule.split(name)) for name in ("train", "test")]

    def run() -> float:
        network = copy.deepcopy(train.build_stack(config["network"], replicas).networks[0])
        optimizer = torch.optim.Adam(
            network.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"], **adam
        )
        curves = []
        start = time.perf_counter()
        for epoch in range(1, EPOCHS[task] + 1):
            for x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()
            if epoch % config["log_every"] == 0:
                with torch.no_grad():
                    for x, y in splits:
                        logits = network(x)
                        accuracy = (logits.argmax(1) == y).float().mean().item()
                        curves.append((epoch, F.cross_entropy(logits, y).item(), accuracy))
        return (time.perf_counter() - start) / EPOCHS[task] * 1000

    return run


def dense_data_loader() -> float:
    """Milliseconds per epoch of modular addition as it is usually written: dense two-hots, per-sample DataLoader.

    Trains and evaluates as the others do, the evaluations from a DataLoader too.
    """
    config = configure("mod_add", "unused", "logger=none")
    replicas = cli.replicas(config)
    _, datamodule, _ = train.build(config, replicas)
    network = copy.deepcopy(train.build_stack(config["network"], replicas).networks[0])
    loaders = []
    for name, size in (("train", config["batch_size"]), ("train", 1024), ("test", 1024)):
        pairs, targets = (t[0] for t in datamodule.split(name))
        loaders.append(DataLoader(TensorDataset(network.two_hot(pairs), targets), batch_size=size))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, weight_decay=3e-5)
    start = time.perf_counter()
    for _ in range(2):
        for x, y in loaders[0]:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for loader in loaders[1:]:
                for x, y in loader:
                    logits = network(x)
                    F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).sum().item()
    return (time.perf_counter() - start) / 2 * 1000


def main() -> None:
    """Alternate all contenders and print the best of each."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for task in ("ising", "mod_add"):
        contenders = {
            "train.py": lambda task=task: under_lightning(task, "callbacks=base"),
            "plain loop, torch.optim.Adam": plain_loop(task),
            "plain loop, torch.optim.Adam(fused=True)": plain_loop(task, fused=True),
        }
        if task == "mod_add":
            contenders["dense two-hot, per-sample DataLoader"] = dense_data_loader
        best = {name: float("inf") for name in contenders}
        for _ in range(ROUNDS):
            for name, run in contenders.items():
                best[name] = min(best[name], run())
        print(f"{task}, one replica, one thread")
        for name, ms in best.items():
            print(f"  {name:45s} {ms:8.2f} ms per epoch   train.py / this = {best['train.py'] / ms:.2f}")
        shares = share_of_analyses(task, best["train.py"])
        each = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"  default analyses over a default run: +{sum(shares.values()):.0%} ({each})")


if __name__ == "__main__":
    main()
