import logging
import re
from types import SimpleNamespace

import pytest

from callbacks import ProgressCallback, progress
from lit_grok.recorder import Recorder


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.time)
    return now


def module(*accuracies):
    recorder = Recorder([{"init_scale": 1.0, "seed": r} for r in range(len(accuracies))])
    recorder.add("evaluation/train_accuracy", accuracies, 0)
    recorder.add("evaluation/test_accuracy", [a / 2 for a in accuracies], 0)
    return SimpleNamespace(recorder=recorder)


def run(callback, clock, lit, epochs, seconds_per_epoch, first=0):
    trainer = SimpleNamespace(current_epoch=first, max_epochs=epochs)
    callback.on_train_start(trainer, lit)
    for trainer.current_epoch in range(first, epochs):
        clock.time += seconds_per_epoch
        callback.on_train_epoch_end(trainer, lit)
    trainer.current_epoch = epochs
    callback.teardown(trainer, lit, "fit")


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(progress.log, "propagate", True)
    caplog.set_level(logging.INFO, "lit_grok")
    return lambda: [record.getMessage() for record in caplog.records]


def test_plain_lines_now_and_then_where_there_is_no_terminal(clock, lines):
    run(ProgressCallback(line_every=30), clock, module(0.5, 1.0), epochs=100, seconds_per_epoch=1)
    assert len(lines()) == 3
    assert lines()[0] == "epoch 30/100  1.0 epochs/s  train 0.500–1.000  test 0.250–0.500  01:10 left"
    assert lines()[2].startswith("epoch 90/100 ")


def test_one_number_where_all_replicas_agree(clock, lines):
    run(ProgressCallback(line_every=30), clock, module(1.0), epochs=40, seconds_per_epoch=1)
    assert "train 1.000  test 0.500" in lines()[0]


def test_the_speed_of_a_resumed_run_is_that_of_this_session(clock, lines):
    run(ProgressCallback(line_every=30), clock, module(1.0), epochs=1100, seconds_per_epoch=1, first=1000)
    assert lines()[0].startswith("epoch 1030/1100  1.0 epochs/s")
    assert lines()[0].endswith("01:10 left")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (20, [("1.0", "03:09"), ("1.0", "02:39"), ("1.7", "01:03")]),
        (40, [("1.0", "02:49"), ("1.4", "01:33")]),  # a line is due before the speed is known
    ],
)
def test_the_speed_is_that_since_the_line_before_without_the_first_epoch(clock, lines, first, expected):
    callback, lit = ProgressCallback(line_every=30), module(1.0)
    trainer = SimpleNamespace(current_epoch=0, max_epochs=200)
    callback.on_train_start(trainer, lit)
    for trainer.current_epoch in range(100):
        clock.time += first if trainer.current_epoch == 0 else 1 if trainer.current_epoch < 50 else 0.5
        callback.on_train_epoch_end(trainer, lit)
    known = [re.search(r"([.0-9]+) epochs/s .* ([:0-9]+) left", line) for line in lines()]
    assert [found.groups() for found in known if found] == expected
    assert (lines()[0] == "epoch 1/200  train 1.000  test 0.500") == (first == 40)


def test_a_bar_where_there_is_a_terminal(clock, lines, monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    run(ProgressCallback(refresh=0.2), clock, module(0.5, 1.0), epochs=100, seconds_per_epoch=0.05)
    shown = capsys.readouterr().err
    assert re.search(r"100/100 .*epoch/s.*train 0.500–1.000  test 0.250–0.500", shown)
    assert lines() == []


def test_the_bar_is_touched_seldom(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    callback, looked = ProgressCallback(refresh=0.2), []
    monkeypatch.setattr(progress, "_range", lambda *_: looked.append(1) or "")
    run(callback, clock, module(1.0), epochs=1000, seconds_per_epoch=0.001)
    assert len(looked) <= 2 * 5  # one second in all, both accuracies every 0.2 s
