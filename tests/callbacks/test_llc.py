import numpy as np
import pytest
import torch

from callbacks import LLCCallback
from lit_grok.results import open_run

BARE = ("callbacks=base", "~callbacks.grok_time", "~callbacks.progress")  # drawing takes longer than these runs
LLC = [*BARE, "+callbacks/extra@callbacks.llc=llc", "callbacks.llc.chains=2"]
SHORT = ["callbacks.llc.steps=20", "callbacks.llc.burn_in=10"]


def test_every_replica_and_chain_is_recorded(command):
    results = open_run(command.mod_add(*LLC, *SHORT, "init_scale=[1,3]")).llc
    assert results.chains.dims == ("replica", "chain")
    assert results.trace.sizes == {"replica": 2, "chain": 2, "chain_step": 30}
    assert results.chain_step.values.tolist() == list(range(-10, 20))
    np.testing.assert_allclose(results.trace.isel(chain_step=0), 0, atol=1e-5)  # starts at the trained weights
    kept = results.trace.sel(chain_step=slice(0, None))
    np.testing.assert_allclose(kept.mean("chain_step"), results.chains, rtol=1e-5)


def test_a_replica_does_not_see_its_neighbours(command):
    together = open_run(command.mod_add(*LLC, *SHORT, "init_scale=[1,3]", "run_dir=both")).llc
    alone = open_run(command.mod_add(*LLC, *SHORT, "init_scale=3", "run_dir=alone")).llc
    np.testing.assert_allclose(together.trace.sel(init_scale=3).squeeze(), alone.trace.squeeze(), rtol=1e-4)


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_unsettled_chains_give_nan_and_the_reason(command, task):
    run = getattr(command, task)(*LLC, *SHORT, "callbacks.llc.batch_size=10", "label_noise=0.1")
    assert open_run(run).llc.coefficient.isnull().all()
    assert np.isfinite(open_run(run).llc.drift).all()
    assert "the local learning coefficient is unreliable and recorded as NaN: it is" in (run / "train.log").read_text()


def test_settled_chains_give_their_mean_and_their_picture(command):
    # At zero weights the loss is nearly flat, and stiffly held chains know all of it after a few dozen steps.
    options = ["callbacks.llc.step_size=1e-3", "callbacks.llc.steps=400", "callbacks.llc.burn_in=100"]
    run = command.mod_add(*LLC, *options, "callbacks.llc.chains=40", "init_scale=0", "learning_rate=0")
    results = open_run(run).llc
    assert results.coefficient.item() == pytest.approx(results.chains.mean().item())
    assert results.equipartition.item() == pytest.approx(1, abs=0.02)
    assert [path.name for path in (run / "figures").glob("*.png")] == ["llc_chains.png"]


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_the_defaults_reach_equilibrium(command, task):
    run = getattr(command, task)(*LLC)
    assert open_run(run).llc.equipartition.item() == pytest.approx(1, abs=0.05)
    doubts = (run / "train.log").read_text()
    assert not any(doubt in doubts for doubt in ("spread", "drifts", "temperature", "left the trained"))


def test_a_network_without_a_stacked_forward(command):
    stacked = open_run(command.mod_add(*LLC, *SHORT, "run_dir=stacked")).llc
    unstacked = open_run(
        command.mod_add(*LLC, *SHORT, "run_dir=unstacked", "network._target_=tests.helpers.Unstacked")
    ).llc
    np.testing.assert_allclose(unstacked.trace, stacked.trace, rtol=1e-3, atol=1e-3)


def test_estimates_during_the_training(command):
    results = open_run(command.mod_add(*LLC, *SHORT, "callbacks.llc.every=2")).llc
    assert results.chains.dropna("epoch").epoch.values.tolist() == [0, 2, 4]
    assert results.trace.dims == ("replica", "chain", "chain_step")


def test_training_is_the_same_with_and_without(command):
    runs = [command.mod_add("run_dir=bare", *BARE), command.mod_add("run_dir=llc", *LLC, *SHORT)]
    assert torch.equal(*(torch.tensor(list((run / "weights.safetensors").read_bytes())) for run in runs))


@pytest.mark.parametrize(
    "options",
    [
        *({"chains": 0}, {"steps": 1}, {"burn_in": -1}, {"step_size": 0.0}, {"localisation": 0.0}, {"batch_size": 0}),
        {"step_size": float("nan")},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        LLCCallback(**options)
