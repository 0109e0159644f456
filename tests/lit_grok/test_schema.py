import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import lightning
import pytest
import torch

from lit_grok import schema
from lit_grok.optimizers import Adam
from lit_grok.schema import Count, Number, Seed, Share, UsageError, check
from lit_grok.trainer import Trainer

# One value against one annotation

RIGHT = [
    (int, 3, 3),
    (int, 1e3, 1000),
    (int, "12", 12),
    (float, 0.5, 0.5),
    (float, 1, 1),
    (float, "1e-4", 1e-4),
    (bool, True, True),
    (bool, "yes", True),
    (bool, "off", False),
    (bool, 0, False),
    (str, "a", "a"),
    (str, 2026, "2026"),
    (int | None, None, None),
    (Optional[int], 4, 4),  # noqa: UP045
    (Union[int, float], 1.5, 1.5),  # noqa: UP007
    (int | str, "5", "5"),
    (Literal["add", "subtract"], "add", "add"),
    (Sequence[int], [512, 3.0], [512, 3]),
    (list[str], ["a", 1], ["a", "1"]),
    (tuple[float, float], [0.9, 0.99], [0.9, 0.99]),
    (tuple[int, ...], [1, 2], [1, 2]),
    (Iterable[Literal["a", "b"]], ["b"], ["b"]),
    (dict[str, int], {"a": 1.0}, {"a": 1}),
    (Mapping[str, Any], {"a": [1]}, {"a": [1]}),
    (list, [1, "a"], [1, "a"]),
    (Path, "data", "data"),
    (Path | None, None, None),
    (Any, {"what": "ever"}, {"what": "ever"}),
    (Annotated[int, {"unhashable": "metadata"}], 2.0, 2),
    (Count, 1, 1),
    (Number, 0, 0),
    (Share, 1, 1),
    (Seed, 2**32 - 1, 2**32 - 1),
]


@pytest.mark.parametrize(("hint", "value", "expected"), RIGHT, ids=str)
def test_what_fits_is_spelled_as_the_annotation_says(hint, value, expected):
    found = check("key", value, hint)
    assert found == expected
    assert type(found) is type(expected)


WRONG = [
    (int, "abc", "key=abc: must be a whole number"),
    (int, 1.5, "key=1.5: must be a whole number"),
    (int, True, "key=true: must be a whole number"),
    (int, None, "key=null: must be a whole number"),
    (int, [1], "key=[1]: must be a whole number"),
    (float, "fast", "key=fast: must be a number"),
    (float, False, "key=false: must be a number"),
    (float | int | None, "x", "key=x: must be a number or null"),
    (bool, "maybe", "key=maybe: must be true or false"),
    (bool, 2, "key=2: must be true or false"),
    (str, True, "key=true: must be a string"),
    (str | None, ["a"], "key=[a]: must be a string or null"),
    (Literal["add", "subtract"], "ad", "key=ad: must be one of add, subtract"),
    (Sequence[int], 512, "key=512: must be a list of whole numbers, such as [512]"),
    (Sequence[int], "512", "key=512: must be a list of whole numbers, such as [512]"),
    (Sequence[int], "abc", "key=abc: must be a list of whole numbers"),
    (Sequence[int], [1, "a"], "key=[1,a]: must be a list of whole numbers"),
    (Sequence[str], "grok", "key=grok: must be a list of strings, such as [grok]"),
    (Sequence[Literal["a", "b"]], ["c"], "key=[c]: must be a list of a, b"),
    (dict[str, int], 5, "key=5: must be a mapping {KEY: VALUE}"),
    (Count, 0, "key=0: must be a whole number, 1 or more"),
    (Number, float("nan"), "key=nan: must be a finite number, 0 or more"),
    (Number, -1, "key=-1: must be a finite number, 0 or more"),
    (Share, 1.5, "key=1.5: must be a number between 0 and 1"),
    (Seed, 2**32, "key=4294967296: must be a whole number from 0 to 4294967295"),
]


@pytest.mark.parametrize(("hint", "value", "message"), WRONG, ids=str)
def test_what_does_not_fit_is_refused_by_key_and_type(hint, value, message):
    with pytest.raises(UsageError) as error:
        check("key", value, hint)
    assert str(error.value) == message


#: What a configuration cannot spell without a _target_, so that nobody knows what the class makes of it.
UNSPELLABLE = [Callable, Callable[[int], int], torch.Tensor, torch.device, timedelta, type, Sequence[torch.Tensor]]


@pytest.mark.parametrize("hint", [*UNSPELLABLE, torch.device | None, typing.TypeVar("T")], ids=str)
def test_annotations_that_say_nothing_about_configurations_refuse_nothing(hint):
    assert check("key", "cpu", hint) == "cpu"
    assert check("key", 3, hint) == 3


@pytest.mark.parametrize("hint", UNSPELLABLE, ids=str)
def test_in_this_project_what_can_only_be_an_object_must_be_one(hint):
    with pytest.raises(UsageError, match=r"^key=cpu: must be an object: give key\._target_"):
        check("key", "cpu", hint, strict=True)
    assert check("key", None, hint, strict=True) is None
    assert check("key", {"_target_": "torch.device"}, hint, strict=True) == {"_target_": "torch.device"}


def test_the_spellable_part_of_a_union_counts():
    assert check("lr", 0.1, float | torch.Tensor) == 0.1
    with pytest.raises(UsageError, match=r"^lr=abc: must be a number"):
        check("lr", "abc", float | torch.Tensor)


# What a class takes


def test_options_of_the_projects_classes_are_followed_to_where_they_go():
    for target, name, hint in ((Trainer, "max_epochs", int | None), (Adam, "betas", tuple)):
        known, others = schema.parameters(target)
        assert not others
        assert check(name, None if name == "max_epochs" else [0.9, 0.999], known[name][0]) is not Any
        assert typing.get_origin(known[name][0]) in (hint, Union, typing.get_origin(hint)), name


class Pops(lightning.Callback):
    def __init__(self, **options):
        self.colour = options.pop("colour")
        super().__init__(**options)


class Closed(lightning.Callback):
    def __init__(self, colour: str, hidden: "NotThere" = 3):  # noqa: F821
        self.colour = colour


class Defaulted:
    def __init__(self, size: int = None, device: torch.device = "cpu", *, deep: dict[str, int] = {}):  # noqa: B006, RUF013
        self.size = size


def take(value: int):
    return value


HERE = "tests.lit_grok.test_schema"
COMPLETE = {name: {"_target_": f"{HERE}.take", "value": 1} for name in ("network", "datamodule", "module", "optimizer")}
COMPLETE |= {"logger": {"_target_": f"{HERE}.take"}, "trainer": {"_target_": f"{HERE}.take"}}


def checked(**nodes):
    """What becomes of some nodes within an otherwise complete configuration."""
    config = COMPLETE | nodes
    schema.check_targets(config, config)
    return {name: config[name] for name in nodes}


def test_another_ones_options_are_his_own():
    assert checked(mine={"_target_": f"{HERE}.Pops", "colour": [1, {"a": "b"}], "anything": None})


def test_annotations_that_cannot_be_resolved_refuse_nothing():
    assert checked(mine={"_target_": f"{HERE}.Closed", "colour": 5, "hidden": "x", "more": 1})


def test_a_default_is_never_refused():
    node = {"_target_": f"{HERE}.Defaulted", "size": None, "device": "cpu", "deep": {}}
    assert checked(mine=dict(node))["mine"] == node
    with pytest.raises(UsageError, match=r"^mine\.size=abc: must be a whole number"):
        checked(mine={**node, "size": "abc"})


def test_values_are_put_right_in_place_and_everywhere():
    found = checked(
        mine={"_target_": f"{HERE}.Defaulted", "size": 1e3},
        nested={"list": [{"_target_": f"{HERE}.take", "value": "3"}]},
    )
    assert found["mine"]["size"] == 1000
    assert type(found["mine"]["size"]) is int
    assert found["nested"]["list"][0]["value"] == 3
    with pytest.raises(UsageError, match=r"^nested\.list\.0\.size=x: must be a whole number"):
        checked(nested={"list": [{"_target_": f"{HERE}.Defaulted", "size": "x"}]})


def test_the_message_names_the_key_that_was_typed():
    config = COMPLETE | {"P": "eleven", "mine": {"_target_": f"{HERE}.Defaulted", "size": "eleven"}}
    written = config | {"mine": {"_target_": f"{HERE}.Defaulted", "size": "${P}"}}
    with pytest.raises(UsageError, match=r"^P=eleven: must be a whole number$"):
        schema.check_targets(config, written)


def test_an_argument_that_a_class_does_not_have():
    with pytest.raises(
        UsageError, match=r"^mine\.sizes: no such key \(did you mean mine\.size\?\); allowed: mine\.size, "
    ):
        checked(mine={"_target_": f"{HERE}.Defaulted", "sizes": 3})


@pytest.mark.parametrize("name", list(COMPLETE))
def test_what_every_run_needs_is_an_object(name):
    with pytest.raises(UsageError, match=f"^{name}: give {name}._target_, a class, and its arguments"):
        checked(**{name: {"value": 1}})


#: Third-party targets with arguments as people write them; none may be refused.
THIRD_PARTY = [
    {"_target_": "lightning.Trainer", "devices": "auto", "precision": 32, "max_time": "00:12:00:00"},
    {"_target_": "lightning.Trainer", "devices": [0], "precision": "bf16-mixed", "limit_train_batches": 0.5},
    {"_target_": "lightning.Trainer", "strategy": "ddp", "logger": False, "profiler": "simple", "max_epochs": -1},
    {"_target_": "lightning.Trainer", "max_time": {"hours": 1}, "plugins": None, "val_check_interval": 10},
    {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "test_loss", "min_delta": 1, "mode": "min"},
    {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "somewhere", "save_top_k": -1},
    {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "epoch"},
    {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1, "betas": [0.9, 0.98], "eps": 1e-8, "amsgrad": False},
    {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0, "nesterov": False},
    {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 10, "gamma": 1},
    {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2, "bias": True, "device": "cpu"},
    {"_target_": "torch.nn.Transformer", "d_model": 8, "activation": "gelu"},
    {"_target_": "builtins.dict", "a": 1},
    {"_target_": "functools.partial", "_args_": [1]},
    {"_target_": "torch.device", "type": "cpu"},
    {"_target_": "collections.Counter", "a": 3},
]


@pytest.mark.parametrize("node", THIRD_PARTY, ids=lambda node: node["_target_"])
def test_other_peoples_classes_are_not_refused_falsely(node):
    assert checked(theirs=dict(node))["theirs"] == node


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "lightning.Trainer", "max_epochs": "many"}, "max_epochs=many: must be a whole number or null"),
        ({"_target_": "lightning.Trainer", "maxepochs": 3}, r"maxepochs: no such key \(did you mean theirs.max_epochs"),
        ({"_target_": "torch.optim.Adam", "lr": "fast"}, "lr=fast: must be a number"),
        ({"_target_": "torch.optim.Adam", "betas": 0.9}, "betas=0.9: must be a list of numbers, such as"),
        ({"_target_": "torch.optim.SGD", "nesterov": "maybe"}, "nesterov=maybe: must be true or false"),
    ],
)
def test_other_peoples_classes_are_checked_where_they_say_what_they_take(node, message):
    with pytest.raises(UsageError, match=f"^theirs.{message}"):
        checked(theirs=node)


# Targets

LAB = """
class LargestWeightCallback:
    pass
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {
        "schema_lab": LAB,
        "schema_syntax": "x = 1\nclass X(:\n",
        "schema_raises": "x = 1\n1 / 0\n",
        "schema_imports": "import no_such_package\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("schema_lab.LargestWeigth", r"schema_lab has no LargestWeigth \(did you mean LargestWeightCallback\?\)"),
        ("schema_lab.Nonsense", "schema_lab has no Nonsense; it has LargestWeightCallback"),
        ("schema_lb.X", r"there is no module schema_lb, .* \(did you mean schema_lab\?\)"),
        ("schema_lab", "this is a module: name a class in it"),
        ("schema_syntax.X", "schema_syntax cannot be imported: .*schema_syntax.py, line 2: SyntaxError: "),
        ("schema_raises.X", "schema_raises cannot be imported: .*schema_raises.py, line 2: ZeroDivisionError: "),
        ("schema_imports.X", "schema_imports cannot be imported: it imports no_such_package, which is not installed"),
        ("datamodules.IsingDatamodule", r"datamodules has no IsingDatamodule \(did you mean IsingDataModule\?\)"),
        ("torch.optim.Adamm", r"torch\.optim has no Adamm \(did you mean Adam\?\)"),
        ("", "not a dotted name"),
        ("torch..Adam", "not a dotted name"),
        ("torch.optim.Adam.stepp", "torch.optim.Adam has no stepp"),
    ],
)
def test_a_target_that_cannot_be_had_says_what_is_wrong(lab, target, reason):
    with pytest.raises(UsageError, match=f"^callbacks.x._target_={target}: {reason}"):
        schema.locate(target, "callbacks.x._target_")


def test_targets_that_are_there(lab):
    assert schema.locate("schema_lab.LargestWeightCallback", "key").__name__ == "LargestWeightCallback"
    assert schema.locate("torch.nn.Module.forward", "key") is torch.nn.Module.forward
    assert schema.locate("datamodules.IsingDataModule", "key").__module__ == "datamodules.ising"


# The keys at the top


def keys(**changes):
    plain = {"task": "t", "init_scale": 1, "weight_decay": 0, "seed": 0, "seeds": {"init": None}, "epochs": 1}
    plain |= {
        "learning_rate": 0.1,
        "batch_size": 1,
        "warmup_steps": 0,
        "loss": "mse",
        "label_noise": 0,
        "log_every": 1,
        "threads": 1,
    }
    plain["replicas_at_once"] = None
    plain |= {"checkpoint_every": 1, "accelerator": "auto", "run_dir": "run", "resume": None, "dry_run": False}
    return plain | {name: {} for name in ("callbacks", *COMPLETE)} | changes


def test_every_key_has_a_type_and_is_needed():
    config = keys(epochs=1e3, dry_run="yes", P=7)
    schema.check_keys(config)
    assert (config["epochs"], config["dry_run"], config["P"]) == (1000, True, 7)
    for key in schema.Keys.__annotations__:
        with pytest.raises(UsageError, match=f"^{key}: missing"):
            schema.check_keys({name: value for name, value in keys().items() if name != key})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": "many"}, "epochs=many: must be a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number, 1 or more or null"),
        ({"label_noise": 2}, "label_noise=2: must be a number between 0 and 1"),
        ({"run_dir": ""}, "run_dir=: must be a directory"),
        ({"dry_run": "maybe"}, "dry_run=maybe: must be true or false"),
        ({"seeds": 3}, "seeds=3: must be a mapping {KEY: VALUE} or null"),
        ({"network": 5}, "network=5: must be an object, such as {_target_: my_lab.MyClass}"),
    ],
)
def test_keys_of_another_type(change, message):
    with pytest.raises(UsageError) as error:
        schema.check_keys(keys(**change))
    assert str(error.value) == message


def test_an_annotation_may_bring_its_own_words():
    even = Annotated[int, schema.Field(multiple_of=2, description="an even number")]
    with pytest.raises(UsageError, match=r"^side=3: must be an even number or null$"):
        check("side", 3, even | None)
