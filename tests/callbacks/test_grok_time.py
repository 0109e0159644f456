import json
from types import SimpleNamespace

import numpy as np
import pytest

import lit_grok
from callbacks import GrokTimeCallback
from callbacks.grok_time import log
from lit_grok.measures.grokking import grokking_time
from lit_grok.recorder import Recorder, outcomes


def module(curves):
    """A module whose replicas have these accuracy curves, (train, test) each."""
    recorder = Recorder([{"init_scale": 1.0, "seed": r} for r in range(len(curves))])

    class Module(SimpleNamespace):
        @property
        def outcomes(self):
            return outcomes(recorder, chance=0.1, generalisation=0.9, diverged=[None] * len(curves))

    lit = Module(recorder=recorder, generalisation=0.9, loggers=[], interrupted=False)
    lit.label, lit.replicas = (lambda r: f"seed={r}"), recorder.replicas
    lit.steps = list(zip(*(zip(*pair, strict=True) for pair in curves), strict=True))
    return lit


def play(callback, lit, first=0):
    for epoch, values in enumerate(lit.steps):
        lit.recorder.add("evaluation/train_accuracy", [train for train, _ in values], epoch)
        lit.recorder.add("evaluation/test_accuracy", [test for _, test in values], epoch)
        lit.recorder.add("evaluation/weight_norm", [3.0 for _ in values], epoch)
        if epoch >= first and epoch:
            callback.on_train_epoch_end(SimpleNamespace(current_epoch=epoch - 1), lit)


@pytest.fixture
def announced(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", "lit_grok")
    return lambda: [record.getMessage() for record in caplog.records]


ANY = "+module.generalisation=0"  # whatever a network of a few epochs can do counts as generalising
GROKS = ([0.1, 1, 1, 1, 1, 1], [0.1, 0.1, 0.2, 0.5, 0.95, 1])
STEADY = ([0.1, 0.5, 1, 1, 1, 1], [0.1, 0.5, 0.96, 1, 1, 1])
MEMORISES = ([0.1, 1, 1, 1, 1, 1], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2])


def test_each_replica_is_announced_once_when_it_happens(announced):
    play(GrokTimeCallback(), module([GROKS, STEADY, MEMORISES]))
    assert announced() == [
        "seed=1: test accuracy 0.960 at epoch 2, train accuracy up since epoch 2: steady learning",
        "seed=0: test accuracy 0.950 at epoch 4, train accuracy up since epoch 1: grokking",
    ]


def test_a_resumed_callback_does_not_repeat_itself(announced):
    first, lit = GrokTimeCallback(), module([GROKS, STEADY])
    lit.steps = lit.steps[:4]
    play(first, lit)
    second = GrokTimeCallback()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    play(second, module([GROKS, STEADY]))
    assert [message[:6] for message in announced()] == ["seed=1", "seed=0"]


def test_single_precision_does_not_announce_what_the_verdict_does_not_see(announced):
    """0.95 in single precision is a little less than 0.95."""
    nearly = [np.float32(a) for a in (0.1, 0.1, 0.2, 0.95, 0.95, 1)]
    callback, lit = GrokTimeCallback(), module([(GROKS[0], nearly)])
    lit.generalisation = 0.95
    for epoch, values in enumerate(lit.steps):
        for name, value in zip(("train", "test"), values[0], strict=True):
            lit.recorder.add(f"evaluation/{name}_accuracy", np.array([value], np.float32), epoch)
        lit.recorder.add("evaluation/weight_norm", [3.0], epoch)
        if epoch:
            callback.on_train_epoch_end(SimpleNamespace(current_epoch=epoch - 1), lit)
    assert announced() == ["seed=0: test accuracy 1.000 at epoch 5, train accuracy up since epoch 1: grokking"]


def test_without_an_evaluation_at_this_epoch_nothing_is_said(announced):
    callback, lit = GrokTimeCallback(), module([STEADY])
    play(GrokTimeCallback(), lit)
    before = len(announced())
    callback.on_train_epoch_end(SimpleNamespace(current_epoch=17), lit)
    assert len(announced()) == before


def test_the_verdict_is_read_off_each_replicas_own_curves(command):
    run = command.mod_add("init_scale=[1,10]", "seed=0:2", "epochs=30", "P=7", "network.hidden=[64]", ANY)
    results = lit_grok.open_run(run)
    records = json.loads((run / "summary.json").read_text())
    for r, record in enumerate(records):
        one = results.isel(replica=r)
        curves = one.evaluation
        expected = grokking_time(curves.epoch.values, curves.train_accuracy.values, curves.test_accuracy.values)
        for name in ("t_train", "t_test", "t_grok"):
            assert record[name] == one[name].item() == getattr(expected, name)
        assert record["status"] == one.status.item()
    assert len(np.unique(results.t_train)) > 1
    assert {results[name].units for name in ("t_train", "t_test", "t_grok")} == {"epochs"}


def test_results_and_summary_agree_on_where_a_run_ends(command):
    """The accuracy of a NaN network is a number, here the highest of the run."""
    run = command.ising(
        *("epochs=5", "seed=0:2", "learning_rate=0", "+callbacks.poison._target_=tests.helpers.Poison"),
        *("+callbacks.poison.epoch=2", "+callbacks.poison.replica=1"),
    )
    results = lit_grok.open_run(run)
    records = json.loads((run / "summary.json").read_text())
    assert [record["status"] for record in records] == ["undertrained", "diverged"]
    assert results.status.values.tolist() == ["undertrained", "diverged"]
    assert results.t_test.isnull().all()
    for r, record in enumerate(records):
        one = results.isel(replica=r)
        curves = one.evaluation.to_dataset()
        sound = curves.isel(epoch=curves.epoch < (3 if r else 10))
        expected = grokking_time(sound.epoch.values, sound.train_accuracy.values, sound.test_accuracy.values)
        assert record["t_train"] == one.t_train.item() == expected.t_train
        assert (record["t_test"], record["t_grok"]) == (None, None)
        assert record["train_accuracy"] == sound.train_accuracy.values[-1]


@pytest.mark.parametrize("options", [("epochs=1",), ("optimizer=sgd", "weight_decay=0", "learning_rate=1e-6")])
def test_a_young_network_has_not_collapsed(command, options):
    (record,) = json.loads((command.mod_add(*options) / "summary.json").read_text())
    assert record["status"] == "undertrained"


@pytest.mark.rendered
def test_one_figure_of_all_replicas(command):
    run = command.mod_add("seed=0:2")
    assert sorted(p.name for p in (run / "figures").iterdir()) == ["grok_time.pdf", "grok_time.png"]
    assert (run / "figures" / "grok_time.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "figures" / "grok_time.pdf").read_bytes()[:4] == b"%PDF"


def test_evaluation_must_come_before_it():
    lit = module([STEADY])
    with pytest.raises(ValueError, match="put EvaluationCallback before it"):
        GrokTimeCallback().on_train_start(SimpleNamespace(current_epoch=0), lit)
