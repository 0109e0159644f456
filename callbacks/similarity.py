"""How similar the replicas are inside: the independent check that they share features."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from callbacks.base import AnalysisCallback, Batch
from lit_grok.measures.similarity import pairwise_linear_cka
from lit_grok.modules import LitClassifier
from lit_grok.networks import HasPreactivations


class SimilarityCallback(AnalysisCallback):
    """Linear CKA between the hidden activations of every two replicas on the same inputs (Kornblith et al. 2019).

    The inputs are the test set of the first replica, the activations relu(pre-activation), before any pooling.

    - ``similarity/LAYER``: mean over the other replicas, for each replica,
    - ``similarity/cka``: at the end, dimensions ``replica``, ``other`` and ``hidden_layer``.

    A replica that diverged is left out. Fewer than two give nothing. The cost grows with the square of the
    number of replicas.
    """

    requires = (HasPreactivations,)

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Mean CKA of each replica with the others."""
        return {f"similarity/{layer}": _mean_of_others(cka) for layer, cka in self._cka(module, batch).items()}

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """CKA of every two replicas."""
        matrices = self._cka(module, batch)
        if not matrices:
            return {}
        labels = [module.label(r) for r in range(len(module.replicas))]
        cka = xr.DataArray(
            np.stack(list(matrices.values()), axis=-1),
            dims=("replica", "other", "hidden_layer"),
            coords={"other": labels, "hidden_layer": list(matrices)},
        )
        return {"similarity/cka": cka}

    @staticmethod
    def _cka(module: LitClassifier, batch: Batch) -> dict[str, np.ndarray]:
        """Layer name to the matrix (R, R), NaN where a replica diverged."""
        sound = module.sound
        if len(sound) < 2:
            return {}
        inputs = batch[0][0]

        @torch.no_grad()
        def preactivations(r: int) -> dict[str, torch.Tensor]:
            return dict(cast(HasPreactivations, module.stack.networks[r]).preactivations(inputs))

        hidden = list(module.stack.each(preactivations, sound))
        matrices = {}
        for layer in list(hidden[0]):
            matrix = np.full((len(module.replicas), len(module.replicas)), np.nan)
            activations = torch.stack([F.relu(layers.pop(layer)) for layers in hidden])
            matrix[np.ix_(sound, sound)] = pairwise_linear_cka(activations, module.stack.each).cpu().numpy()
            matrices[layer] = matrix
        return matrices


def _mean_of_others(cka: np.ndarray) -> np.ndarray:
    """Mean of each row without its diagonal; NaN where there is nothing to average."""
    others = np.where(np.eye(len(cka), dtype=bool), np.nan, cka)
    found = np.isfinite(others)
    with np.errstate(invalid="ignore"):
        return np.nansum(others, axis=1) / found.sum(1)
