"""How many Fourier features share a neuron, and how far they get into each other's way."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, AnalysisError, Batch
from lit_grok.figures.common import has
from lit_grok.figures.superposition import feature_maps, superposition_development
from lit_grok.measures import superposition
from lit_grok.measures.weights import negligible
from lit_grok.networks import HasFourierWeights

_FEWEST = 5  # residues, which have two frequencies


class SuperpositionCallback(AnalysisCallback):
    """Superposition of the frequencies 1 ≤ k < P/2 in each set of weights that the network names (``set``).

    Of the live neurons, as `lit_grok.measures.superposition` defines it:

    - ``features_per_neuron``: number of frequencies above chance in a neuron, on average,
    - ``polysemantic_share``: share of the neurons with two or more,
    - ``features``: number of frequencies in use, above chance in more neurons than chance would have it,
    - ``neurons_per_feature``: number of neurons in which one of these is above chance, on average; NaN without any,
    - ``interference`` of different frequencies, and ``null_interference`` of random weights with the same norms,
    - ``effective_dimension`` that the weights fill, and ``null_dimension`` of random ones with the same norms;

    and at the end, dimensions ``set``, ``frequency`` and ``other``:

    - ``frequency_neurons``: number of neurons in which a frequency is above chance,
    - ``overlap``: of the planes of every two frequencies.

    Everything is NaN in a set without live neurons.

    Args:
        level: Probability that a neuron of white noise carries any feature.
        draws: Of the null model, whose mean is taken.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasFourierWeights,)
    threaded = True
    may_be_nan = ("neurons_per_feature", "overlap")
    long_names: ClassVar[Mapping[str, str]] = {
        "features_per_neuron": "frequencies per neuron",
        "polysemantic_share": "share of neurons with two frequencies or more",
        "features": "frequencies in use",
        "neurons_per_feature": "neurons per frequency",
        "interference": "interference of frequencies",
        "null_interference": "interference in random weights of the same norms",
        "effective_dimension": "effective dimension",
        "null_dimension": "effective dimension of random weights of the same norms",
        "frequency_neurons": "neurons that carry the frequency",
        "overlap": "overlap of the planes of two frequencies",
    }

    def __init__(self, level: float = 0.01, draws: int = 4, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)
        if not 0 < level < 1:
            raise ValueError(f"SuperpositionCallback.level={level}: must be between 0 and 1")
        if draws < 1:
            raise ValueError(f"SuperpositionCallback.draws={draws}: must be at least 1")
        self.level, self.draws = level, draws

    def check(self, network: nn.Module) -> None:
        """Refuse what has too few residues as well."""
        super().check(network)
        P = next(iter(cast(HasFourierWeights, network).fourier_weights().values())).shape[-1]
        if P < _FEWEST:
            raise AnalysisError(f"SuperpositionCallback: P={P} has fewer than two frequencies; P is at least {_FEWEST}")

    def describe(self) -> Mapping[str, str]:
        """The level."""
        return {"level": f"{self.level:g}"}

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Features, interference and dimension of each set of weights."""
        sets = _live_weights(network)
        each = [self._of_set(weights) for weights in sets.values()]
        return {
            name: xr.DataArray(torch.stack([found[name] for found in each]), dims=("set",), coords={"set": list(sets)})
            for name in each[0]
        }

    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Neurons of every frequency, and the overlaps of every two."""
        sets = _live_weights(network)
        neurons = [superposition.carried(weights, self.level).sum(0) for weights in sets.values()]
        overlaps = [superposition.feature_overlaps(weights) for weights in sets.values()]
        frequencies = range(1, overlaps[0].shape[-1] + 1)
        labels = {"set": list(sets), "frequency": frequencies}
        return {
            "frequency_neurons": xr.DataArray(torch.stack(neurons), dims=("set", "frequency"), coords=labels),
            "overlap": xr.DataArray(
                torch.stack(overlaps), dims=("set", "frequency", "other"), coords=labels | {"other": frequencies}
            ),
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Neurons of each frequency with the overlaps at the end, and the development."""
        figures = {}
        if has(run, self.branch, "overlap"):
            figures["features"] = feature_maps(run, self.branch)
        if has(run, self.branch, "interference", "epoch"):
            figures["development"] = superposition_development(run, self.branch)
        return figures

    def _of_set(self, weights: Tensor) -> dict[str, Tensor]:
        """The numbers of the live neurons of one set of weights."""
        generator = torch.Generator().manual_seed(0)  # the same draws every time: the null moves with the norms alone
        null = [superposition.random_like(weights, generator) for _ in range(self.draws)]
        carrying = superposition.carried(weights, self.level)
        each = carrying.sum(1).double()
        used = superposition.in_use(carrying, self.level)
        return {
            "features_per_neuron": each.mean(),
            "polysemantic_share": (each >= 2).double().mean(),
            "features": used.sum().double(),
            "neurons_per_feature": carrying.sum(0)[used].double().mean(),
            "interference": superposition.interference(weights),
            "null_interference": torch.stack([superposition.interference(w) for w in null]).mean(),
            "effective_dimension": superposition.effective_dimension(weights),
            "null_dimension": torch.stack([superposition.effective_dimension(w) for w in null]).mean(),
        }


def _live_weights(network: nn.Module) -> dict[str, Tensor]:
    """The Fourier weights of the neurons that are not dead."""
    sets = {name: w.detach() for name, w in cast(HasFourierWeights, network).fourier_weights().items()}
    return {name: w[~negligible(w.abs()).all(-1)] for name, w in sets.items()}
