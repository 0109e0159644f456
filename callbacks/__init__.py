"""Analyses and the run's own bookkeeping, as Lightning callbacks; one per file."""

from callbacks.base import AnalysisCallback, AnalysisError
from callbacks.checkpoint import CheckpointCallback
from callbacks.evaluation import EvaluationCallback
from callbacks.grok_time import GrokTimeCallback
from callbacks.progress import ProgressCallback

__all__ = [
    "AnalysisCallback",
    "AnalysisError",
    "CheckpointCallback",
    "EvaluationCallback",
    "GrokTimeCallback",
    "ProgressCallback",
]
