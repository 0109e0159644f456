import numpy as np
import pytest
import torch

from callbacks import LLCCallback
from lit_grok.results import open_run

BARE = ("callbacks=base", "~callbacks.grok_time", "~callbacks.progress")  # drawing takes longer than these runs
LLC = [*BARE, "+callbacks/extra@callbacks.llc=llc", "callbacks.llc.chains=2"]
SHORT = ["callbacks.llc.steps=20", "callbacks.llc.burn_in=10"]


def test_every_replica_and_chain_is_recorded(command):
    results = open_run(command.mod_add(*LLC, *SHORT, "init_scale=[1,3]"))
    assert results.llc_chains.dims == ("replica", "chain")
    assert results.llc_loss_trace.sizes == {"replica": 2, "chain": 2, "sgld_step": 30}
    # Every chain starts at the trained weights.
    start = results.llc_loss_trace.isel(sgld_step=0)
    np.testing.assert_allclose(start, results.train_loss.isel(epoch=-1).broadcast_like(start), rtol=1e-5)


def test_a_replica_does_not_see_its_neighbours(command):
    together = open_run(command.mod_add(*LLC, *SHORT, "init_scale=[1,3]", "run_dir=both"))
    alone = open_run(command.mod_add(*LLC, *SHORT, "init_scale=3", "run_dir=alone"))
    np.testing.assert_allclose(
        together.llc_loss_trace.sel(init_scale=3).squeeze(), alone.llc_loss_trace.squeeze(), rtol=1e-4
    )


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_unsettled_chains_give_nan_and_the_reason(command, task):
    run = getattr(command, task)(*LLC, *SHORT, "callbacks.llc.batch_size=10", "label_noise=0.1")
    assert open_run(run).llc_value.isnull().all()
    assert np.isfinite(open_run(run).llc_drift).all()
    assert "the local learning coefficient is unreliable and recorded as NaN: it is" in (run / "train.log").read_text()


def test_settled_chains_give_their_mean(command):
    # At zero weights the loss is nearly flat, and stiffly held chains know all of it after a few dozen steps.
    options = ["callbacks.llc.step_size=1e-3", "callbacks.llc.steps=400", "callbacks.llc.burn_in=100"]
    run = command.mod_add(*LLC, *options, "callbacks.llc.chains=40", "init_scale=0", "learning_rate=0")
    results = open_run(run)
    assert results.llc_value.item() == pytest.approx(results.llc_chains.mean().item())


def test_training_is_the_same_with_and_without(command):
    runs = [command.mod_add("run_dir=bare", *BARE), command.mod_add("run_dir=llc", *LLC, *SHORT)]
    assert torch.equal(*(torch.tensor(list((run / "weights.safetensors").read_bytes())) for run in runs))


@pytest.mark.parametrize(
    "options", [{"chains": 0}, {"steps": 1}, {"burn_in": -1}, {"step_size": 0.0}, {"batch_size": 0}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        LLCCallback(**options)
