import ast
import inspect
import textwrap
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, Precision

from datamodules import ModularArithmeticDataModule
from lit_grok import optimizers
from lit_grok import trainer as short_way
from lit_grok.modules import LitModularArithmetic
from lit_grok.networks import ModularMLP
from lit_grok.replicas import ReplicaStack
from lit_grok.trainer import EpochLoop, Trainer, watched


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


def build(replicas=2, optimizer=optimizers.Adam, module=LitModularArithmetic, shuffle=False, network=ModularMLP):
    torch.manual_seed(0)
    facts = {"init_scale": 1.0, "weight_decay": 1e-3, "seed_init": 0, "seed_data": 0, "seed_order": 0}
    lit = module(
        ReplicaStack([network(7, [9]) for _ in range(replicas)]),
        classes=7,
        replicas=[{**facts, "seed": r} for r in range(replicas)],
        optimizer=partial(optimizer, lr=0.01),
    )
    seeds = list(range(replicas))
    return lit, ModularArithmeticDataModule(P=7, batch_size=8, data_seeds=seeds, order_seeds=seeds, shuffle=shuffle)


def trainer_of(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": False}
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


class OwnStep(LitModularArithmetic):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


class AfterBackward(LitModularArithmetic):
    def on_after_backward(self):
        self.recorder.seen = True


class Scheduled(LitModularArithmetic):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


class Augmented(ModularArithmeticDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Augments(LitModularArithmetic):
    """The module has these hooks too, and Lightning calls them where the DataModule has none."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
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
        {"module": Augments},
        {"data": Augmented},
        {},
    ],
    ids=[
        "clipping",
        "accumulation",
        "profiler",
        "precision",
        "step",
        "hook",
        "scheduler",
        "transfer",
        "data",
        "nothing",
    ],
)
def test_whatever_touches_a_step_takes_lightnings_way(options):
    lit, data = build(module=options.pop("module", LitModularArithmetic))
    kind = options.pop("data", None)
    data = kind(P=7, batch_size=8, data_seeds=[0, 1], order_seeds=[0, 1]) if kind else data
    expected = bool(options) or type(lit) is not LitModularArithmetic or kind is not None
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


def hooks_called_in(*sources):
    """Names that Lightning's source hands to the functions which call hooks."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(source)))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in ("_call_callback_hooks", "_call_lightning_module_hook", "_call_batch_hook"):
                    found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


def test_every_hook_that_lightning_calls_in_a_step_is_known():
    """What the short way leaves out must be nothing: a new version that calls one more hook fails here."""
    found = hooks_called_in(
        _TrainingEpochLoop.advance,
        _AutomaticOptimization,
        Precision,
        L.LightningModule._on_before_batch_transfer,
        L.LightningModule._apply_batch_transfer_handler,
    )
    known = {*short_way.STEP_HOOKS, *short_way.MODULE_HOOKS}
    called_directly = {"training_step", "backward", "configure_gradient_clipping"}  # by the strategy and the precision
    assert found | called_directly == known
    callbacks = {name for name in vars(L.Callback) if "batch" in name or "step" in name or "grad" in name}
    elsewhere = {f"on_{stage}_batch_{end}" for stage in ("validation", "test", "predict") for end in ("start", "end")}
    assert callbacks - elsewhere - {"on_before_backward", "on_after_backward"} <= set(short_way.STEP_HOOKS)


def test_every_setting_of_the_trainer_is_known():
    """A new argument of Lightning's Trainer must be looked at: could it change what happens in a step?"""
    settings = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    asked_for = {"strategy", "precision", "plugins", "accumulate_grad_batches", "gradient_clip_val", "profiler"}
    asked_for |= {"detect_anomaly", "callbacks", "limit_val_batches", "max_steps", "max_time", "limit_train_batches"}
    harmless = {
        "accelerator",
        "devices",
        "num_nodes",
        "logger",
        "fast_dev_run",
        "max_epochs",
        "min_epochs",
        "min_steps",
    }
    harmless |= {"limit_test_batches", "limit_predict_batches", "overfit_batches", "check_val_every_n_epoch"}
    harmless |= {"val_check_interval", "num_sanity_val_steps", "log_every_n_steps", "enable_checkpointing"}
    harmless |= {"enable_progress_bar", "enable_model_summary", "gradient_clip_algorithm", "deterministic", "benchmark"}
    harmless |= {"inference_mode", "use_distributed_sampler", "barebones", "sync_batchnorm", "model_registry"}
    harmless |= {"reload_dataloaders_every_n_epochs", "default_root_dir", "enable_autolog_hparams"}
    assert settings == asked_for | harmless


class Doubled(ModularMLP):
    """Trains otherwise than the network it is made from."""

    def forward_stack(self, parameters, inputs):
        return 2 * super().forward_stack(parameters, inputs)


class HalfStep(optimizers.Adam):
    """Moves half as far as the optimiser it is made from."""

    def step(self, closure=None):
        before = self.param_groups[0]["params"][0].detach().clone()
        loss = super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].lerp_(before, 0.5)
        return loss


@pytest.mark.parametrize("part", [{"network": Doubled}, {"optimizer": HalfStep}], ids=["network", "optimiser"])
def test_what_is_made_from_ours_and_does_something_else_is_obeyed_either_way(part):
    ends = []
    for watching in ((), (Watches(),)):
        lit, data = build(**part)
        trainer_of(*watching).fit(lit, datamodule=data)
        ends.append(lit.stack.flat.detach())
    plain, data = build()
    trainer_of().fit(plain, datamodule=data)
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], plain.stack.flat)


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


# A warm-up


def plain_loop(lit, data, epochs, steps):
    """What `Warmup` is: the learning rate of step t is lr · min(t / steps, 1)."""
    network, t = lit.stack.networks[0], 0
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(epochs):
        for x, y in data.train_dataloader():
            optimizer.param_groups[0]["lr"] = 0.01 * min(t / steps, 1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[0]), y[0]).backward()
            optimizer.step()
            t += 1
    return network


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_learning_rate_rises_step_by_step(steps):
    lit, data = build(replicas=1)
    lit.warmup_steps = steps
    trainer = trainer_of()
    trainer.fit(lit, datamodule=data)
    expected = plain_loop(*build(replicas=1)[:1], data, 4, steps)
    for found, wanted in zip(lit.stack.networks[0].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert watched(trainer) is (steps > 20)  # once it is over, nothing happens in a step any more


def test_a_warm_up_goes_on_where_it_stopped(tmp_path):
    def fitted(epochs, checkpoint=None):
        lit, data = build()
        lit.warmup_steps = 12
        trainer = trainer_of(max_epochs=epochs)
        trainer.fit(lit, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer, lit

    for half in (1, 3):  # within it, and after it
        fitted(half)[0].save_checkpoint(tmp_path / "half.ckpt")
        _, resumed = fitted(4, tmp_path / "half.ckpt")
        assert same(dict(resumed.state_dict()), dict(fitted(4)[1].state_dict()))


def test_a_warm_up_is_no_negative_number():
    with pytest.raises(ValueError, match="warmup_steps=-1: a whole number, 0 or more"):
        LitModularArithmetic(
            ReplicaStack([ModularMLP(7, [9])]), replicas=[{}], optimizer=optimizers.Adam, warmup_steps=-1
        )
