"""What is read back may be damaged or somebody else's: nothing of it is executed, and the answer is one sentence."""

import copy
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lit_grok
from datamodules.ising import read_snapshots
from lit_grok import loggers, results
from lit_grok.files import ReadError

CHECKPOINT, PREVIOUS = "checkpoints/last.ckpt", "checkpoints/previous.ckpt"
TABLE = "csv/init_scale=1_seed=0.csv"


def few(examples):
    """So many examples, the same in every run, of a test whose fixtures may serve them all."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module")
def content():
    """The files of a run of two epochs, made by the first test that needs them."""
    return {}


@pytest.fixture
def run(command, content):
    """That run, as it was made, in the folder ``run`` of an empty folder."""
    if not content:
        options = ("P=7", "network.hidden=[8]", "seed=0:2", "epochs=2", "checkpoint_every=1", "logger=csv")
        made = command.mod_add(*options, "callbacks=base", *FIM)
        content.update({str(p.relative_to(made)): p.read_bytes() for p in made.rglob("*") if p.is_file()})
        assert {CHECKPOINT, PREVIOUS, TABLE, "config.yaml", "results.nc", "summary.json"} <= content.keys()
    restore(command.folder / "run", content)
    return command.folder / "run"


FIM = ("+callbacks.fim={_target_: callbacks.FIMTrajectoryCallback, every: 1}",)


def restore(folder, content):
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def files(folder, *besides):
    """Every file below a folder with its content, but for those."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in besides}


class Bomb:
    """A pickle that leaves a file behind where anything of it is executed."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """Where the payload of a hostile file would leave its mark; nothing does."""
    path = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()  # it would
    path.unlink()
    yield path
    assert not path.exists()


def bombs(marker):
    """The payload in everything that a pickle may come in."""
    saved, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"loops": Bomb(marker), "state_dict": {}}, saved)
    np.save(array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    np.savez(archive, bits=np.array([Bomb(marker)], dtype=object), temperatures=np.array([Bomb(marker)], dtype=object))
    legacy = io.BytesIO()
    torch.save({"loops": Bomb(marker)}, legacy, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickle.dumps(Bomb(marker)),
        "protocol 0": pickle.dumps([None, [[Bomb(marker), 1, 1.0]]], protocol=0),
        "torch": saved.getvalue(),
        "torch, legacy": legacy.getvalue(),
        "npy": array.getvalue(),
        "npz": archive.getvalue(),
        "yaml": f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]".encode(),
        "target": f"network: {{_target_: os.mknod, path: {marker}}}".encode(),
    }


BOMBS = ["pickle", "protocol 0", "torch", "torch, legacy", "npy", "npz", "yaml", "target"]

#: What may happen to any file; a function of its bytes.
damages = st.one_of(
    st.integers(0, 10**6).map(lambda n: lambda data: data[: n % len(data)]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4).map(
        lambda flips: lambda data: flipped(data, flips)
    ),
    st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=20)).map(
        lambda new: lambda data: data[: new[0] % len(data)] + new[1] + data[new[0] % len(data) :]
    ),
    st.integers(0, 10**6).map(lambda n: lambda data: data[: n % len(data)] + bytes(len(data) - n % len(data))),
)


def flipped(data, flips):
    array = bytearray(data)
    for position, mask in flips:
        array[position % len(data)] ^= mask
    return bytes(array)


def one_line(message, *names):
    assert len(str(message).splitlines()) == 1, message
    assert any(str(name) in str(message) for name in names), message


# Every reader by itself


def authors(path, entries=8, side=4):
    rng = np.random.default_rng(0)
    spins = [rng.choice([-1, 1], (side, side)) for _ in range(entries)]
    path.write_bytes(pickle.dumps(["snapshots", [[s, int(i > 3), 1.0 + i / 3] for i, s in enumerate(spins)]]))


def read_table(path):
    return loggers.CSVLogger(path).save()


#: File, how it is read, whether a change of its content is always noticed: by a checksum.
READERS = {
    "checkpoint": (CHECKPOINT, results.read_checkpoint, False),
    "results": ("results.nc", lambda path: lit_grok.open_run(path.parent), True),
    "configuration": ("config.yaml", lambda path: results.read_config(path.parent), False),
    "weights": ("weights.safetensors", lambda path: lit_grok.load_network(path.parent, seed=1), False),
    "network": ("config.yaml", lambda path: lit_grok.load_network(path.parent, seed=1), False),
    "table": (TABLE, loggers.CSVLogger, False),
    "snapshots": ("authors.pkl", read_snapshots, False),
}


@pytest.mark.parametrize("reader", READERS)
@few(40)
@given(damage=damages)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(run, reader, damage):
    name, read, sealed = READERS[reader]
    path = run / name
    if not path.exists():
        authors(path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    before = files(run)
    try:
        read(path)
        assert not sealed or path.read_bytes() == whole
    except (ReadError, FileNotFoundError) as error:
        one_line(error, path, run)
    finally:
        assert files(run) == before
        path.write_bytes(whole)


@pytest.mark.parametrize("reader", READERS)
def test_a_payload_is_never_executed(run, reader, marker):
    name, read, _ = READERS[reader]
    assert list(bombs(marker)) == BOMBS
    for bomb in (*bombs(marker).values(), b"", b"\0" * 1000):
        (run / name).write_bytes(bomb)
        try:
            read(run / name)
        except (ReadError, FileNotFoundError) as error:
            one_line(error, run / name, run)
        else:
            assert reader == "configuration"  # plain YAML, which calls nothing
            assert bomb == bombs(marker)["target"]


@pytest.mark.parametrize("reader", READERS)
def test_a_directory_in_the_place_of_a_file(run, reader):
    name, read, _ = READERS[reader]
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(ReadError) as refused:
        read(run / name)
    one_line(refused.value, run / name)


# A run that goes on


def resume(command, epochs=3):
    return command("resume=run", f"epochs={epochs}")


REFUSED = {"none": (CHECKPOINT, PREVIOUS), "config": ("config.yaml",), "table": (TABLE,)}


@pytest.mark.parametrize("what", ["empty", "directory", *BOMBS])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_run_goes_on_from_is_refused_in_one_sentence(command, run, marker, kind, what):
    for name in REFUSED[kind]:
        if what == "directory":
            (run / name).unlink()
            (run / name).mkdir()
        else:
            (run / name).write_bytes(b"" if what == "empty" else bombs(marker)[what])
    before = files(run, "train.log")
    result = resume(command)
    assert result.code in (1, 2)
    error = result.err.splitlines()[-1]
    assert error.startswith("error: ")
    one_line(error, *(f"run/{name}" for name in REFUSED[kind]))
    assert len(result.err.splitlines()) == len(REFUSED[kind])  # of two checkpoints both are told
    assert files(run, "train.log") == before


#: Changes of a checkpoint that leave it well formed: the path to a value, and what is put there (None: the key goes).
ANOTHER = {
    "loops.fit_loop.epoch_progress.total.ready": -1,
    "loops.fit_loop.epoch_loop.batch_progress.current.completed": "one",
    "loops.fit_loop.epoch_loop.batch_progress.is_last_batch": None,
    "loops.fit_loop.epoch_loop.automatic_optimization.optim_progress": {},
    "state_dict.stack.flat": torch.zeros(2, 3),
    "optimizer_states.0.param_groups": [],
    "optimizer_states.0.param_groups.0.lr": "fast",
    "optimizer_states.0.param_groups.0.betas": (0.9,),
    "optimizer_states.0.param_groups.0.eps": float("nan"),
    "optimizer_states.0.param_groups.0.params": [0, 1],
    "optimizer_states.0.state.0.exp_avg": torch.zeros(1, 208),
    "optimizer_states.0.state.0.exp_avg_sq": None,
    "optimizer_states.0.state.0.step": torch.zeros(2),
    "optimizer_states.0.state": {},
    "optimizer_states": [],
    "finite": torch.zeros(2, 208, dtype=torch.float64),
    "diverged": [None],
    "callbacks.CheckpointCallback.seconds": float("inf"),
    "callbacks.CheckpointCallback": None,
    "recorder.series.evaluation/train_loss.values": torch.zeros(3, 1),
    "recorder.series.evaluation/train_loss.epochs": [0, 1, 1],
    "recorder.series.evaluation/train_accuracy": None,
    "recorder.coordinates": None,
    "recorder": {"series": {}, "coordinates": {}},
}


def changed(state, path, value):
    """A tree with another value at a dotted path; keys may hold dots themselves."""
    if path in state:
        if value is None:
            del state[path]
        else:
            state[path] = value
        return
    for key in list(state) if isinstance(state, dict) else range(len(state)):
        if path.startswith(f"{key}."):
            inner = path.removeprefix(f"{key}.")
            if isinstance(state[key], list) and inner.isdigit():
                state[key][int(inner)] = value
            else:
                changed(state[key], inner, value)
            return
    raise KeyError(path)


def saved(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("path", ANOTHER)
def test_the_state_of_another_training(command, run, path):
    state = saved(run / CHECKPOINT)
    changed(state, path, copy.deepcopy(ANOTHER[path]))
    torch.save(state, run / CHECKPOINT)
    before = files(run, "train.log")
    result = resume(command)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert result.err.startswith(f"error: run/{CHECKPOINT} is the state of another training (")
    assert files(run, "train.log") == before


def test_the_checkpoint_of_a_run_of_another_size(command, run):
    for options in (["P=11"], ["network.hidden=[9]"], ["seed=0"], ["optimizer=sgd"]):
        other = command.mod_add("P=7", "network.hidden=[8]", "seed=0:2", "epochs=2", *FIM, *options, "run_dir=other")
        (run / CHECKPOINT).write_bytes((other / CHECKPOINT).read_bytes())
        shutil.rmtree(other)
        result = resume(command)
        assert (result.code, len(result.err.splitlines())) == (2, 1), (options, result.err)
        assert result.err.startswith(f"error: run/{CHECKPOINT} is the state of another training (")


def leaves(tree, path=()):
    """The paths to everything in a tree."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


#: What may stand in the place of anything.
strange = st.sampled_from(
    [
        None,
        True,
        -1,
        10**18,
        0.5,
        float("nan"),
        "",
        "a\nb",
        [],
        {},
        [None],
        {"a": {}},
        torch.zeros(3),
        torch.ones(2, 3, 4),
    ]
)


def put(tree, path, value):
    """Another value at a path; what stands in a tuple becomes one of a list."""
    for key in path[:-1]:
        if isinstance(tree[key], tuple):
            tree[key] = list(tree[key])
        tree = tree[key]
    tree[path[-1]] = value


@few(15)
@given(where=st.integers(0, 10**6), value=strange)
def test_a_checkpoint_with_something_strange_in_it(command, content, run, where, value):
    restore(run, content)
    state = saved(run / CHECKPOINT)
    paths = list(leaves(state))
    path = paths[where % len(paths)]
    # What is well formed all the same: a measurement without a cadence, and labels, which are a callback's own.
    assume((path[-1], value) != ("epochs", [None]) and path[:2] != ("recorder", "coordinates"))
    put(state, path, value)
    torch.save(state, run / CHECKPOINT)
    before = files(run, "train.log")
    result = resume(command)
    if result.code:
        assert result.code == 2, (path, value)
        one_line(result.err, f"run/{CHECKPOINT}")
        assert files(run, "train.log") == before, (path, value)
    else:
        assert lit_grok.open_run(run).evaluation.epoch.values.tolist() == [0, 1, 2, 3], (path, value)


@few(12)
@given(where=st.integers(0, 10**6), value=strange.filter(lambda value: not isinstance(value, torch.Tensor)))
def test_a_configuration_with_something_strange_in_it(command, content, run, where, value):
    restore(run, content)
    config = yaml.safe_load(content["config.yaml"])
    paths = list(leaves(config))
    path = paths[where % len(paths)]
    put(config, path, value)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = files(run, "train.log", "config.yaml")
    result = resume(command)
    if result.code:
        assert result.code == 2, (path, value)
        assert len(result.err.splitlines()) == 1
        assert files(run, "train.log", "config.yaml") == before
