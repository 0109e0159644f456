"""A list of replicas too long for one stack: trained in stacks one after another, with one tree of results.

Each stack is a run in a directory of its own, ``stacks/000``, ``stacks/001``, … of the whole; results, weights and
summary of the whole are put together from theirs. A replica's neighbours change its result by no bit, nor does this.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_grok import cli

if TYPE_CHECKING:
    import xarray as xr

FOLDER = "stacks"


def in_turn(
    config: dict[str, Any],
    replicas: Sequence[dict[str, Any]],
    size: int,
    train: Callable[[dict[str, Any], list[dict[str, Any]], str], int],
    draw: Callable[[Mapping[str, Any], xr.DataTree], None],
) -> int:
    """Train stacks of so many replicas one after the other, skip those that are complete, and put all together.

    Args:
        config: The resolved configuration of the whole.
        replicas: All replicas.
        size: Of a stack.
        train: Trains one stack, given its configuration, its replicas and the directory of the whole; returns the exit
            code.
        draw: Draws the whole, given its configuration and results.

    Returns:
        The exit code: that of the first stack that did not end well.
    """
    from lit_grok.report import leave_report
    from lit_grok.results import finished, write_config

    whole = config["run_dir"]
    parts = [list(replicas[first : first + size]) for first in range(0, len(replicas), size)]
    cli.log.info("%d replicas in %d stacks of at most %d, one after the other", len(replicas), len(parts), size)
    if config["dry_run"]:
        cli.log.info("the first of them:")
        return train({**config, "resume": None}, parts[0], whole)
    write_config(whole, {**config, "replicas_at_once": size, "resume": None})  # a continuation has the same stacks
    for i, part in enumerate(parts):
        own = _own(config, i)
        if finished(own["run_dir"], config["epochs"]):
            cli.log.info("%s is complete", own["run_dir"])
        elif code := train(own, part, whole):
            return code
    draw(config, _put_together(config, [_directory(whole, i) for i in range(len(parts))]))
    leave_report(whole)
    return 0


def _directory(whole: str, number: int) -> Path:
    return Path(whole) / FOLDER / f"{number:03}"


def _own(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The configuration of one stack, which goes on from its last checkpoint where it has one."""
    from lit_grok.results import has_checkpoint
    from lit_grok.resume import last_checkpoint

    directory, own = _directory(config["run_dir"], number), copy.deepcopy(dict(config))
    own["run_dir"] = own["trainer"]["default_root_dir"] = str(directory)
    own["resume"] = None
    if "group" in own["logger"]:
        own["logger"]["group"] = own["logger"]["group"] or Path(config["run_dir"]).name
    if has_checkpoint(directory):
        own["resume"] = str(last_checkpoint(directory)[0])
    elif directory.exists():  # killed before its first checkpoint
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return own


def _put_together(config: Mapping[str, Any], directories: Sequence[Path]) -> xr.DataTree:
    """Write results, weights and summary of the whole; returns its results."""
    import safetensors.torch
    import torch

    from lit_grok.results import SUMMARY, WEIGHTS, index_replicas, join, read_results, write_results, write_summary

    run_dir = config["run_dir"]
    cli.log_to_file(run_dir)
    trees = [read_results(directory) for directory in directories]
    tree = join(trees)
    tree.attrs = {key: value for key, value in trees[0].attrs.items() if key != "run_dir"}
    loaded = [safetensors.torch.load_file(directory / WEIGHTS) for directory in directories]
    write_results(run_dir, tree, {name: torch.cat([weights[name] for weights in loaded]) for name in loaded[0]})
    records = [record for directory in directories for record in json.loads((directory / SUMMARY).read_text())]
    write_summary(run_dir, records)
    cli.log.info("%s, %d replicas, results in %s", config["task"], len(records), run_dir)
    cli.log.info("%s", cli.table(records))
    return index_replicas(tree)
