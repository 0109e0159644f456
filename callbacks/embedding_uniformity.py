"""How uniformly the embeddings of the residues are spread."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

from callbacks.base import AnalysisCallback, Batch
from lit_grok.figures.common import has
from lit_grok.figures.embedding import embedding_picture, uniformity_development
from lit_grok.measures.uniformity import (
    embedding_differences,
    embedding_spread,
    fourier_plane,
    mean_embedding_difference,
    relative_embedding_difference,
    smallest_relative_difference,
)
from lit_grok.networks import HasResidueEmbeddings


class EmbeddingUniformityCallback(AnalysisCallback):
    """Distances between the embeddings φ of residues (arXiv 2504.03162, Def. 4.2), with the dimension ``operand``.

    - ``med``: mean ‖φ(i + 1) − φ(i)‖, cyclic,
    - ``relative_med``: the same over the mean norm of an embedding, √2 for random ones in many dimensions,
    - ``smallest_relative_med``: the least of these along the steps s = 1 … P // 2, which does not care at which
      frequency the network has arranged the residues, and ``smallest_step``, that s,
    - ``mean_norm``: mean ‖φ(i)‖,
    - ``spread``: smallest over largest singular value of the embeddings,

    and at the end ``difference``, mean ‖φ(i + s) − φ(i)‖ for each ``step`` s, and ``plane``, the embeddings projected
    on the plane in which they turn at the frequency ``plane_frequency``, that of the largest Fourier component.

    Args:
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasResidueEmbeddings,)
    threaded = True
    long_names: ClassVar[Mapping[str, str]] = {
        "med": "mean embedding difference",
        "relative_med": "mean embedding difference over the mean norm",
        "smallest_relative_med": "mean embedding difference over the mean norm, along the step where it is smallest",
        "smallest_step": "step along which the mean embedding difference is smallest",
        "mean_norm": "mean norm of an embedding",
        "spread": "smallest over largest singular value of the embeddings",
        "difference": "mean difference of embeddings a step apart",
        "plane": "embeddings in the plane of their largest Fourier component",
        "plane_frequency": "frequency of the largest Fourier component",
    }

    def __init__(self, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)

    @torch.no_grad()
    def measure(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The numbers of each set of embeddings."""
        values: dict[str, list[float]] = {}
        sets = cast(HasResidueEmbeddings, network).residue_embeddings()
        for embeddings in sets.values():
            smallest = smallest_relative_difference(embeddings)
            for name, value in {
                "med": mean_embedding_difference(embeddings),
                "relative_med": relative_embedding_difference(embeddings),
                "smallest_relative_med": smallest.value,
                "smallest_step": smallest.step,
                "mean_norm": embeddings.double().norm(dim=-1).mean(),
                "spread": embedding_spread(embeddings),
            }.items():
                values.setdefault(name, []).append(float(value))
        return {n: xr.DataArray(v, dims=("operand",), coords={"operand": list(sets)}) for n, v in values.items()}

    @torch.no_grad()
    def measure_final(self, network: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """The differences along every step, and the embeddings in their plane."""
        sets = cast(HasResidueEmbeddings, network).residue_embeddings()
        differences = torch.stack([embedding_differences(embeddings) for embeddings in sets.values()])
        planes = [fourier_plane(embeddings) for embeddings in sets.values()]
        labels = {"operand": list(sets)}
        steps = {"step": range(1, differences.shape[-1] + 1)}
        return {
            "difference": xr.DataArray(differences, dims=("operand", "step"), coords=labels | steps),
            "plane": xr.DataArray(
                torch.stack([plane.coordinates for plane in planes]), dims=("operand", "residue", "axis"), coords=labels
            ),
            "plane_frequency": xr.DataArray([plane.frequency for plane in planes], dims=("operand",), coords=labels),
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """The development, and the embeddings in their plane with the differences along every step."""
        figures = {}
        if has(run, self.branch, "med", "epoch"):
            figures["development"] = uniformity_development(run, self.branch)
        if has(run, self.branch, "plane"):
            figures["plane"] = embedding_picture(run, self.branch)
        return figures
