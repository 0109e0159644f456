"""What has been proposed as a sign of understanding to come, measured side by side."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import lightning as L
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, AnalysisError, Batch
from datamodules import HasResiduePairs
from lit_grok.figures.common import has
from lit_grok.figures.progress import progress_development
from lit_grok.measures.local_complexity import local_complexity
from lit_grok.measures.progress import (
    excluded_loss,
    fourier_gini,
    key_frequencies,
    restricted_loss,
    sum_of_squares,
)
from lit_grok.networks import HasEmbeddedInputs, HasFourierWeights, HasPreactivations, HasStackedForward

_SIGNS = {"add": 1, "subtract": -1}


class ProgressMeasuresCallback(AnalysisCallback):
    """Progress measures of a network on pairs of residues, on one cadence; the uniformity of the embeddings apart.

    - ``sum_of_squares``: of all weights, Σ θ²,
    - ``fourier_gini``: Gini coefficient of the Fourier components, dimension ``set`` (`HasFourierWeights`),
    - ``key_frequencies``: how many frequencies the last hidden layer's neurons follow at this epoch,
    - ``restricted_loss``: loss on the test pairs if only these frequencies of the result are kept in the logits, and
      ``excluded_loss``: on the training pairs if they are taken out (Nanda et al. 2023); for ``add`` and ``subtract``,
      in which the result is a frequency's argument,
    - ``local_complexity``: mean number of ReLUs that change sign near an embedded training pair (Humayun et al. 2024).

    Args:
        samples: Training pairs whose local complexity is averaged; the first of them.
        radius: Of the cross-polytope around each, over the mean norm of an embedded pair.
        directions: Axes of the cross-polytope.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasPreactivations, HasFourierWeights)
    requires_data = (HasResiduePairs,)
    long_names: ClassVar[Mapping[str, str]] = {
        "sum_of_squares": "sum of squared weights",
        "fourier_gini": "Gini coefficient of the Fourier components",
        "key_frequencies": "frequencies that the neurons follow",
        "restricted_loss": "test loss with the key frequencies alone",
        "excluded_loss": "train loss without the key frequencies",
        "local_complexity": "ReLUs that change sign near a training pair",
    }

    def __init__(
        self,
        samples: int = 64,
        radius: float = 0.05,
        directions: int = 8,
        every: int | None = None,
        per_decade: int | None = None,
    ):
        super().__init__(every=every, per_decade=per_decade, split="test")
        for name, value in (("samples", samples), ("directions", directions)):
            if value < 1:
                raise ValueError(f"ProgressMeasuresCallback.{name}={value}: must be at least 1")
        if radius <= 0:
            raise ValueError(f"ProgressMeasuresCallback.radius={radius}: must be positive")
        self.samples, self.radius, self.directions = samples, radius, directions
        self._sign: int | None = None
        self._table: Batch | None = None

    def check(self, network: nn.Module) -> None:
        """Refuse more directions than the embedded pairs have dimensions, too."""
        super().check(network)
        if isinstance(network, HasEmbeddedInputs):
            with torch.no_grad():
                dimensions = network.embed(torch.zeros(1, 2, dtype=torch.long)).numel()
            if self.directions > dimensions:
                raise AnalysisError(
                    f"ProgressMeasuresCallback.directions={self.directions}: embedded pairs have {dimensions} "
                    "dimensions, and no more directions are orthogonal"
                )

    def describe(self) -> Mapping[str, str]:
        """How the local complexity is measured."""
        return {"samples": str(self.samples), "radius": f"{self.radius:g}", "directions": str(self.directions)}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check network and data, and keep all pairs."""
        super().setup(trainer, pl_module, stage)
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._sign, self._table = _SIGNS.get(data.operation), data.dataset()

    def measure_replicas(self, module: Any, batch: Batch) -> Mapping[str, Any]:
        """One replica after the other, with its training pairs beside its test pairs."""
        return self._each(self.measure, module, batch, module.trainer.datamodule.split("train"))

    @torch.no_grad()
    def measure(self, network: nn.Module, batch: Batch, trained: Batch | None = None) -> Mapping[str, Any]:
        """All measures of one network.

        Args:
            network: A plain network in evaluation mode, a copy.
            batch: The test pairs (N, 2) and their targets (N,).
            trained: The training pairs and their targets.
        """
        pairs, classes = cast(Batch, self._table)
        *_, last = cast(HasPreactivations, network).preactivations(pairs).values()
        keys = key_frequencies(last.relu()).keys
        sets = cast(HasFourierWeights, network).fourier_weights()
        gini = torch.stack([fourier_gini(weights.t()) for weights in sets.values()])
        values: dict[str, Any] = {
            "sum_of_squares": sum(sum_of_squares(network).values()),
            "fourier_gini": xr.DataArray(gini, dims=("set",), coords={"set": list(sets)}),
            "key_frequencies": len(keys),
        }
        if self._sign is not None:
            logits = _logits(network, pairs)
            tested, fitted = (part[0] @ torch.tensor([logits.shape[1], 1]) for part in (batch, trained or batch))
            values["restricted_loss"] = restricted_loss(logits, classes, tested, keys.tolist(), self._sign)
            labels = classes.clone()
            labels[fitted] = (trained or batch)[1]  # what it was trained on, which label noise sets apart
            values["excluded_loss"] = excluded_loss(logits, labels, fitted, keys.tolist(), self._sign)
        if isinstance(network, HasEmbeddedInputs):
            values["local_complexity"] = self._complexity(network, (trained or batch)[0])
        return values

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Their development."""
        return {"": progress_development(run, self.branch)} if has(run, self.branch, "sum_of_squares", "epoch") else {}

    def _complexity(self, network: HasEmbeddedInputs, pairs: Tensor) -> Tensor:
        points = network.embed(pairs[: self.samples])
        radius = self.radius * float(points.flatten(1).norm(dim=1).mean())

        def preactivations(x: Tensor) -> Tensor:
            return torch.cat(list(network.embedded_preactivations(x).values()), 1)

        if not radius > 0:  # a network of zeros
            return torch.tensor(0.0)
        counts = local_complexity(preactivations, points, radius, self.directions, torch.Generator().manual_seed(0))
        return counts.double().mean()


def _logits(network: nn.Module, pairs: Tensor) -> Tensor:
    """Logits (N, P) of pairs (N, 2), by the network's short way if it has one."""
    if not isinstance(network, HasStackedForward):
        return network(pairs)
    parameters = {name: parameter.unsqueeze(0) for name, parameter in network.named_parameters()}
    return torch.cat([network.forward_stack(parameters, part.unsqueeze(0))[0] for part in pairs.split(1024)])
