"""Size and inequality of the weights, and what of them has died."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.measures import weights
from lit_grok.measures.inequality import gini


class WeightStatisticsCallback(AnalysisCallback):
    """Statistics of all weights and biases: of the network, ``weights/…``, and of each layer, ``weights/LAYER/…``.

    - ``norm``: Euclidean norm,
    - ``gini``: Gini coefficient of |w|,
    - ``zero_share``: share of exact zeros,
    - ``negligible_share``: share lost in the rounding of the largest weight of their parameter tensor, exact
      zeros included,
    - ``dead``: number of hidden neurons whose incoming weights, or outgoing ones, are all negligible.

    *Negligible* (`lit_grok.measures.weights.negligible`) rather than exactly zero, because weight decay takes the
    weights of a dead neuron to 1e-34 or so, where its gradient underflows, and not to zero.
    """

    threaded = True

    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The statistics of the whole network and of its layers."""
        without = _without_negligible(network)
        dead = weights.dead_neurons(without)
        layers, masked = weights.layers(network), weights.layers(without)
        values: dict[str, Any] = {
            **_statistics("weights", torch.cat(list(layers.values())), torch.cat(list(masked.values()))),
            "weights/dead": sum(int(neurons.sum()) for neurons in dead.values()),
        }
        for name, all_weights in layers.items():
            values |= _statistics(f"weights/{name}", all_weights, masked[name])
            if name in dead:
                values[f"weights/{name}/dead"] = int(dead[name].sum())
        return values


def _statistics(path: str, values: Tensor, masked: Tensor) -> dict[str, Tensor]:
    return {
        f"{path}/norm": values.double().norm(),
        f"{path}/gini": gini(values),
        f"{path}/zero_share": weights.zero_share(values),
        f"{path}/negligible_share": weights.zero_share(masked),
    }


@torch.no_grad()
def _without_negligible(network: nn.Module) -> nn.Module:
    """A copy whose negligible weights are zero."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.masked_fill_(weights.negligible(parameter.abs()), 0.0)
    return network
