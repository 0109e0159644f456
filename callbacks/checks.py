"""What the callbacks of a run must be, checked together before any data are made."""

from collections.abc import Mapping
from typing import Any

import xarray as xr
from hydra.utils import instantiate
from torch import nn

from callbacks.base import AnalysisCallback, AnalysisError, save_figures
from callbacks.evaluation import EvaluationCallback
from lit_grok.monitoring import take_in
from lit_grok.recorder import check_branch
from lit_grok.results import build_network
from lit_grok.schema import locate


def draw_run(config: Mapping[str, Any], run: xr.DataTree) -> None:
    """Draw a run as its configuration's callbacks do, without having trained it.

    Args:
        config: The resolved configuration.
        run: What ``open_run`` gives.
    """
    callbacks = instantiate({"callbacks": config["callbacks"]}, _convert_="all")["callbacks"]
    check_callbacks(callbacks, build_network(config["network"]), config)
    save_figures(run, callbacks.values(), config["run_dir"])


def check_callbacks(
    callbacks: Mapping[str, Any], network: nn.Module, config: Mapping[str, Any]
) -> dict[str, AnalysisCallback]:
    """Give every analysis its branch; refuse callbacks that are none or cannot be served, all at once.

    Args:
        callbacks: By their names in the configuration.
        network: One replica.
        config: The resolved configuration.

    Returns:
        The analyses among them.

    Raises:
        ValueError: Where one is not a Lightning callback or cannot name a branch, or the evaluation is missing.
        AnalysisError: Where network or data lack what analyses need; it names each of them, and what it needs.
    """
    data, refused = locate(config["datamodule"]["_target_"], "datamodule._target_"), {}
    for name, callback in callbacks.items():
        if isinstance(callback, AnalysisCallback):
            check_branch(name)
            callback.branch = name
            try:
                callback.check(network)
                callback.check_data(data)
            except AnalysisError as error:
                refused[name] = str(error)
        else:
            take_in(name, callback, config)
    if refused:
        reasons = "; ".join(f"callbacks.{name}: {reason}" for name, reason in refused.items())
        raise AnalysisError(f"{reasons}: add what is missing, or {' '.join(f'~callbacks.{name}' for name in refused)}")
    if not isinstance(callbacks.get("evaluation"), EvaluationCallback):
        raise ValueError("callbacks.evaluation: cannot be left out, what becomes of a run is read off its curves")
    return {name: callback for name, callback in callbacks.items() if isinstance(callback, AnalysisCallback)}
