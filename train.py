"""Train networks that grok: ``python train.py task=ising init_scale=10``."""

import os
import sys
import time
import warnings

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach lit_grok.cli, which says them in one line

import hydra
import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lit_grok import cli, loggers
from lit_grok.networks import scale_parameters
from lit_grok.replicas import ReplicaStack
from lit_grok.results import build_network, summarise, write_results, write_summary

INTERRUPTED = 130


def build_stack(network: dict, replicas: list[dict]) -> ReplicaStack:
    """One network per replica, each drawn from its own init seed and multiplied by its own init_scale."""
    networks = []
    for replica in replicas:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(replica["seed_init"])
            networks.append(scale_parameters(build_network(network), replica["init_scale"]))
    return ReplicaStack(networks)


def train(config: dict) -> int:
    """Build everything that the resolved configuration names, train it and write what came out.

    Returns:
        The exit code.
    """
    cli.check_values(config)
    replicas = cli.replicas(config)
    torch.set_num_threads(config["threads"])
    torch.set_flush_denormal(True)  # collapsing networks are full of denormal numbers, which are very slow

    with_seeds = {f"{name}_seeds": [r[f"seed_{name}"] for r in replicas] for name in ("data", "order")}
    datamodule = hydra.utils.instantiate(config["datamodule"], **with_seeds)
    stack = build_stack(config["network"], replicas)
    optimizer = hydra.utils.instantiate(config["optimizer"])
    module = hydra.utils.instantiate(
        config["module"], stack=stack, replicas=replicas, optimizer=optimizer, _convert_="all"
    )
    module.configure_optimizers()  # refuses what cannot be trained together, before anything is written
    trainer_config = {**config["trainer"], "callbacks": [], "logger": False}
    trainer = hydra.utils.instantiate(trainer_config)

    datamodule.prepare_data()
    datamodule.setup()
    run_dir = cli.make_run_dir(config)
    config = {**config, "run_dir": str(run_dir)}
    for settings in config["callbacks"].values():
        if "run_dir" in settings:
            settings["run_dir"] = str(run_dir)
    trainer.callbacks += [hydra.utils.instantiate(settings) for settings in config["callbacks"].values()]
    cli.save_config(run_dir, {**config, "resume": None})
    cli.log_to_file(run_dir)
    labels = [module.label(r) for r in range(len(replicas))]
    make_loggers = hydra.utils.instantiate(config["logger"], _partial_=True)
    trainer.loggers = make_loggers(labels=labels, run_dir=str(run_dir), config=config, replicas=replicas)
    cli.log.info("%s, %d replica(s), results in %s", config["task"], len(replicas), run_dir)
    checkpoint = run_dir / "checkpoints" / "last.ckpt" if config["resume"] else None
    start, exit_code, records = time.monotonic(), 1, []
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        write_results(run_dir, module.recorder.dataset(), module.final_weights())
        if module.interrupted:
            cli.log.info(
                "stopped after %d epochs; go on with: python train.py resume=%s",
                trainer.current_epoch,
                run_dir,
            )
            exit_code = INTERRUPTED
        else:
            records = summarise(
                module.recorder,
                task=config["task"],
                chance=module.chance,
                generalisation=module.generalisation,
                diverged=module.diverged,
                epochs=trainer.current_epoch,
                seconds=time.monotonic() - start,
            )
            write_summary(run_dir, records)
            show(records)
            exit_code = 0
    finally:
        loggers.finish(trainer.loggers, records, exit_code)
    return exit_code


def show(records: list[dict]) -> None:
    """Print what became of every replica."""
    columns = ["init_scale", "weight_decay", "seed", "status", "t_train", "t_test", "t_grok"]
    columns += ["train_accuracy", "test_accuracy", "weight_norm"]
    table = Table(*(name.replace("_", " ") for name in columns), box=SIMPLE_HEAD)
    for record in records:
        cells = [record[name] for name in columns]
        table.add_row(*["–" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells])
    Console(width=max(Console().width, 100)).print(table)  # never so narrow that the numbers are cut


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    """Run one job."""
    with cli.usage_errors():
        exit_code = train(cli.resolve(config))
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    cli.log_to_console()
    with cli.usage_errors():
        main()
