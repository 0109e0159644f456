"""Which test pairs are answered: those near a training pair, those whose transpose was trained, those in a hole."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.base import AnalysisCallback, Batch
from datamodules import HasResiduePairs
from lit_grok.figures.common import has
from lit_grok.figures.coverage import coverage_by_distance, coverage_development
from lit_grok.measures.coverage import accuracy_by, nearest_in_class, transpose_trained
from lit_grok.modules import LitClassifier

GROUPS = ("hole", "outside", "transpose trained", "transpose not trained")


class CoverageCallback(AnalysisCallback):
    """Test accuracy of parts of the pairs of residues (arXiv 2504.03162, Table 1, Fig. 4 and Thm. 3.10).

    With the dimension ``group``:

    - ``accuracy``: of the pairs in the hole and outside it, and of the pairs (a, b) of which (b, a) was trained and was
      not; a pair (a, a) counts as not trained,
    - ``pairs``: how many test pairs that are,

    and at the end, with the dimension ``distance``, ``distance_accuracy`` and ``distance_pairs``: of the test pairs
    whose nearest training pair of the same class is so far away, in cyclic L1 distance. NaN where there is no pair.

    Args:
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires_data = (HasResiduePairs,)
    may_be_nan = ("accuracy",)
    long_names: ClassVar[Mapping[str, str]] = {
        "accuracy": "test accuracy of a part of the pairs",
        "pairs": "test pairs in that part",
        "distance_accuracy": "test accuracy at a distance from the nearest training pair of the class",
        "distance_pairs": "test pairs at that distance",
    }

    def __init__(self, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Accuracy of every group."""
        data, (pairs, targets) = module.trainer.datamodule, batch  # type: ignore[attr-defined]
        correct = (module.predictions(pairs) == targets).cpu()
        trained, hole = data.split("train")[0].cpu(), data.in_hole(pairs).cpu()
        accuracies, counts = [], []
        for r, own in enumerate(pairs.cpu()):
            transposed = transpose_trained(trained[r], own, data.P)
            groups = torch.stack([hole[r], ~hole[r], transposed, ~transposed]).double()
            counts.append(groups.sum(1))
            accuracies.append((groups @ correct[r].double()) / counts[-1])
        return {
            name: xr.DataArray(torch.stack(values), dims=("replica", "group"), coords={"group": list(GROUPS)})
            for name, values in (("accuracy", accuracies), ("pairs", counts))
        }

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Accuracy by the distance to the nearest training pair of the class."""
        data, (pairs, targets) = module.trainer.datamodule, batch  # type: ignore[attr-defined]
        correct = (module.predictions(pairs) == targets).cpu()
        trained, table = data.split("train")[0].cpu(), data.dataset().targets
        classes = table[trained @ torch.tensor([data.P, 1])]  # the right ones, whatever label noise has made of them
        distances = [
            nearest_in_class(trained[r], classes[r], own, targets[r].cpu(), data.P) for r, own in enumerate(pairs.cpu())
        ]
        longest = 2 * (data.P // 2) + 1
        found = [accuracy_by(right, _whole(d, longest), longest) for right, d in zip(correct, distances, strict=True)]
        labels = {"distance": range(longest)}
        return {
            f"distance_{name}": xr.DataArray(torch.stack(values), dims=("replica", "distance"), coords=labels)
            for name, values in (("accuracy", [f.accuracy for f in found]), ("pairs", [f.size for f in found]))
        }

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """The accuracy of every group against the epoch, and by distance at the end."""
        figures = {}
        if has(run, self.branch, "accuracy", "epoch"):
            figures["development"] = coverage_development(run, self.branch)
        if has(run, self.branch, "distance_accuracy"):
            figures["distance"] = coverage_by_distance(run, self.branch)
        return figures


def _whole(distances: Tensor, none: int) -> Tensor:
    """Distances as whole numbers, and what is left out of all groups where a class has no training pair."""
    return distances.nan_to_num(posinf=none).long()
