"""Analyses and the run's own bookkeeping, as Lightning callbacks; one per file."""

from callbacks.base import AnalysisCallback, AnalysisError
from callbacks.checkpoint import CheckpointCallback
from callbacks.coverage import CoverageCallback
from callbacks.embedding_uniformity import EmbeddingUniformityCallback
from callbacks.evaluation import EvaluationCallback
from callbacks.feature_correlation import FeatureCorrelationCallback
from callbacks.fim_trajectory import FIMTrajectoryCallback
from callbacks.generalised import GeneralisedCallback
from callbacks.grok_time import GrokTimeCallback
from callbacks.ipr import IPRCallback
from callbacks.llc import LLCCallback
from callbacks.progress import ProgressCallback
from callbacks.progress_measures import ProgressMeasuresCallback
from callbacks.pruning import PruningCallback
from callbacks.representation_uniformity import RepresentationUniformityCallback
from callbacks.similarity import SimilarityCallback
from callbacks.superposition import SuperpositionCallback
from callbacks.weight_statistics import WeightStatisticsCallback

__all__ = [
    "AnalysisCallback",
    "AnalysisError",
    "CheckpointCallback",
    "CoverageCallback",
    "EmbeddingUniformityCallback",
    "EvaluationCallback",
    "FIMTrajectoryCallback",
    "FeatureCorrelationCallback",
    "GeneralisedCallback",
    "GrokTimeCallback",
    "IPRCallback",
    "LLCCallback",
    "ProgressCallback",
    "ProgressMeasuresCallback",
    "PruningCallback",
    "RepresentationUniformityCallback",
    "SimilarityCallback",
    "SuperpositionCallback",
    "WeightStatisticsCallback",
]
