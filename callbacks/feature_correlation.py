"""Which observables of the inputs the neurons of every layer follow."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.features import correlation_bars, correlation_development, correlation_scatter
from lit_grok.measures.correlation import dominant_observable_shares, pearson, weighted_correlation
from lit_grok.networks import HasObservables, HasPreactivations


class FeatureCorrelationCallback(AnalysisCallback):
    """Correlation of every neuron's pre-activation with every observable (arXiv 2502.01739, Eq. 6, Apps. C and G.1).

    For each layer and observable that the network names (``conv1``, ``conv2``, ``fc1``; ``energy``,
    ``magnetisation``, ``abs_magnetisation`` in the Ising task), over the test set:

    - ``correlation/LAYER/OBSERVABLE``: Σ_n w_n |r_n|, neurons weighted by their pre-activation,
    - ``correlation/LAYER/OBSERVABLE/median``: median |r| over the neurons that are not constant,
    - ``correlation/LAYER/OBSERVABLE/neurons``: share of the neurons whose highest |r| is with it,
    - ``correlation/LAYER/OBSERVABLE/activation``: share of the total |pre-activation| that those neurons hold,
    - ``correlation/LAYER/constant``: number of constant neurons, left out of everything else: those that vary
      by less than the rounding of the largest pre-activation of the layer,

    and at the end

    - ``correlation/LAYER/r``: r of every neuron, dimensions ``observable`` and ``LAYER_neuron``, NaN if constant,
    - ``correlation/LAYER/sample`` of the last layer and ``correlation/observables``: pre-activations
      and observables on some of the examples, for the scatter plot, with the dimension ``sample``.

    Args:
        sample: Number of examples, evenly spaced in the test set, of which the last layer is kept for the plot.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasPreactivations, HasObservables)
    threaded = True

    def __init__(self, sample: int = 200, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)
        if sample < 1:
            raise ValueError(f"FeatureCorrelationCallback.sample={sample}: must be at least 1")
        self.sample = sample
        self._layers: list[str] = []  # what was measured at the end, to be drawn

    @torch.no_grad()
    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The summaries of every layer."""
        names, observables = _observables(network, batch[0])
        values: dict[str, Any] = {}
        for layer, activations in _preactivations(network, batch[0]).items():
            r = pearson(activations.unsqueeze(-3), observables)
            weighted = weighted_correlation(activations.unsqueeze(-3), observables)
            median = r.abs().nanmedian(-1).values
            shares = dominant_observable_shares(activations, observables)
            for i, name in enumerate(names):
                path = f"correlation/{layer}/{name}"
                values |= {path: weighted[i], f"{path}/median": median[i]}
                values |= {f"{path}/neurons": shares.neurons[i], f"{path}/activation": shares.activation[i]}
            values[f"correlation/{layer}/constant"] = r.isnan().all(0).sum()
        return values

    @torch.no_grad()
    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The correlations of every neuron, and the last layer on a sample of the examples."""
        names, observables = _observables(network, batch[0])
        layers = _preactivations(network, batch[0])
        self._layers = list(layers)
        arrays = {}
        for layer, activations in layers.items():
            r = pearson(activations.unsqueeze(-3), observables)
            dims = ("observable", f"{layer}_neuron")
            arrays[f"correlation/{layer}/r"] = xr.DataArray(r.cpu(), dims=dims, coords={"observable": names})
        count = len(batch[0])
        kept = torch.linspace(0, count - 1, min(self.sample, count)).round().long()
        last, activations = list(layers.items())[-1]
        arrays[f"correlation/{last}/sample"] = xr.DataArray(activations.cpu()[kept], dims=("sample", f"{last}_neuron"))
        arrays["correlation/observables"] = xr.DataArray(
            observables.cpu()[:, kept], dims=("observable", "sample"), coords={"observable": names}
        )
        return arrays

    def draw(self, replica: xr.Dataset, title: str) -> Mapping[str, Figure]:
        """Last layer against the observables (Fig. 3), layers (Figs. 12, 13) and development (Figs. 7, 28–30)."""
        figures = {}
        if self._layers and replica.correlation_observables.notnull().any():
            figures["features_scatter"] = correlation_scatter(replica, self._layers[-1], title)
            figures["features_layers"] = correlation_bars(replica, self._layers, title)
        if self._layers and "epoch" in replica[f"correlation_{self._layers[0]}_constant"].dims:
            figures["features_development"] = correlation_development(replica, self._layers, title)
        return figures


def _observables(network: nn.Module, inputs: Tensor) -> tuple[list[str], Tensor]:
    """Names, and values of shape (observables, inputs)."""
    values = cast(HasObservables, network).observables(inputs)
    return list(values), torch.stack(list(values.values()))


def _preactivations(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Pre-activations of every layer, exactly zero for neurons that are constant to within rounding."""
    layers = cast(HasPreactivations, network).preactivations(inputs)
    constant = {}
    for name, values in layers.items():
        swing = (values - values[:1]).abs().amax(0)
        constant[name] = swing <= torch.finfo(values.dtype).eps * values.abs().max()
    return {name: values.masked_fill(constant[name], 0.0) for name, values in layers.items()}
