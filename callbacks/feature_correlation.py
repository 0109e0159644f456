"""Which observables of the inputs the neurons of every layer follow."""

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
from lit_grok.figures.features import correlation_development, correlation_layers, correlation_scatter
from lit_grok.measures.correlation import dominant_observable_shares, pearson, weighted_correlation
from lit_grok.networks import HasObservables, HasPreactivations


class FeatureCorrelationCallback(AnalysisCallback):
    """Correlation of every neuron's pre-activation with every observable (arXiv 2502.01739, Eq. 6, Apps. C and G.1).

    For each layer and observable that the network names (``conv1``, ``conv2``, ``fc1``; ``energy``,
    ``magnetisation``, ``abs_magnetisation`` in the Ising task), dimensions ``layer`` and ``observable``, over the
    test set:

    - ``correlation``: Σ_n w_n |r_n|, neurons weighted by their pre-activation,
    - ``median_correlation``: median |r| over the neurons that are not constant,
    - ``neuron_share``: share of the neurons whose highest |r| is with it,
    - ``activation_share``: share of the total |pre-activation| that those neurons hold,
    - ``constant_neurons``: number of constant neurons of each layer, left out of everything else: those that vary
      by less than the rounding of the largest pre-activation of the layer,

    and at the end

    - ``neuron_correlation``: r of every neuron, with the dimension ``neuron``, NaN if it is constant and beyond the
      last neuron of a smaller layer,
    - ``sample_preactivation`` of the last layer and ``sample_observable``: pre-activations and observables on some of
      the examples, for the scatter plot, with the dimension ``sample``.

    Args:
        sample: Number of examples, evenly spaced in the test set, of which the last layer is kept for the plot.
        classes: Whether belonging to a class, 1 or 0, is an observable too: ``class_0``, ``class_1``, ….
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasPreactivations, HasObservables)
    threaded = True
    long_names: ClassVar[Mapping[str, str]] = {
        "correlation": "weighted |r|",
        "median_correlation": "median |r|",
        "neuron_share": "share of neurons",
        "activation_share": "share of |pre-activation|",
        "constant_neurons": "constant neurons",
        "neuron_correlation": "correlation coefficient r",
        "sample_preactivation": "pre-activation",
        "sample_observable": "observable",
    }

    def __init__(
        self, sample: int = 200, classes: bool = False, every: int | None = None, per_decade: int | None = None
    ):
        super().__init__(every=every, per_decade=per_decade)
        if sample < 1:
            raise ValueError(f"FeatureCorrelationCallback.sample={sample}: must be at least 1")
        self.sample, self.classes = sample, classes

    @torch.no_grad()
    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The summaries of every layer."""
        names, observables = self._observables(network, batch)
        layers = _preactivations(network, batch[0])
        summaries: dict[str, list[Tensor]] = {}
        for activations in layers.values():
            r = pearson(activations.unsqueeze(-3), observables)
            shares = dominant_observable_shares(activations, observables)
            for name, values in {
                "correlation": weighted_correlation(activations.unsqueeze(-3), observables),
                "median_correlation": r.abs().nanquantile(0.5, dim=-1),
                "neuron_share": shares.neurons,
                "activation_share": shares.activation,
                "constant_neurons": r.isnan().all(0).sum(),
            }.items():
                summaries.setdefault(name, []).append(values)
        labels = {"layer": list(layers), "observable": names}
        return {
            name: xr.DataArray(
                values := torch.stack(each),
                dims=(dims := tuple(labels)[: values.ndim]),
                coords={d: labels[d] for d in dims},
            )
            for name, each in summaries.items()
        }

    @torch.no_grad()
    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The correlations of every neuron, and the last layer on a sample of the examples."""
        names, observables = self._observables(network, batch)
        layers = _preactivations(network, batch[0])
        each = [pearson(activations.unsqueeze(-3), observables).T for activations in layers.values()]
        r = pad_sequence(each, batch_first=True, padding_value=torch.nan).transpose(1, 2)
        count = len(batch[0])
        kept = torch.linspace(0, count - 1, min(self.sample, count)).round().long()
        last = list(layers.values())[-1]
        return {
            "neuron_correlation": xr.DataArray(
                r, dims=("layer", "observable", "neuron"), coords={"layer": list(layers), "observable": names}
            ),
            "sample_preactivation": xr.DataArray(last[kept], dims=("sample", "sample_neuron")),
            "sample_observable": xr.DataArray(
                observables[:, kept], dims=("observable", "sample"), coords={"observable": names}
            ),
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Last layer against the observables (Fig. 3), layers (Figs. 12, 13) and development (Figs. 7, 28–30)."""
        figures = {}
        if has(run, self.branch, "sample_preactivation"):
            figures["scatter"] = correlation_scatter(run, self.branch)
            figures["layers"] = correlation_layers(run, self.branch)
        if has(run, self.branch, "correlation", "epoch"):
            figures["development"] = correlation_development(run, self.branch)
        return figures

    def _observables(self, network: nn.Module, batch: Batch) -> tuple[list[str], Tensor]:
        """Names, and values of shape (observables, inputs)."""
        inputs, targets = batch
        values = dict(cast(HasObservables, network).observables(inputs))
        if self.classes:
            belongs = F.one_hot(targets, network(inputs[:1]).shape[-1]).T.to(next(iter(values.values())).dtype)
            values |= {f"class_{k}": each for k, each in enumerate(belongs)}
        return list(values), torch.stack(list(values.values()))


def _preactivations(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Pre-activations of every layer, exactly zero for neurons that are constant to within rounding."""
    layers = cast(HasPreactivations, network).preactivations(inputs)
    constant = {}
    for name, values in layers.items():
        swing = (values - values[:1]).abs().amax(0)
        constant[name] = swing <= torch.finfo(values.dtype).eps * values.abs().max()
    return {name: values.masked_fill(constant[name], 0.0) for name, values in layers.items()}
