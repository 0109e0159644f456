import json
from types import SimpleNamespace

import numpy as np
import pytest

import lit_grok
from callbacks import GeneralisedCallback
from lit_grok.modules import LitClassifier
from lit_grok.recorder import Recorder

STOP = ("+callbacks/extra@callbacks.stop=generalised", "callbacks.stop.epochs=10")
# One that groks and, with more weight decay, one that collapses.
BOTH = ("P=23", "network.hidden=[64]", "loss=mse", "learning_rate=0.01", "weight_decay=[1e-4,1e-3]", "epochs=200")


class Lit(SimpleNamespace):
    """What the callback asks of a module."""

    outcomes = LitClassifier.outcomes


def ends(callback, train, test, diverged=None, every=1):
    """The epoch at which a callback ends a training with these accuracies, shape (n, R), or None."""
    replicas = len(train[0])
    module = Lit(
        recorder=Recorder([{"init_scale": 1.0, "seed": r} for r in range(replicas)]),
        replicas=[{}] * replicas,
        chance=0.1,
        generalisation=0.9,
        diverged=[None] * replicas,
    )
    trainer = SimpleNamespace(current_epoch=0, should_stop=False)
    callback.on_train_start(trainer, module)
    for epoch in range(1, every * len(train) + 1):
        trainer.current_epoch = epoch - 1
        if epoch % every == 0:
            k = epoch // every - 1
            for name, values in (("train_accuracy", train[k]), ("test_accuracy", test[k]), ("weight_norm", [3.0])):
                module.recorder.add(f"evaluation/{name}", np.broadcast_to(values, replicas), epoch)
            if diverged == epoch:
                module.diverged[0] = epoch
        callback.on_train_epoch_end(trainer, module)
        if trainer.should_stop:
            return epoch
    return None


def one(*accuracies):
    return [[a] for a in accuracies]


def test_it_has_to_stay():
    test = one(0.1, 0.95, 0.8, 0.9, 1, 1, 1)
    train = one(*[1.0] * len(test))
    found = {epochs: ends(GeneralisedCallback(epochs), train, test) for epochs in (0, 1, 2, 3, 4)}
    assert found == {0: 2, 1: 5, 2: 6, 3: 7, 4: None}


def test_only_evaluations_count():
    test = one(0.1, 0.95, 0.96, 0.97)
    assert ends(GeneralisedCallback(15), one(1, 1, 1, 1), test, every=10) == 40


def test_a_collapse_is_the_verdict_of_the_project():
    train, test = one(0.1, 0.1, 1, 0.1, 0.1, 0.1), one(*[0.1] * 6)
    assert ends(GeneralisedCallback(2), train, test) == 6  # not at first, when it has not yet learnt anything
    assert ends(GeneralisedCallback(2), train[:3] + one(0.1, 1, 0.1), test) is None  # nor when it comes back


def test_all_replicas_have_to_be_settled():
    train, test = [[1, 1]] * 5, [[0.2, 0.95], [0.2, 1], [0.2, 1], [0.2, 1], [0.2, 1]]
    assert ends(GeneralisedCallback(2), train, test) is None
    assert ends(GeneralisedCallback(2), train, test, diverged=2) == 3


def test_an_impossible_number_of_epochs(command):
    result = command(*command.MOD_ADD, *STOP[:1], "callbacks.stop.epochs=-1")
    assert (result.code, result.err) == (2, "error: GeneralisedCallback.epochs=-1: must be at least 0\n")


def test_a_run_that_is_ended_is_complete(command):
    run = command.mod_add(*BOTH, *STOP, "+callbacks.constant._target_=tests.helpers.Constant")
    records, found = json.loads((run / "summary.json").read_text()), lit_grok.open_run(run)
    assert [(record["status"], record["stopped"]) for record in records] == [("grokked", True), ("collapsed", True)]
    (end,) = {record["epochs"] for record in records}
    above = found.evaluation.test_accuracy.values[0] >= 0.9
    assert len(above) == end + 1 < 200
    assert above[-11:].all()
    assert not above[-12]  # it was the one to wait for
    assert found.constant.number.values.tolist() == [1.5, 1.5]  # measured at the end
    assert found.t_grok.values.tolist() == [pytest.approx(records[0]["t_grok"]), pytest.approx(np.nan, nan_ok=True)]

    result = command("resume=run", "epochs=300")
    assert result.code == 0
    assert f"run is complete; a stopping rule has ended it after {end} epochs" in result.out + result.err
    (run / "summary.json").unlink()  # as if it had been killed just before that was written
    assert command("resume=run").code == 0
    assert json.loads((run / "summary.json").read_text())[0]["epochs"] == end
