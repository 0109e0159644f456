"""How evenly a network represents images that differ in one symbol."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn

from callbacks.base import AnalysisCallback, Batch, where_double_exists
from datamodules import HasGrid
from lit_grok.figures.common import has
from lit_grok.figures.representation import uniformity_development
from lit_grok.measures.representation import representation_uniformity
from lit_grok.modules import LitClassifier
from lit_grok.networks import HasPenultimate


class RepresentationUniformityCallback(AnalysisCallback):
    """Length of the steps of the penultimate features over the grid of all examples, trained on or not.

    - ``step``: mean distance of the features of examples of which one symbol goes to the next, all others being the
      same (`lit_grok.measures.representation.representation_uniformity`),
    - ``relative_step``: the same over the mean norm of the features, which weight decay alone would shrink.

    The DataModule gives the examples: ``grid()`` returns all of them, symbols^places, in lexicographic order with their
    labels, and ``symbols`` says how many a place may have. They are measured on the device that trains.

    Args:
        chunk: Examples that pass through the network at a time, which bounds the memory.
        every: Epochs between measurements; see `AnalysisCallback`, also for ``per_decade``.
        per_decade: Measurements per factor of ten in epochs.
    """

    requires = (HasPenultimate,)
    requires_data = (HasGrid,)
    may_be_nan = ("relative_step",)
    long_names: ClassVar[Mapping[str, str]] = {
        "step": "step of the representation from one symbol to the next",
        "relative_step": "step of the representation over its norm",
    }

    def __init__(self, chunk: int = 256, every: int | None = None, per_decade: int | None = None):
        super().__init__(every=every, per_decade=per_decade)
        if chunk < 1:
            raise ValueError(f"RepresentationUniformityCallback.chunk={chunk}: must be at least 1")
        self.chunk = chunk

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """The steps of each replica, on all examples and not on those of a split."""
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        (inputs, _), device = data.grid(), module.stack.flat.device
        values = torch.full((2, len(module.replicas)), torch.nan, dtype=torch.float64)
        for r in module.sound:
            features = self._features(module.stack.copy(r), inputs, device)
            values[:, r] = torch.stack(representation_uniformity(features, data.symbols))
        return dict(zip(("step", "relative_step"), values, strict=True))

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """Their development."""
        return {"": uniformity_development(run, self.branch)} if has(run, self.branch, "step", "epoch") else {}

    @torch.no_grad()
    def _features(self, network: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
        parts = [cast(HasPenultimate, network).penultimate(part.to(device)) for part in inputs.split(self.chunk)]
        return where_double_exists(torch.cat(parts))
