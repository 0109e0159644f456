"""Train networks that grok: ``python train.py task=ising init_scale=10``."""

from __future__ import annotations

import os
import sys
import time
import warnings
from math import isfinite
from typing import TYPE_CHECKING

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach lit_grok.cli, which says them in one line

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from lit_grok import cli, stacks, sweeps

if TYPE_CHECKING:
    from lightning import Trainer

    from datamodules.base import ReplicaDataModule
    from lit_grok.modules import LitClassifier

# PyTorch and Lightning take seconds to import: what needs them imports them itself, so that typos are answered sooner.


def build(config: dict, replicas: list[dict]) -> tuple[LitClassifier, ReplicaDataModule, Trainer]:
    """What the resolved configuration names, checked and ready to train."""
    import torch

    from callbacks.checks import check_callbacks
    from callbacks.cost import CostCallback, refuse_too_many
    from lit_grok.replicas import build_stack
    from lit_grok.results import build_network

    network = build_network(config["network"])
    callbacks = instantiate({"callbacks": config["callbacks"]}, _convert_="all")["callbacks"]
    analyses = check_callbacks(callbacks, network, config)
    cost = CostCallback(analyses, dry_run=config["dry_run"])
    trainer = instantiate(config["trainer"], callbacks=[*callbacks.values(), cost], logger=False)
    if trainer.world_size > 1:
        raise ValueError(f"trainer.devices={cli.spelled(config['trainer']['devices'])}: replicas train on one device")
    refuse_too_many(len(replicas), network, analyses, trainer)
    threads = cli.threads(config["threads"])
    seeds = {f"{name}_seeds": [replica[f"seed_{name}"] for replica in replicas] for name in ("data", "order")}
    datamodule = instantiate(config["datamodule"], **seeds)
    module = instantiate(
        config["module"],
        stack=build_stack(config["network"], replicas, threads),
        replicas=replicas,
        optimizer=instantiate(config["optimizer"]),
        warmup_steps=config["warmup_steps"],
        _convert_="all",
    )
    module.refuse_mixing(config["trainer"]["gradient_clip_val"], config["trainer"]["gradient_clip_algorithm"])
    datamodule.prepare_data()
    if len(set(seeds["data_seeds"])) > 1:  # then each has a copy of its own
        refuse_too_many(len(replicas), network, analyses, trainer, instantiate(config["datamodule"]))
    module.meet(datamodule)
    torch.set_flush_denormal(True)  # collapsing networks are full of denormal numbers, which are very slow
    # Replicas apart are spread over the cores, else PyTorch its operations; the sampler has set the number anew.
    torch.set_num_threads(1 if module.apart else threads)
    return module, datamodule, trainer


def train(config: dict) -> int:
    """Train what the resolved configuration names and write what came out; returns the exit code."""
    with cli.bad_input(config["run_dir"]):
        from callbacks.checks import draw_run
        from callbacks.cost import at_once

        size = at_once(config, replicas := cli.replicas(config))
    in_turn = size < len(replicas)
    return stacks.in_turn(config, replicas, size, train_stack, draw_run) if in_turn else train_stack(config, replicas)


def train_stack(config: dict, replicas: list[dict], whole: str | None = None) -> int:
    """Train these replicas together; ``whole`` is the directory of the run whose part they are, which draws them."""
    run_dir, resume, config["resume"] = config["run_dir"], config["resume"], None
    with cli.bad_input(run_dir):
        from callbacks.base import clean_up, save_figures
        from callbacks.checkpoint import seconds_of
        from lit_grok import loggers
        from lit_grok.report import leave_report
        from lit_grok.results import finished, index_replicas, write_config, write_results, write_summary
        from lit_grok.resume import refuse_another, restoring
    if resume and not config["dry_run"] and (records := finished(run_dir, config["epochs"])):
        cli.log.info("%s is complete; %s\n%s", run_dir, cli.longer(records), cli.table(records))
        return 0
    with restoring(resume), cli.bad_input(run_dir):
        module, datamodule, trainer = build(config, replicas)
        if resume:
            refuse_another(resume, module, trainer)
    if config["dry_run"]:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        return 0
    cli.log_to_file(run_dir)
    module.recorder.attributes[""] = cli.provenance(config)
    labels = [module.label(r) for r in range(len(replicas))]
    make_loggers = instantiate(config["logger"], _partial_=True)
    trainer.loggers = make_loggers(labels=labels, run_dir=run_dir, config=config, replicas=replicas)
    write_config(run_dir, config)
    cli.log.info("%s, %d replica(s), results in %s", config["task"], len(replicas), run_dir)
    if resume:
        cli.log.info("going on from %s", resume)

    start, exit_code, records = time.monotonic(), 1, []
    try:
        with restoring(resume, until=lambda: isfinite(trainer.num_training_batches)):
            trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        if not module.ended:  # resumed after the last epoch: Lightning skips the loop, and the end that is yet to come
            module.to(trainer.strategy.root_device)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_train_end(trainer, module)
        write_results(run_dir, results := module.results(), module.final_weights())
        if module.interrupted:
            epochs = trainer.current_epoch
            cli.log.info("stopped after %d epochs; go on with: python train.py resume=%s", epochs, whole or run_dir)
            exit_code = sweeps.INTERRUPTED
        else:
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            seconds = seconds_of(callbacks, time.monotonic() - start)
            records = module.summary(config["task"], trainer.current_epoch, seconds)
            write_summary(run_dir, records)
            clean_up(callbacks)
            if not whole:
                save_figures(index_replicas(results), callbacks, run_dir, trainer.loggers)
                leave_report(run_dir)
            cli.log.info("%s", cli.table(records))
            exit_code = 0
    finally:
        loggers.finish(trainer.loggers, records, exit_code)
    return exit_code


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> sweeps.Outcome | None:
    """Run one job."""
    return sweeps.job(config, train)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    cli.log_to_console()
    with cli.usage_errors():
        cli.check_arguments(sys.argv[1:])
        main()
