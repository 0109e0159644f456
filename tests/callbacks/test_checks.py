import pytest
from torch import nn

from callbacks import (
    AnalysisError,
    EvaluationCallback,
    FeatureCorrelationCallback,
    IPRCallback,
    WeightStatisticsCallback,
)
from callbacks.checks import check_callbacks
from lit_grok.networks import IsingCNN

CONFIG = {"datamodule": {"_target_": "datamodules.IsingDataModule"}}


def test_all_that_the_network_cannot_serve_are_named_together():
    found = {"a": FeatureCorrelationCallback(), "weights": WeightStatisticsCallback(), "b": IPRCallback()}
    with pytest.raises(AnalysisError) as refused:
        check_callbacks({"evaluation": EvaluationCallback(), **found}, nn.Linear(2, 2), CONFIG)
    message = str(refused.value)
    assert "callbacks.a: FeatureCorrelationCallback needs" in message
    assert "callbacks.b: IPRCallback needs" in message
    assert message.endswith("or ~callbacks.a ~callbacks.b")
    assert "weights" not in message.replace("fourier_weights", "")


def test_what_is_served_passes_and_the_analyses_are_returned():
    found = {"evaluation": EvaluationCallback(), "features": FeatureCorrelationCallback()}
    assert check_callbacks(found, IsingCNN(8), CONFIG)["features"] is found["features"]


def test_the_refusal_comes_before_any_data(command, monkeypatch):
    def made(*_):
        raise AssertionError("data were made")

    monkeypatch.setattr("datamodules.ModularArithmeticDataModule.prepare_data", made)
    monkeypatch.setattr("datamodules.ModularArithmeticDataModule.dataset", made)
    first = "+callbacks.one._target_=callbacks.FeatureCorrelationCallback"
    result = command(*command.MOD_ADD, "run_dir=run", first, first.replace("one", "two"))
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.rstrip().endswith("~callbacks.one ~callbacks.two")
