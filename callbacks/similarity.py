"""How similar the replicas are inside: the independent check that they share features."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from matplotlib.figure import Figure

from callbacks.base import AnalysisCallback, Batch, where_double_exists
from lit_grok.figures.common import has
from lit_grok.figures.similarity import cka_development, cka_matrix
from lit_grok.measures.similarity import pairwise_linear_cka
from lit_grok.modules import LitClassifier
from lit_grok.networks import HasPreactivations


class SimilarityCallback(AnalysisCallback):
    """Linear CKA between the hidden activations of every two replicas on the same inputs (Kornblith et al. 2019).

    The inputs are the test set of the first replica, the activations relu(pre-activation), before any pooling.

    - ``mean_cka``: mean over the other replicas, for each replica, dimension ``layer``,
    - ``cka``: at the end, dimensions ``replica``, ``other`` and ``layer``.

    A replica that diverged is left out. Fewer than two, or a network without pre-activations, give nothing.
    The cost grows with the square of the number of replicas.
    """

    long_names: ClassVar[Mapping[str, str]] = {
        "mean_cka": "linear CKA, mean over the other replicas",
        "cka": "linear CKA",
    }

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Mean CKA of each replica with the others."""
        if not (matrices := self._cka(module, batch)):
            return {}
        values = np.stack([_mean_of_others(cka) for cka in matrices.values()], axis=-1)
        return {"mean_cka": xr.DataArray(values, dims=("replica", "layer"), coords={"layer": list(matrices)})}

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """CKA of every two replicas."""
        matrices = self._cka(module, batch)
        if not matrices:
            return {}
        labels = [module.label(r) for r in range(len(module.replicas))]
        cka = xr.DataArray(
            np.stack(list(matrices.values()), axis=-1),
            dims=("replica", "other", "layer"),
            coords={"other": labels, "layer": list(matrices)},
        )
        return {"cka": cka}

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """The matrix of every layer at the end, and the development of the mean; nothing for one replica."""
        figures = {}
        if has(run, self.branch, "cka"):
            figures[""] = cka_matrix(run, self.branch)
        if has(run, self.branch, "mean_cka", "epoch"):
            figures["development"] = cka_development(run, self.branch)
        return figures

    @staticmethod
    def _cka(module: LitClassifier, batch: Batch) -> dict[str, np.ndarray]:
        """Layer name to the matrix (R, R), NaN where a replica diverged."""
        sound = module.sound
        if len(sound) < 2 or not isinstance(module.stack.networks[0], HasPreactivations):
            return {}
        inputs = batch[0][0]

        @torch.no_grad()
        def preactivations(r: int) -> dict[str, torch.Tensor]:
            return dict(cast(HasPreactivations, module.stack.networks[r]).preactivations(inputs))

        hidden = list(module.stack.each(preactivations, sound))
        matrices = {}
        for layer in list(hidden[0]):
            matrix = np.full((len(module.replicas), len(module.replicas)), np.nan)
            activations = where_double_exists(torch.stack([F.relu(layers.pop(layer)) for layers in hidden]))
            matrix[np.ix_(sound, sound)] = pairwise_linear_cka(activations, module.stack.each).cpu().numpy()
            matrices[layer] = matrix
        return matrices


def _mean_of_others(cka: np.ndarray) -> np.ndarray:
    """Mean of each row without its diagonal; NaN where there is nothing to average."""
    others = np.where(np.eye(len(cka), dtype=bool), np.nan, cka)
    found = np.isfinite(others)
    with np.errstate(invalid="ignore"):
        return np.nansum(others, axis=1) / found.sum(1)
