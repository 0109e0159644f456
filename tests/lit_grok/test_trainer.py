from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import DoublePrecision

from datamodules import ModularAdditionDataModule
from lit_grok import optimizers
from lit_grok.loggers import NoProfiler
from lit_grok.modules import LitModularMLP
from lit_grok.networks import ModularMLP
from lit_grok.replicas import ReplicaStack
from lit_grok.trainer import EpochLoop, Trainer, bare_step, watched


class Watches(L.Callback):
    """Attached to every step, so that each goes Lightning's own way."""

    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, trainer.global_step))
        self.losses.append(outputs["loss"].item())


class Counts(L.Callback):
    """Steps so far at the end of every epoch."""

    def __init__(self):
        self.steps = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.steps.append((trainer.global_step, trainer.is_last_batch, trainer.fit_loop.epoch_loop.batch_idx))


def build(replicas=2, optimizer=optimizers.Adam, module=LitModularMLP, shuffle=False):
    torch.manual_seed(0)
    facts = {"init_scale": 1.0, "weight_decay": 1e-3, "seed_init": 0, "seed_data": 0, "seed_order": 0}
    lit = module(
        ReplicaStack([ModularMLP(7, [9]) for _ in range(replicas)]),
        classes=7,
        replicas=[{**facts, "seed": r} for r in range(replicas)],
        optimizer=partial(optimizer, lr=0.01),
    )
    seeds = list(range(replicas))
    return lit, ModularAdditionDataModule(P=7, batch_size=8, data_seeds=seeds, order_seeds=seeds, shuffle=shuffle)


def trainer_of(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 4, "limit_val_batches": 0, "profiler": NoProfiler(), "enable_checkpointing": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet | defaults | options)


def fit(*callbacks, replicas=2, checkpoint=None, shuffle=False, optimizer=optimizers.Adam, **options):
    lit, data = build(replicas, optimizer, shuffle=shuffle)
    trainer = trainer_of(*callbacks, **options)
    trainer.fit(lit, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, lit


def same(state, other):
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(same(state[k], other[k]) for k in state)
    if isinstance(state, list | tuple):
        return len(state) == len(other) and all(map(same, state, other))
    return torch.equal(state, other) if isinstance(state, torch.Tensor) else state == other


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("optimizer", [optimizers.Adam, optimizers.SGD])
@pytest.mark.parametrize("options", [{}, {"max_steps": 7}, {"limit_train_batches": 3}], ids=str)
def test_both_ways_end_in_the_same_state(replicas, shuffle, optimizer, options, tmp_path):
    ends, steps = [], []
    for number, watching in enumerate([(), (Watches(),)]):
        counts = Counts()
        trainer, _ = fit(counts, *watching, replicas=replicas, shuffle=shuffle, optimizer=optimizer, **options)
        assert watched(trainer) is bool(watching)
        path = tmp_path / f"{number}.ckpt"
        trainer.save_checkpoint(path)
        ends.append(torch.load(path, weights_only=True))
        steps.append((counts.steps, trainer.global_step, trainer.current_epoch))
    assert steps[0] == steps[1]
    for part in ("state_dict", "optimizer_states", "loops", "global_step", "epoch"):
        assert same(ends[0][part], ends[1][part]), part
    assert steps[0][1] == {"max_steps": 7, "limit_train_batches": 12}.get(next(iter(options), ""), 20)


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_the_default_callbacks_and_loggers_watch_no_step(task, command, monkeypatch):
    monkeypatch.setattr(EpochLoop, "advance", None)  # Lightning's step
    getattr(command, task)(f"callbacks={task}", "logger=csv", "epochs=2")
    with pytest.raises(TypeError, match="not callable"):  # what would have happened
        getattr(command, task)("epochs=2", "run_dir=other", "trainer.gradient_clip_val=1.0")


def test_a_run_goes_on_where_it_stopped_either_way(tmp_path):
    _, straight = fit()
    for first in ((), (Watches(),)):
        trainer, _ = fit(*first, max_epochs=2)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        for second in ((), (Watches(),)):
            trainer, resumed = fit(*second, checkpoint=tmp_path / "half.ckpt")
            assert trainer.global_step == 20
            assert same(dict(resumed.state_dict()), dict(straight.state_dict()))


def test_a_callback_that_watches_steps_sees_each():
    watches = Watches()
    fit(watches)
    assert watches.batches == [(e, b, 5 * e + b + 1) for e in range(4) for b in range(5)]
    assert len(set(watches.losses)) == 20


def test_a_hook_given_to_one_instance_counts():
    seen, callback = [], Counts()
    callback.on_train_batch_start = lambda *arguments: seen.append(arguments[-1])
    fit(callback)
    assert seen == list(range(5)) * 4


def test_a_callback_that_is_added_on_the_way_is_seen_from_the_next_epoch_on():
    watches = Watches()

    class Adds(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.callbacks.append(watches)

    fit(Adds())
    assert [epoch for epoch, *_ in watches.batches] == [2] * 5 + [3] * 5


class OwnStep(LitModularMLP):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


class AfterBackward(LitModularMLP):
    def on_after_backward(self):
        self.recorder.seen = True


class Scheduled(LitModularMLP):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class Augmented(ModularAdditionDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"profiler": "simple"},
        {"plugins": [DoublePrecision()]},
        {"module": OwnStep},
        {"module": AfterBackward},
        {"module": Scheduled},
        {"data": Augmented},
        {},
    ],
    ids=["clipping", "accumulation", "profiler", "precision", "step", "hook", "scheduler", "data", "nothing"],
)
def test_whatever_touches_a_step_takes_lightnings_way(options):
    lit, data = build(module=options.pop("module", LitModularMLP))
    kind = options.pop("data", None)
    data = kind(P=7, batch_size=8, data_seeds=[0, 1], order_seeds=[0, 1]) if kind else data
    expected = bool(options) or type(lit) is not LitModularMLP or kind is not None
    trainer = trainer_of(max_epochs=1, **options)
    trainer.fit(lit, datamodule=data)
    assert watched(trainer) is expected


@pytest.mark.parametrize("attach", ["register_step_pre_hook", "register_step_post_hook"])
def test_a_hook_of_the_optimiser_is_called_in_every_step(attach):
    calls = []

    class Attaches(L.Callback):
        def on_train_start(self, trainer, pl_module):
            getattr(trainer.optimizers[0], attach)(lambda *_: calls.append(1))

    fit(Attaches())
    assert len(calls) == 20


@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.SGD, torch.optim.SGD, torch.optim.Adam])
def test_the_bare_step_is_the_step(kind):
    ends = []
    for bare in (False, True):
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = kind([weights], lr=0.1)

        def closure(weights=weights, optimizer=optimizer):
            optimizer.zero_grad()
            loss = weights.cos().sum()
            loss.backward()
            return loss

        losses = [(bare_step(optimizer) if bare else optimizer.step)(closure).item() for _ in range(3)]
        ends.append((losses, weights.tolist()))
    assert bare_step(optimizer) != optimizer.step
    assert ends[0] == ends[1]


def test_an_optimiser_that_calls_its_closure_more_than_once():
    trainer, lit = fit(replicas=1, optimizer=Twice)
    assert trainer.global_step == 20
    assert lit.optimizers().optimizer.calls == 40


class Twice(optimizers.SGD):
    """Evaluates the loss of each batch twice."""

    calls = 0

    def step(self, closure=None):
        for _ in range(2):
            super().step(closure)
            self.calls += 1


def test_what_a_callback_logs_at_the_end_of_an_epoch_arrives():
    class Logs(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("epochs", float(trainer.current_epoch + 1))

    trainer, _ = fit(Logs())
    assert not watched(trainer)
    assert trainer.callback_metrics["epochs"] == 4
