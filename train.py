"""Train networks that grok: ``python train.py task=ising init_scale=10``."""

import os
import sys
import time
import warnings
from math import isfinite

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach lit_grok.cli, which says them in one line

import hydra
import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from callbacks import AnalysisCallback, CheckpointCallback, EvaluationCallback
from datamodules.base import ReplicaDataModule
from lit_grok import cli, loggers
from lit_grok.modules import LitClassifier
from lit_grok.networks import scale_parameters
from lit_grok.replicas import ReplicaStack
from lit_grok.results import build_network, finished, write_config, write_results, write_summary

INTERRUPTED = 130


def build_stack(network: dict, replicas: list[dict], threads: int = 1) -> ReplicaStack:
    """One network per replica, each drawn from its own init seed and multiplied by its own init_scale."""
    networks = []
    for replica in replicas:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replica["seed_init"])
            networks.append(scale_parameters(build_network(network), replica["init_scale"]))
    return ReplicaStack(networks, threads)


def build(config: dict, replicas: list[dict]) -> tuple[LitClassifier, ReplicaDataModule, Trainer]:
    """What the resolved configuration names, checked and ready to train."""
    threads = cli.threads(config["threads"])
    seeds = {f"{name}_seeds": [replica[f"seed_{name}"] for replica in replicas] for name in ("data", "order")}
    datamodule = instantiate(config["datamodule"], **seeds)
    module = instantiate(
        config["module"],
        stack=build_stack(config["network"], replicas, threads),
        replicas=replicas,
        optimizer=instantiate(config["optimizer"]),
        _convert_="all",
    )
    # Compiled steps spread replicas over the cores; where there are none, PyTorch spreads its operations.
    torch.set_num_threads(1 if module.compiled else threads)
    module.refuse_mixing(config["trainer"]["gradient_clip_val"], config["trainer"]["gradient_clip_algorithm"])
    callbacks = instantiate({"callbacks": config["callbacks"]}, _convert_="all")["callbacks"]
    for name, callback in callbacks.items():
        if isinstance(callback, AnalysisCallback):
            callback.check(module.stack.networks[0])
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks.{name}={callback}: not a Lightning callback; give callbacks.{name}._target_")
    if not any(isinstance(callback, EvaluationCallback) for callback in callbacks.values()):
        raise ValueError("callbacks.evaluation: cannot be left out, what becomes of a run is read off its curves")
    trainer = instantiate(config["trainer"], callbacks=list(callbacks.values()), logger=False)
    datamodule.prepare_data()
    datamodule.setup()
    return module, datamodule, trainer


def train(config: dict) -> int:
    """Train what the resolved configuration names and write what came out; returns the exit code."""
    run_dir = config["run_dir"]
    resume, config["resume"] = config["resume"], None
    if resume and (records := finished(run_dir, config["epochs"])):
        cli.log.info("%s is complete; epochs=… makes it longer", run_dir)
        show(records)
        return 0
    with cli.restoring(resume), cli.bad_input(run_dir):
        cli.check_values(config)
        replicas = cli.replicas(config)
        torch.set_flush_denormal(True)  # collapsing networks are full of denormal numbers, which are very slow
        module, datamodule, trainer = build(config, replicas)
    write_config(run_dir, config)
    cli.log_to_file(run_dir)
    labels = [module.label(r) for r in range(len(replicas))]
    make_loggers = instantiate(config["logger"], _partial_=True)
    trainer.loggers = make_loggers(labels=labels, run_dir=run_dir, config=config, replicas=replicas)
    cli.log.info("%s, %d replica(s), results in %s", config["task"], len(replicas), run_dir)
    if resume:
        cli.log.info("going on from %s", resume)

    start, exit_code, records = time.monotonic(), 1, []
    try:
        with cli.restoring(resume, until=lambda: isfinite(trainer.num_training_batches)):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        if not module.ended:  # resumed after the last epoch: Lightning skips the loop, and the end that is yet to come
            module.to(trainer.strategy.root_device)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_train_end(trainer, module)
        write_results(run_dir, module.recorder.dataset(), module.final_weights())
        if module.interrupted:
            cli.log.info(
                "stopped after %d epochs; go on with: python train.py resume=%s", trainer.current_epoch, run_dir
            )
            exit_code = INTERRUPTED
        else:
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            clocks = [callback.seconds for callback in callbacks if isinstance(callback, CheckpointCallback)]
            records = module.summary(
                config["task"], trainer.current_epoch, max(clocks, default=time.monotonic() - start)
            )
            write_summary(run_dir, records)
            for callback in callbacks:
                if isinstance(callback, AnalysisCallback):
                    callback.clean_up()
            show(records)
            exit_code = 0
    finally:
        loggers.finish(trainer.loggers, records, exit_code)
    return exit_code


def show(records: list[dict]) -> None:
    """Print what became of every replica."""
    columns = ["init_scale", "weight_decay", "seed", "status", "t_train", "t_test", "t_grok"]
    columns += ["train_accuracy", "test_accuracy", "weight_norm"]
    table = Table(box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for record in records:
        cells = [record[name] for name in columns]
        table.add_row(*["–" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells])
    Console(width=max(Console().width, 130)).print(table)  # never so narrow that the numbers are cut


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    """Run one job."""
    with cli.usage_errors():
        resolved = cli.resolve(config)
        with cli.writing(resolved["run_dir"]):
            exit_code = train(resolved)
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    cli.log_to_console()
    with cli.usage_errors():
        main()
