"""How similar the replicas are inside: the independent check that they share features."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure

from callbacks.base import AnalysisCallback, Batch, where_double_exists
from lit_grok.figures.common import has
from lit_grok.figures.similarity import cka_development, cka_matrix
from lit_grok.measures.similarity import linear_cka, pairwise_linear_cka
from lit_grok.modules import LitClassifier
from lit_grok.networks import HasPreactivations


class SimilarityCallback(AnalysisCallback):
    """Linear CKA between the hidden activations of every two replicas on the same inputs (Kornblith et al. 2019).

    The inputs are the test set of the first replica, the activations relu(pre-activation), before any pooling.

    - ``mean_cka``: mean over the other replicas, for each replica, dimension ``layer``,
    - ``cka``: at the end, dimensions ``replica``, ``other`` and ``layer``,
    - ``shuffled_cka``: at the end, of a layer with itself on the same inputs in another order: what chance gives,
      dimension ``layer``.

    Random weights are alike on the same inputs (on digits .7 to .8, of one seed at several scales more than .9), so
    compare with epoch 0, and not with shuffled inputs alone.

    A replica that diverged is left out. Fewer than two, or a network without pre-activations, give nothing.
    The cost grows with the square of the number of replicas.
    """

    long_names: ClassVar[Mapping[str, str]] = {
        "mean_cka": "linear CKA, mean over the other replicas",
        "cka": "linear CKA",
        "shuffled_cka": "linear CKA with itself on shuffled inputs",
    }

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Mean CKA of each replica with the others."""
        means = {layer: _mean_of_others(_between(module, x)) for layer, x in self._hidden(module, batch)}
        return {"mean_cka": _by_layer(means, ("replica", "layer"))} if means else {}

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """CKA of every two replicas, and of each with itself on shuffled inputs."""
        matrices, chance = {}, {}
        for layer, activations in self._hidden(module, batch):
            matrices[layer] = _between(module, activations)
            chance[layer] = _with_itself_shuffled(module, activations)
        if not matrices:
            return {}
        labels = [module.label(r) for r in range(len(module.replicas))]
        return {
            "cka": _by_layer(matrices, ("replica", "other", "layer")).assign_coords(other=labels),
            "shuffled_cka": _by_layer(chance, ("replica", "layer")),
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """The matrix of every layer at the end, and the development of the mean; nothing for one replica."""
        figures = {}
        if has(run, self.branch, "cka"):
            figures[""] = cka_matrix(run, self.branch)
        if has(run, self.branch, "mean_cka", "epoch"):
            figures["development"] = cka_development(run, self.branch)
        return figures

    @staticmethod
    def _hidden(module: LitClassifier, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        """Every layer with its activations (sound replicas, inputs, neurons); none where nothing can be compared."""
        sound = module.sound
        if len(sound) < 2 or not isinstance(module.stack.networks[0], HasPreactivations):
            return
        inputs = batch[0][0]

        @torch.no_grad()
        def preactivations(r: int) -> dict[str, torch.Tensor]:
            return dict(cast(HasPreactivations, module.stack.networks[r]).preactivations(inputs))

        hidden = list(module.stack.each(preactivations, sound))
        for layer in list(hidden[0]):
            yield layer, where_double_exists(torch.stack([F.relu(layers.pop(layer)) for layers in hidden]))


def _between(module: LitClassifier, activations: torch.Tensor) -> np.ndarray:
    """CKA of every two replicas, (R, R), NaN where one diverged."""
    matrix = np.full((len(module.replicas), len(module.replicas)), np.nan)
    matrix[np.ix_(module.sound, module.sound)] = pairwise_linear_cka(activations, module.stack.each).cpu().numpy()
    return matrix


def _with_itself_shuffled(module: LitClassifier, activations: torch.Tensor) -> np.ndarray:
    """CKA of every replica with itself on the same inputs in another order, (R,), NaN where it diverged."""
    order = torch.randperm(activations.shape[1], generator=torch.Generator().manual_seed(0)).to(activations.device)
    found = np.full(len(module.replicas), np.nan)
    found[module.sound] = [float(linear_cka(x, x[order])) for x in activations]
    return found


def _by_layer(values: Mapping[str, np.ndarray], dims: tuple[str, ...]) -> xr.DataArray:
    return xr.DataArray(np.stack(list(values.values()), axis=-1), dims=dims, coords={"layer": list(values)})


def _mean_of_others(cka: np.ndarray) -> np.ndarray:
    """Mean of each row without its diagonal; NaN where there is nothing to average."""
    others = np.where(np.eye(len(cka), dtype=bool), np.nan, cka)
    found = np.isfinite(others)
    with np.errstate(invalid="ignore"):
        return np.nansum(others, axis=1) / found.sum(1)
