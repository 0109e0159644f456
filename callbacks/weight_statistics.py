"""Size and inequality of the weights, and what of them has died."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.common import has
from lit_grok.figures.weights import weights_development
from lit_grok.measures import weights
from lit_grok.measures.inequality import gini


class WeightStatisticsCallback(AnalysisCallback):
    """Statistics of all weights and biases, and with the dimension ``layer`` those of each layer, ``layer_…``.

    - ``gini``: Gini coefficient of |w|,
    - ``zero_share``: share of exact zeros,
    - ``negligible_share``: share lost in the rounding of the largest weight of their parameter tensor, exact
      zeros included,
    - ``dead_neurons``: number of hidden neurons whose incoming weights, or outgoing ones, are all negligible,
    - ``layer_norm``: Euclidean norm; that of all weights is a matter of the evaluation.

    *Negligible* (`lit_grok.measures.weights.negligible`) rather than exactly zero, because weight decay takes the
    weights of a dead neuron to 1e-34 or so, where its gradient underflows, and not to zero.
    """

    threaded = True
    may_be_nan = ("layer_dead_neurons",)
    long_names: ClassVar[Mapping[str, str]] = {
        f"{of}{name}": long_name
        for of in ("", "layer_")
        for name, long_name in {
            "norm": "Euclidean norm",
            "gini": "Gini coefficient of |w|",
            "zero_share": "share of exact zeros",
            "negligible_share": "share of negligible weights",
            "dead_neurons": "dead neurons",
        }.items()
    }

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The statistics of the whole network and of its layers."""
        without = _without_negligible(network)
        dead = weights.dead_neurons(without)
        layers, masked = weights.layers(network), weights.layers(without)
        values: dict[str, Any] = dict(_statistics(torch.cat(list(layers.values())), torch.cat(list(masked.values()))))
        values["dead_neurons"] = sum(int(neurons.sum()) for neurons in dead.values())
        each = {
            name: {
                "norm": w.double().norm(),
                **_statistics(w, masked[name]),
                "dead_neurons": dead[name].sum() if name in dead else torch.nan,  # of an output layer there are none
            }
            for name, w in layers.items()
        }
        for statistic in next(iter(each.values())):
            of_layers = [float(found[statistic]) for found in each.values()]
            values[f"layer_{statistic}"] = xr.DataArray(of_layers, dims=("layer",), coords={"layer": list(each)})
        return values

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Their development."""
        return {"": weights_development(run, self.branch)} if has(run, self.branch, "gini", "epoch") else {}


def _statistics(values: Tensor, masked: Tensor) -> dict[str, Tensor]:
    return {
        "gini": gini(values),
        "zero_share": weights.zero_share(values),
        "negligible_share": weights.zero_share(masked),
    }


@torch.no_grad()
def _without_negligible(network: nn.Module) -> nn.Module:
    """A copy whose negligible weights are zero."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.masked_fill_(weights.negligible(parameter.abs()), 0.0)
    return network
