"""The local learning coefficient of the trained networks."""

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call, vmap

from callbacks.base import AnalysisCallback, Batch, where_double_exists
from lit_grok.figures.chains import chain_traces
from lit_grok.figures.common import has
from lit_grok.measures.learning_coefficient import local_learning_coefficient
from lit_grok.modules import LitClassifier
from lit_grok.networks import HasStackedForward

log = logging.getLogger("lit_grok")


class LLCCallback(AnalysisCallback):
    """Local learning coefficient λ̂ (Lau et al. 2024) by Langevin dynamics, all chains of all replicas at once.

    - ``coefficient``: λ̂, NaN where the chains have not settled, which is said with the reason and the remedy;

    and whatever became of them (`lit_grok.measures.learning_coefficient.LearningCoefficient` defines them)

    - ``error``: its standard error, and ``effective_samples``, the number of independent draws behind it,
    - ``drift``: λ̂ from the second half of the steps less that from the first,
    - ``equipartition`` and ``temperature``: 1 where the chains are in equilibrium,
    - ``chains``: λ̂ of each chain, and of the last estimate
    - ``trace``: nβ (L − L(w*)) along each chain, dimensions ``chain`` and ``chain_step``, below 0 in the burn-in.

    Every replica's chains are drawn by its own seed.

    Args:
        every: Epochs between estimates; None for the trained network only. One takes (burn_in + steps) · chains
            training steps per replica.
        split: Whose loss, ``train`` or ``test``.
        chains: Independent chains per replica.
        steps: Steps kept of each chain.
        burn_in: Steps left out before them, several times 1/√(εγ).
        step_size: ε.
        localisation: γ, which holds the chains near the trained weights. λ̂ depends on it: compare at equal γ.
        batch_size: Inputs per step of a chain, at most; None for all.
    """

    long_names: ClassVar[Mapping[str, str]] = {
        "coefficient": "local learning coefficient",
        "error": "standard error of the local learning coefficient",
        "effective_samples": "independent draws",
        "drift": "local learning coefficient, second half less first half of the steps",
        "equipartition": "equipartition ratio",
        "temperature": "temperature ratio",
        "chains": "local learning coefficient of the chain",
        "trace": "nβ (L − L(w*))",
    }

    def __init__(
        self,
        every: int | None = None,
        split: Literal["test", "train"] = "train",
        chains: int = 4,
        steps: int = 2000,
        burn_in: int = 500,
        step_size: float = 3e-6,
        localisation: float = 100.0,
        batch_size: int | None = 512,
    ):
        super().__init__(every=every, split=split)
        for name, count, least in (("chains", chains, 1), ("steps", steps, 2), ("burn_in", burn_in, 0)):
            if count < least:
                raise ValueError(f"LLCCallback.{name}={count}: must be at least {least}")
        for name, value in (("step_size", step_size), ("localisation", localisation)):
            if not 0 < value < math.inf:
                raise ValueError(f"LLCCallback.{name}={value}: must be positive")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"LLCCallback.batch_size={batch_size}: must be at least 1, or null for all inputs")
        self._sampling: dict[str, Any] = {
            "chains": chains,
            "steps": steps,
            "burn_in": burn_in,
            "step_size": step_size,
            "localisation": localisation,
            "batch_size": batch_size,
        }
        self._trace: xr.DataArray | None = None

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Estimate λ̂ of all replicas; one that diverged comes out as NaN."""
        network = module.stack.copy(0)  # in evaluation mode; what it computes with is handed over

        def logits(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            if isinstance(network, HasStackedForward):
                return network.forward_stack(weights, inputs)
            return vmap(lambda w, x: functional_call(network, w, (x,)))(weights, inputs)

        def loss(weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            return module.losses(logits(weights, inputs), targets)

        seeds = [replica["seed"] for replica in module.replicas]
        trained = {name: where_double_exists(p) for name, p in module.stack.stacked().items()}
        inputs, targets = (where_double_exists(part) for part in batch)
        found = local_learning_coefficient(loss, trained, inputs, targets, seeds=seeds, **self._sampling)
        self._reported.add("coefficient")  # that it is NaN is said here, with the reason
        for r, doubt in enumerate(found.doubts):
            if doubt and module.diverged[r] is None:
                log.warning(
                    "%s: the local learning coefficient is unreliable and recorded as NaN: %s", module.label(r), doubt
                )
        believed = torch.tensor([not doubt for doubt in found.doubts], device=found.value.device)
        steps = np.arange(found.trace.shape[-1]) - self._sampling["burn_in"]
        self._trace = xr.DataArray(
            found.trace.float().cpu().numpy(), dims=("replica", "chain", "chain_step"), coords={"chain_step": steps}
        )
        return {
            "coefficient": found.value.where(believed, math.nan),
            "error": found.error,
            "effective_samples": found.effective_samples,
            "drift": found.drift,
            "equipartition": found.equipartition,
            "temperature": found.temperature,
            "chains": xr.DataArray(found.chains.cpu().numpy(), dims=("replica", "chain")),
        }

    def measure_final_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """The chains of the last estimate; of every estimate they would be too much to keep."""
        return {} if self._trace is None else {"trace": self._trace}

    def draw(self, run: xr.DataTree) -> Mapping[str, Figure]:
        """The chains, to see whether they have settled."""
        return {"chains": chain_traces(run, self.branch)} if has(run, self.branch, "trace") else {}
