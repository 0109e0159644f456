import re

import pytest
from hydra.errors import InstantiationException

from lit_grok import cli


def ask(**changes):
    return {"init_scale": 1.0, "seed": 0, "weight_decay": 0.1, "seeds": {}, **changes}


# Which replicas are asked for


def test_the_product_in_the_order_scale_decay_seed():
    found = cli.replicas(ask(init_scale=[10, 1], seed=[3, 0], weight_decay=[0, 1e-3]))
    assert [(r["init_scale"], r["weight_decay"], r["seed"]) for r in found] == [
        *[(10.0, 0.0, 3), (10.0, 0.0, 0), (10.0, 1e-3, 3), (10.0, 1e-3, 0)],
        *[(1.0, 0.0, 3), (1.0, 0.0, 0), (1.0, 1e-3, 3), (1.0, 1e-3, 0)],
    ]


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(4, [4]), ("0:3", [0, 1, 2]), ([5, "0:2", "7:8"], [5, 0, 1, 7]), ([0], [0]), (2**32 - 1, [2**32 - 1])],
)
def test_seeds_are_numbers_lists_and_ranges(seed, expected):
    assert [r["seed"] for r in cli.replicas(ask(seed=seed))] == expected


def test_streams_follow_the_seed_unless_given():
    found = cli.replicas(ask(seed="0:2", seeds={"init": None, "data": 0, "order": 9}))
    assert [(r["seed_init"], r["seed_data"], r["seed_order"]) for r in found] == [(0, 0, 9), (1, 0, 9)]


BAD = [-1, float("nan"), float("inf"), "abc", True, None, {"a": 1}]


@pytest.mark.parametrize("key", ["init_scale", "weight_decay"])
@pytest.mark.parametrize("value", BAD)
def test_numbers_that_are_not_finite_or_negative(key, value):
    for given in (value, [1.0, value]):
        with pytest.raises(cli.UsageError, match=f"^{key}=.*: must be a finite number, 0 or more"):
            cli.replicas(ask(**{key: given}))


@pytest.mark.parametrize("value", [-1, 1.5, "abc", "1:", "a:b", True, 2**32])
def test_seeds_that_are_not_whole(value):
    with pytest.raises(cli.UsageError, match=r"^seed=.*: must be a whole number"):
        cli.replicas(ask(seed=value))
    with pytest.raises(cli.UsageError, match=r"^seeds.data=.*: must be a whole number"):
        cli.replicas(ask(seeds={"data": value}))


@pytest.mark.parametrize("key", ["init_scale", "weight_decay", "seed"])
@pytest.mark.parametrize("value", [[], "3:3", "5:2"])
def test_empty_lists(key, value):
    with pytest.raises(cli.UsageError, match=f"^{key}=.*: an empty list"):
        cli.replicas(ask(**{key: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1, 1]}, "seed=[1,1]: has 1 twice"),
        ({"seed": ["0:3", 2]}, "seed=[0:3,2]: has 2 twice"),
        ({"init_scale": [1, 1.0], "seed": [0, 1]}, "init_scale=[1,1.0]: has 1 twice"),
        ({"weight_decay": [0.5, 1, 0.5]}, "weight_decay=[0.5,1,0.5]: has 0.5 twice"),
    ],
)
def test_the_same_replica_twice(changes, message):
    with pytest.raises(cli.UsageError, match=f"^{re.escape(message)}$"):
        cli.replicas(ask(**changes))


@pytest.mark.parametrize(
    "changes", [{"seed": "0:4000000000"}, {"seed": [3, f"0:{10**30}"]}, {"init_scale": "0:100001"}]
)
def test_a_range_that_no_machine_holds_is_not_counted_out(changes):
    with pytest.raises(cli.UsageError, match=r"=\d+:\d+: \d+ replicas; no more than 100000 train at once"):
        cli.replicas(ask(**changes))


def test_nor_is_such_a_product():
    asked = ask(seed="0:1000", init_scale="0:101")
    with pytest.raises(
        cli.UsageError, match=r"^init_scale, weight_decay and seed: 101000 replicas; no more than 100000 "
    ):
        cli.replicas(asked)
    assert len(cli.replicas(ask(seed=f"0:{cli.MOST_REPLICAS}"))) == cli.MOST_REPLICAS


# The table at the end


def record(**changes):
    found = {"init_scale": 10.0, "seed": 0, "weight_decay": 0.1, "status": "undertrained", "t_train": 14_700}
    found |= {"t_test": 100_000, "train_accuracy": 1 / 3, "test_accuracy": 1.0, "weight_norm": 123.456}
    return found | changes


def test_the_table_fits_80_columns_and_says_what_differs():
    alike = [record(), record(seed=999, init_scale=0.125)]
    differing = [*alike, record(weight_decay=3e-05)]
    for records, header in ((alike, False), (differing, True)):
        lines = cli.table(records).splitlines()
        assert len(lines) == 2 + len(records)
        assert max(map(len, lines)) <= 80
        assert ("decay" in lines[1]) == header
    assert lines[-1].split() == ["10", "0", "3e-05", "undertrained", "14700", "100000", "0.333", "1.000", "123.5"]


def test_what_is_undefined_is_a_dash_in_the_table():
    lines = cli.table([record(t_train=None, t_test=None, train_accuracy=float("nan"))]).splitlines()
    assert lines[-1].split() == ["10", "0", "undertrained", "–", "–", "nan", "1.000", "123.5"]


# One line


def test_exit_with_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.exit_with("two\nlines  and\tspace")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: two lines and space\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.usage_errors():
        _ = 1 / 0


def test_a_failure_inside_a_constructor_is_a_bug_too(tmp_path):
    def build():
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            raise InstantiationException("Error in call to target") from error

    with pytest.raises(ZeroDivisionError), cli.bad_input(tmp_path):
        build()


def test_bad_input_takes_back_an_empty_directory_and_no_other(tmp_path):
    for name, content in (("empty", False), ("full", True)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "file").touch()
        with pytest.raises(cli.UsageError, match="wrong"), cli.bad_input(tmp_path / name):
            raise ValueError("wrong")
    assert not (tmp_path / "empty").exists() or not list((tmp_path / "empty").iterdir())
    assert (tmp_path / "full" / "file").exists()


def test_messages_go_above_the_bar_and_warnings_to_stderr(capsys, monkeypatch):
    before = cli.log.handlers, cli.log.propagate, cli.log.level
    try:
        cli.log_to_console()
        cli.log.info("hello")
        cli.log.debug("for the log alone")
        cli.log.warning("careful")
    finally:
        cli.log.handlers, cli.log.propagate, cli.log.level = before
    out, err = capsys.readouterr()
    assert out == "hello\n"
    assert err == "warning: careful\n"
