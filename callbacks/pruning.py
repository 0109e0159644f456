"""How much of a network can be pruned away, and its compressibility."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.common import has
from lit_grok.figures.pruning import compressibility_development, pruning_curves
from lit_grok.measures.pruning import PruningCurve, Scheme, area, compressibility, kept_share, pruning_curve
from lit_grok.modules import LitClassifier


class PruningCallback(AnalysisCallback):
    """Pruning curves on the test set (arXiv 2502.01739, Section 5, Eq. 5, Appendices E, F.1, F.2).

    - ``compressibility``: C = 1 / (1 − A),
    - ``area``: A, the area under the accuracy as a function of the pruned fraction,
    - ``kept_share``: smallest share of weights such that this and every larger one keep 95 % of the unpruned
      accuracy; NaN until that has left chance,

    on a coarse grid of fractions during the training. At the end the same on a fine one, ``final_compressibility`` and
    so on, and the curves ``accuracy`` and ``loss`` with the dimension ``fraction``.

    The scheme ``single_layer`` prunes each layer in turn and ``fisher``, besides the whole network, does so at the end:
    ``layer_area`` and so on, with the dimension ``layer``. Several schemes can be measured in one run, each by a
    callback of its own.

    Args:
        scheme: How parameters are ranked; see `lit_grok.measures.pruning.removal_steps`.
        scores: For ``fisher``: called with the network and a batch, returns an importance for every entry of
            every parameter, by parameter name.
        scores_from: Which examples that batch holds, ``train`` or ``test``: all of them. The test set measures what
            the pruned network can do, and should have no say in what is pruned.
        fractions: Number of pruned fractions, evenly spaced from 0 to 1, at the end.
        training_fractions: The same during the training.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    threaded = True
    may_be_nan = ("kept_share", "final_kept_share")
    long_names: ClassVar[Mapping[str, str]] = {
        f"{of}{at}{name}": long_name
        for of in ("", "layer_")
        for at in ("", "final_")
        for name, long_name in {
            "compressibility": "compressibility C",
            "area": "area under the pruning curve",
            "kept_share": "share of weights kept for 95 % of the accuracy",
            "accuracy": "test accuracy of the pruned network",
            "loss": "test loss of the pruned network",
        }.items()
    }

    def __init__(
        self,
        scheme: Scheme = "layerwise",
        scores: Callable[[nn.Module, Batch], Mapping[str, Tensor]] | None = None,
        scores_from: Literal["train", "test"] = "train",
        fractions: int = 101,
        training_fractions: int = 21,
        every: int | None = None,
        per_decade: int | None = None,
    ):
        super().__init__(every=every, per_decade=per_decade)
        if scheme not in get_args(Scheme):
            raise ValueError(f"PruningCallback.scheme={scheme}: unknown; allowed: {', '.join(get_args(Scheme))}")
        if (scores is not None) != (scheme == "fisher"):
            raise ValueError(
                f"PruningCallback.scheme={scheme}: scores, called with (network, batch), are what fisher needs, "
                "and only fisher"
            )
        if scores_from not in ("train", "test"):
            raise ValueError(f"PruningCallback.scores_from={scores_from}: unknown; allowed: train, test")
        for name, count in (("fractions", fractions), ("training_fractions", training_fractions)):
            if count < 2:
                raise ValueError(f"PruningCallback.{name}={count}: must be at least 2, for 0 and 1")
        self.scheme, self.scores, self.scores_from = scheme, scores, scores_from
        self.fractions, self.training_fractions = fractions, training_fractions

    def describe(self) -> Mapping[str, str]:
        """The scheme."""
        return {"scheme": self.scheme}

    def measure(self, network: nn.Module, batch: Batch, scored: Batch | None = None) -> Mapping[str, Any]:
        """Area, compressibility and kept share on the coarse grid.

        Args:
            network: A plain network in evaluation mode, a copy.
            batch: Inputs (N, …) and targets (N,) that the pruned network is evaluated on.
            scored: For ``fisher``, those that the scores are taken from; None for the same.
        """
        curves = self._curves(network, batch, scored, self.training_fractions)
        return _by_layer({layer: _summary(curve, network, batch) for layer, curve in curves.items()})

    def measure_final(self, network: nn.Module, batch: Batch, scored: Batch | None = None) -> Mapping[str, Any]:
        """The same on the fine grid, and the curves themselves."""
        values: dict[str | None, dict[str, Any]] = {}
        for layer, curve in self._curves(network, batch, scored, self.fractions, at_the_end=True).items():
            values[layer] = {f"final_{name}": value for name, value in _summary(curve, network, batch).items()}
            for name, array in (("accuracy", curve.accuracies), ("loss", curve.losses)):
                labels = {"fraction": curve.fractions.numpy()}
                values[layer][name] = xr.DataArray(array, dims=("fraction",), coords=labels)
        return _by_layer(values)

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """One replica after the other, with the examples for the scores beside those of the test set."""
        return self._each(self.measure, module, batch, *self._scored(module))

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Likewise."""
        return self._each(self.measure_final, module, batch, *self._scored(module))

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Pruning curve at the end (Fig. 5 a, b), and the development of the compressibility (Figs. 6, 7)."""
        figures = {}
        if any(has(run, self.branch, f"{of}accuracy", "fraction") for of in ("", "layer_")):
            figures[""] = pruning_curves(run, self.branch)
        if any(has(run, self.branch, f"{of}compressibility", "epoch") for of in ("", "layer_")):
            figures["development"] = compressibility_development(run, self.branch)
        return figures

    def _scored(self, module: LitClassifier) -> list[Batch]:
        """The examples that the scores are taken from, where the scheme has scores."""
        return [module.trainer.datamodule.split(self.scores_from)] if self.scores else []  # type: ignore[attr-defined]

    def _curves(
        self, network: nn.Module, batch: Batch, scored: Batch | None, count: int, at_the_end: bool = False
    ) -> dict[str | None, PruningCurve]:
        """The curve of the whole network, under None, and of each layer where the scheme asks for it."""
        layers: list[str | None] = [] if self.scheme == "single_layer" else [None]
        if self.scheme == "single_layer" or (self.scheme == "fisher" and at_the_end):
            ranked = [name for name, p in network.named_parameters() if p.ndim >= 2 or self.scheme == "fisher"]
            layers += dict.fromkeys(name.rpartition(".")[0] for name in ranked)
        fractions = torch.arange(count, dtype=torch.float64) / (count - 1)  # .35 is .35: to be selected by
        scores = None if self.scores is None else self.scores(network, scored or batch)
        return {
            layer: pruning_curve(network, *batch, fractions, self.scheme, layer=layer, scores=scores)
            for layer in layers
        }


def _by_layer(values: Mapping[str | None, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the whole network, and those of its layers along the dimension ``layer``."""
    layers = [layer for layer in values if layer is not None]
    joined = dict(values.get(None, {}))
    for name in values[layers[0]] if layers else ():
        each = [xr.DataArray(values[layer][name]) for layer in layers]
        joined[f"layer_{name}"] = xr.concat(each, xr.Variable("layer", layers))
    return joined


@torch.no_grad()
def _summary(curve: PruningCurve, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    fractions, accuracies, _ = curve
    classes = network(batch[0][:1]).shape[-1]
    return {
        "compressibility": compressibility(fractions, accuracies),
        "area": area(fractions, accuracies),
        "kept_share": kept_share(fractions, accuracies, chance=1 / classes),
    }
