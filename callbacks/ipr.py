"""How localised the weights of each neuron are in the Fourier basis."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.common import has
from lit_grok.figures.fourier import ipr_development, ipr_distribution
from lit_grok.measures.fourier import dominant_frequency, inverse_participation_ratio
from lit_grok.measures.weights import negligible
from lit_grok.networks import HasFourierWeights, HasPreactivations


class IPRCallback(AnalysisCallback):
    """Inverse participation ratio of the Fourier modes of every neuron's weights (arXiv 2502.01739, Eqs. 4 and 7).

    For each set of weights that the network names (``a``, ``b`` and ``output`` in modular addition), dimension ``set``:

    - ``set_ipr``: mean over the live neurons,
    - ``dead_neurons``: number of neurons whose weights are all zero or lost in the rounding of the largest weight of
      the set (`lit_grok.measures.weights.negligible`),
    - ``mean_ipr``: the mean over the sets of their means, the "mean IPR" of every figure,

    and at the end, dimensions ``set`` and ``neuron``, NaN beyond the last neuron of a smaller set:

    - ``neuron_ipr``: NaN for a dead neuron,
    - ``neuron_frequency``: dominant frequency, −1 for a dead neuron,
    - ``neuron_activation``: mean of relu(pre-activation) over the examples, where the network names its
      pre-activations and exactly one hidden layer has as many neurons as the set, else NaN.

    Args:
        r: Order of the ratio, positive; 2 is the paper's.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasFourierWeights,)
    threaded = True
    long_names: ClassVar[Mapping[str, str]] = {
        "mean_ipr": "mean inverse participation ratio",
        "set_ipr": "inverse participation ratio, mean over live neurons",
        "dead_neurons": "dead neurons",
        "neuron_ipr": "inverse participation ratio",
        "neuron_frequency": "dominant frequency",
        "neuron_activation": "mean activation",
    }

    def __init__(self, r: float = 2, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)
        if r <= 0:
            raise ValueError(f"IPRCallback.r={r}: the order is positive")
        self.r = r

    def describe(self) -> Mapping[str, str]:
        """The order."""
        return {"r": f"{self.r:g}"}

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Means over live neurons and numbers of dead ones."""
        ratios = {name: inverse_participation_ratio(w, self.r) for name, w in self._weights(network).items()}
        means = torch.stack([values.nanmean() for values in ratios.values()])
        dead = torch.stack([values.isnan().sum() for values in ratios.values()])
        labels = {"set": list(ratios)}
        return {
            "mean_ipr": means.mean(),
            "set_ipr": xr.DataArray(means, dims=("set",), coords=labels),
            "dead_neurons": xr.DataArray(dead, dims=("set",), coords=labels),
        }

    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """IPR, dominant frequency and mean activation of every neuron."""
        sets = self._weights(network)
        quantities = {
            "neuron_ipr": [inverse_participation_ratio(weights, self.r) for weights in sets.values()],
            "neuron_frequency": [dominant_frequency(weights) for weights in sets.values()],
            "neuron_activation": [_mean_activation(network, batch[0], len(weights)) for weights in sets.values()],
        }
        return {
            name: xr.DataArray(
                pad_sequence([v.double() for v in values], batch_first=True, padding_value=torch.nan),
                dims=("set", "neuron"),
                coords={"set": list(sets)},
            )
            for name, values in quantities.items()
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Distribution over the neurons at the end (Fig. 4), and the development of the mean (Fig. 6)."""
        figures = {}
        if has(run, self.branch, "neuron_ipr"):
            figures["distribution"] = ipr_distribution(run, self.branch)
        if has(run, self.branch, "mean_ipr", "epoch"):
            figures["development"] = ipr_development(run, self.branch)
        return figures

    @staticmethod
    def _weights(network: nn.Module) -> dict[str, Tensor]:
        """The Fourier weights, exactly zero for dead neurons, which the measures then tell apart."""
        weights = cast(HasFourierWeights, network).fourier_weights()
        dead = {name: negligible(w.detach().abs()).all(-1, keepdim=True) for name, w in weights.items()}
        return {name: w.detach().masked_fill(dead[name], 0.0) for name, w in weights.items()}


@torch.no_grad()
def _mean_activation(network: nn.Module, inputs: Tensor, neurons: int) -> Tensor:
    """Mean activation of each neuron of the one hidden layer that has this many; NaN where it is not one."""
    layers = network.preactivations(inputs).values() if isinstance(network, HasPreactivations) else ()
    fitting = [layer for layer in layers if layer.shape[1] == neurons]
    return F.relu(fitting[0]).mean(0) if len(fitting) == 1 else torch.full((neurons,), torch.nan)
