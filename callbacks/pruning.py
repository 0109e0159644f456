"""How much of a network can be pruned away, and its compressibility."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.pruning import compressibility_development, pruning_curves
from lit_grok.measures.pruning import PruningCurve, Scheme, area, compressibility, kept_share, pruning_curve
from lit_grok.modules import LitClassifier


class PruningCallback(AnalysisCallback):
    """Pruning curves on the test set (arXiv 2502.01739, Section 5, Eq. 5, Appendices E, F.1, F.2).

    - ``pruning/compressibility``: C = 1 / (1 − A),
    - ``pruning/area``: A, the area under the accuracy as a function of the pruned fraction,
    - ``pruning/kept_share``: smallest share of weights such that this and every larger one keep 95 % of the unpruned
      accuracy; NaN until that has left chance,

    on a coarse grid of fractions during the training. At the end the same on a fine one, ``pruning/final_…``, and the
    curves ``pruning/accuracy`` and ``pruning/loss`` with the dimension ``fraction``.

    These are the names of the scheme ``layerwise``; any other puts its own after the first slash, as in
    ``pruning/global/area``, so that several can be measured in one run. ``single_layer`` prunes each layer in
    turn and ``fisher``, besides the whole network, does so at the end: ``pruning/single_layer/fc1/area``.

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
        self._prefix = "pruning" if scheme == "layerwise" else f"pruning/{scheme}"
        self._paths: list[str] = []  # what was measured at the end, to be drawn

    def measure(self, network: nn.Module, batch: Batch, scored: Batch | None = None) -> Mapping[str, Any]:
        """Area, compressibility and kept share on the coarse grid.

        Args:
            network: A plain network in evaluation mode, a copy.
            batch: Inputs (N, …) and targets (N,) that the pruned network is evaluated on.
            scored: For ``fisher``, those that the scores are taken from; None for the same.
        """
        values: dict[str, Any] = {}
        for path, curve in self._curves(network, batch, scored, self.training_fractions).items():
            values |= {f"{path}/{name}": value for name, value in _summary(curve, network, batch).items()}
        return values

    def measure_final(self, network: nn.Module, batch: Batch, scored: Batch | None = None) -> Mapping[str, Any]:
        """The same on the fine grid, and the curves themselves."""
        values: dict[str, Any] = {}
        curves = self._curves(network, batch, scored, self.fractions, at_the_end=True)
        self._paths = list(curves)
        for path, curve in curves.items():
            values |= {f"{path}/final_{name}": value for name, value in _summary(curve, network, batch).items()}
            for name, array in (("accuracy", curve.accuracies), ("loss", curve.losses)):
                values[f"{path}/{name}"] = xr.DataArray(
                    array, dims=("fraction",), coords={"fraction": curve.fractions.numpy()}
                )
        return values

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """One replica after the other, with the examples for the scores beside those of the test set."""
        return self._each(self.measure, module, batch, *self._scored(module))

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Likewise."""
        return self._each(self.measure_final, module, batch, *self._scored(module))

    def draw(self, replica: xr.Dataset, title: str) -> Mapping[str, Figure]:
        """Pruning curve at the end (Fig. 5 a, b), and the development of the compressibility (Figs. 6, 7)."""
        name = self._prefix.replace("/", "_")
        labels = [self.scheme if path == self._prefix else path.rpartition("/")[2] for path in self._paths]
        paths = {label: path.replace("/", "_") for label, path in zip(labels, self._paths, strict=True)}
        figures = {}
        if any(replica[f"{path}_accuracy"].notnull().any() for path in paths.values()):
            figures[name] = pruning_curves(replica, paths, title)
        during = {label: path for label, path in paths.items() if f"{path}_compressibility" in replica}
        if any("epoch" in replica[f"{path}_compressibility"].dims for path in during.values()):
            figures[f"{name}_development"] = compressibility_development(replica, during, title)
        return figures

    @property
    def state_key(self) -> str:
        """Tells instances of different schemes apart too."""
        return self._generate_state_key(scheme=self.scheme, every=self.every, per_decade=self.per_decade)

    def _scored(self, module: LitClassifier) -> list[Batch]:
        """The examples that the scores are taken from, where the scheme has scores."""
        return [module.trainer.datamodule.split(self.scores_from)] if self.scores else []  # type: ignore[attr-defined]

    def _curves(
        self, network: nn.Module, batch: Batch, scored: Batch | None, count: int, at_the_end: bool = False
    ) -> dict[str, PruningCurve]:
        """The curve of the whole network, and of each layer where the scheme asks for it, by metric path."""
        layers: list[str | None] = [] if self.scheme == "single_layer" else [None]
        if self.scheme == "single_layer" or (self.scheme == "fisher" and at_the_end):
            ranked = [name for name, p in network.named_parameters() if p.ndim >= 2 or self.scheme == "fisher"]
            layers += dict.fromkeys(name.rpartition(".")[0] for name in ranked)
        fractions = torch.linspace(0, 1, count, dtype=torch.float64)
        scores = None if self.scores is None else self.scores(network, scored or batch)
        return {
            self._prefix if layer is None else f"{self._prefix}/{layer}": pruning_curve(
                network, *batch, fractions, self.scheme, layer=layer, scores=scores
            )
            for layer in layers
        }


@torch.no_grad()
def _summary(curve: PruningCurve, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    fractions, accuracies, _ = curve
    classes = network(batch[0][:1]).shape[-1]
    return {
        "compressibility": compressibility(fractions, accuracies),
        "area": area(fractions, accuracies),
        "kept_share": kept_share(fractions, accuracies, chance=1 / classes),
    }
