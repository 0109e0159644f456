"""How localised the weights of each neuron are in the Fourier basis."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.fourier import ipr_development, ipr_distribution
from lit_grok.measures.fourier import dominant_frequency, inverse_participation_ratio
from lit_grok.measures.weights import negligible
from lit_grok.networks import HasFourierWeights, HasPreactivations


class IPRCallback(AnalysisCallback):
    """Inverse participation ratio of the Fourier modes of every neuron's weights (arXiv 2502.01739, Eqs. 4 and 7).

    For each set of weights that the network names (``a``, ``b`` and ``output`` in modular addition):

    - ``ipr/SET``: mean over the live neurons,
    - ``ipr/SET/dead``: number of dead neurons, whose weights are all zero or lost in the rounding of the largest
      weight of the set (`lit_grok.measures.weights.negligible`),
    - ``ipr/mean``: the mean over the sets of their means, the "mean IPR" of every figure,
    - ``ipr/dead``: the largest number of dead neurons in any set,

    and at the end, with the dimension ``neuron`` (``SET_neuron`` where the sets have different numbers of neurons):

    - ``ipr/SET/per_neuron``: NaN for a dead neuron,
    - ``ipr/SET/frequency``: dominant frequency, −1 for a dead neuron,
    - ``ipr/SET/activation``: mean of relu(pre-activation) over the examples, where the network names its
      pre-activations and exactly one hidden layer has as many neurons as the set.

    An order other than 2 has its own names, such as ``ipr/r4/mean``, so that several can be measured in one run.

    Args:
        r: Order of the ratio, positive; 2 is the paper's.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasFourierWeights,)
    threaded = True

    def __init__(self, r: float = 2, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)
        if r <= 0:
            raise ValueError(f"IPRCallback.r={r}: the order is positive")
        self.r = r
        self._prefix = "ipr" if r == 2 else f"ipr/r{r:g}"
        self._sets: list[str] = []  # what was measured at the end, to be drawn

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Means over live neurons and numbers of dead ones."""
        means, dead = {}, {}
        for name, weights in self._weights(network).items():
            values = inverse_participation_ratio(weights, self.r)
            means[name], dead[name] = values.nanmean(), values.isnan().sum()
        return {
            f"{self._prefix}/mean": torch.stack(list(means.values())).mean(),
            f"{self._prefix}/dead": max(dead.values()),
            **{f"{self._prefix}/{name}": value for name, value in means.items()},
            **{f"{self._prefix}/{name}/dead": value for name, value in dead.items()},
        }

    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """IPR, dominant frequency and mean activation of every neuron."""
        sets = self._weights(network)
        self._sets = list(sets)
        same = len({len(weights) for weights in sets.values()}) == 1
        arrays: dict[str, Any] = {}
        for name, weights in sets.items():
            values = {
                "per_neuron": inverse_participation_ratio(weights, self.r),
                "frequency": dominant_frequency(weights),
            }
            activation = _mean_activation(network, batch[0], len(weights))
            if activation is not None:
                values["activation"] = activation
            dims = ("neuron" if same else f"{name}_neuron",)
            arrays |= {f"{self._prefix}/{name}/{key}": xr.DataArray(v.cpu(), dims=dims) for key, v in values.items()}
        return arrays

    def draw(self, replica: xr.Dataset, title: str) -> Mapping[str, Figure]:
        """Distribution over the neurons at the end (Fig. 4), and the development of the mean (Fig. 6)."""
        name = self._prefix.replace("/", "_")
        figures = {}
        if any(replica[f"{name}_{key}_per_neuron"].notnull().any() for key in self._sets):
            figures[f"{name}_distribution"] = ipr_distribution(replica, self._sets, title, prefix=name)
        if self._sets and "epoch" in replica[f"{name}_mean"].dims:
            figures[f"{name}_development"] = ipr_development(replica, self._sets, title, prefix=name)
        return figures

    @property
    def state_key(self) -> str:
        """Tells instances of different order apart too."""
        return self._generate_state_key(r=self.r, every=self.every, per_decade=self.per_decade)

    @staticmethod
    def _weights(network: nn.Module) -> dict[str, Tensor]:
        """The Fourier weights, exactly zero for dead neurons, which the measures then tell apart."""
        weights = cast(HasFourierWeights, network).fourier_weights()
        dead = {name: negligible(w.detach().abs()).all(-1, keepdim=True) for name, w in weights.items()}
        return {name: w.detach().masked_fill(dead[name], 0.0) for name, w in weights.items()}


@torch.no_grad()
def _mean_activation(network: nn.Module, inputs: Tensor, neurons: int) -> Tensor | None:
    """Mean activation of each neuron of the one hidden layer that has this many; None where it is not one."""
    if not isinstance(network, HasPreactivations):
        return None
    layers = [layer for layer in network.preactivations(inputs).values() if layer.shape[1] == neurons]
    return F.relu(layers[0]).mean(0) if len(layers) == 1 else None
