"""The local learning coefficient of the trained networks."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import xarray as xr
from torch import Tensor
from torch.func import functional_call

from callbacks.base import AnalysisCallback, Batch
from lit_grok.measures.learning_coefficient import local_learning_coefficient
from lit_grok.modules import LitClassifier

log = logging.getLogger("lit_grok")


class LLCCallback(AnalysisCallback):
    """Local learning coefficient λ̂ (Lau et al. 2024) by Langevin dynamics, all chains of all replicas at once.

    Recorded: ``llc/value``, NaN where the chains have not settled, which is said with the reason; and whatever became
    of them ``llc/chains``, λ̂ of each chain, ``llc/drift``, λ̂ from the second half of the steps less that from the
    first, and ``llc/loss_trace``, the loss along each chain. Every replica's chains are drawn by its own seed.

    Args:
        every: Epochs between estimates; None for the trained network only. One takes (burn_in + steps) · chains
            training steps per replica.
        split: Whose loss, ``train`` or ``test``.
        chains: Independent chains per replica.
        steps: Steps kept of each chain.
        burn_in: Steps left out before them.
        step_size: ε.
        localisation: γ, which holds the chains near the trained weights.
        batch_size: Inputs per step of a chain; None for all.
    """

    def __init__(
        self,
        every: int | None = None,
        split: Literal["test", "train"] = "train",
        chains: int = 4,
        steps: int = 1000,
        burn_in: int = 1000,
        step_size: float = 1e-5,
        localisation: float = 100.0,
        batch_size: int | None = None,
    ):
        super().__init__(every=every, split=split)
        for name, value, least in (("chains", chains, 1), ("steps", steps, 2), ("burn_in", burn_in, 0)):
            if value < least:
                raise ValueError(f"LLCCallback.{name}={value}: must be at least {least}")
        if step_size <= 0 or localisation < 0 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"LLCCallback: step_size={step_size}, localisation={localisation}, batch_size={batch_size}: "
                "must be positive, 0 or more, and at least 1"
            )
        self._sampling: dict[str, Any] = {
            "chains": chains,
            "steps": steps,
            "burn_in": burn_in,
            "step_size": step_size,
            "localisation": localisation,
            "batch_size": batch_size,
        }

    def measure_replicas(self, module: LitClassifier, batch: Batch) -> Mapping[str, Any]:
        """Estimate λ̂ of all replicas; one that diverged comes out as NaN."""
        network = module.stack.networks[0]

        def loss(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            logits = functional_call(network, weights, (inputs,))
            return module.losses(logits.unsqueeze(0), targets.unsqueeze(0))[0]

        seeds = [replica["seed"] for replica in module.replicas]
        found = local_learning_coefficient(loss, module.stack.stacked(), *batch, seeds=seeds, **self._sampling)
        self._reported.add("llc/value")  # that it is NaN is said here, with the reason
        for r, settled in enumerate(found.settled.tolist()):
            if not settled and module.diverged[r] is None:
                log.warning(
                    "%s: the local learning coefficient is unreliable and recorded as NaN: %s",
                    module.label(r),
                    _reason(found.value[r].item(), found.drift[r].item()),
                )
        return {
            "llc/value": found.value.where(found.settled, math.nan),
            "llc/drift": found.drift,
            "llc/chains": xr.DataArray(found.chains.cpu().numpy(), dims=("replica", "chain")),
            "llc/loss_trace": xr.DataArray(
                found.loss_trace.cpu().numpy(),
                dims=("replica", "chain", "sgld_step"),
            ),
        }


def _reason(value: float, drift: float) -> str:
    """Why an estimate is not to be believed."""
    if not math.isfinite(value):
        return f"it is {value}, the chains have left the trained weights for good: a smaller step_size"
    if value <= 0:
        return f"it is {value:.3g}, the chains found lower losses than that of the trained weights"
    return f"it is {value:.3g} and still drifts by {drift:.2g}: more burn_in, or another step_size or localisation"
