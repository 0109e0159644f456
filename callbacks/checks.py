"""What the callbacks of a run must be, checked together before any data are made."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback
from torch import nn

from callbacks.base import AnalysisCallback, AnalysisError
from callbacks.evaluation import EvaluationCallback
from lit_grok.schema import spelled


def check_callbacks(callbacks: Mapping[str, Any], network: nn.Module) -> dict[str, AnalysisCallback]:
    """Refuse callbacks that are none, and all that the network cannot serve, in one sentence.

    Args:
        callbacks: By their names in the configuration.
        network: One replica.

    Returns:
        The analyses among them.

    Raises:
        ValueError: Where one is not a Lightning callback, or the evaluation is missing.
        AnalysisError: Where the network lacks what analyses need; it names each of them, and what it needs.
    """
    refused = {}
    for name, callback in callbacks.items():
        if isinstance(callback, AnalysisCallback):
            try:
                callback.check(network)
            except AnalysisError as error:
                refused[name] = str(error)
        elif not isinstance(callback, Callback):
            given = f"callbacks.{name}={spelled(callback)}"
            raise ValueError(f"{given}: not a Lightning callback; give callbacks.{name}._target_, or ~callbacks.{name}")
    if refused:
        reasons = "; ".join(f"callbacks.{name}: {reason}" for name, reason in refused.items())
        raise AnalysisError(f"{reasons}: add what is missing, or {' '.join(f'~callbacks.{name}' for name in refused)}")
    if not any(isinstance(callback, EvaluationCallback) for callback in callbacks.values()):
        raise ValueError("callbacks.evaluation: cannot be left out, what becomes of a run is read off its curves")
    return {name: callback for name, callback in callbacks.items() if isinstance(callback, AnalysisCallback)}
