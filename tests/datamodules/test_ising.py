import io
import logging
import multiprocessing
import os
import pickle
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from datamodules import IsingDataModule, ising
from datamodules.glauber import sample
from datamodules.ising import read_snapshots
from lit_grok.files import WriteError
from lit_grok.measures.ising import CRITICAL_TEMPERATURE
from tests.helpers import fill_disk

SMALL = {"side": 8, "train_size": 20, "test_size": 40, "temperatures": 10, "snapshots": 8, "steps": 200}


def data(folder, **options):
    module = IsingDataModule(**{**SMALL, "data_dir": str(folder), "batch_size": 8, **options})
    module.setup()
    return module


def rows(split):
    inputs, targets = split
    return [
        {(bytes(x.to(torch.int8).numpy()), y) for x, y in zip(a, b.tolist(), strict=True)}
        for a, b in zip(inputs, targets, strict=True)
    ]


@pytest.fixture
def counted(monkeypatch):
    """How often the sampler ran."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return sample(*args, **kwargs)

    monkeypatch.setattr(ising, "sample", counting)
    return calls


# The split


def test_balanced_disjoint_sets_of_the_right_size(tmp_path):
    module = data(tmp_path)
    for name, size in (("train", 20), ("test", 40)):
        inputs, targets = module.split(name)
        assert inputs.shape == (1, size, 8, 8)
        assert inputs.dtype == torch.float32
        assert set(inputs.unique().tolist()) == {-1, 1}
        assert targets.sum() == size // 2
        assert 0 < targets[0, : size // 2].sum() < size // 2  # the phases are mixed
    (train,), (test,) = rows(module.split("train")), rows(module.split("test"))
    assert len(train) == 20  # with 64 spins no two snapshots are the same by chance
    assert not train & test


def test_labels_by_the_critical_temperature(tmp_path):
    temperatures = np.repeat(np.linspace(1, 3.5, 10), 8)
    spins = sample(temperatures, 200, side=8)
    phase = {bytes(s): int(t > CRITICAL_TEMPERATURE) for s, t in zip(spins, temperatures, strict=True)}
    module = data(tmp_path)
    for name in ("train", "test"):
        assert all(phase[spins] == label for spins, label in rows(module.split(name))[0])
    assert (temperatures > CRITICAL_TEMPERATURE).sum() == 40


def test_the_split_depends_on_the_own_data_seed_alone(tmp_path):
    alone = data(tmp_path, data_seeds=[5])
    among = data(tmp_path, data_seeds=[1, 5, 2], order_seeds=[9, 9, 9])
    for name in ("train", "test"):
        assert torch.equal(among.split(name)[0][1], alone.split(name)[0][0])
        assert torch.equal(among.split(name)[1][1], alone.split(name)[1][0])
        assert not torch.equal(among.split(name)[0][0], alone.split(name)[0][0])


def test_another_sampler_seed_gives_other_snapshots(tmp_path):
    first, second = data(tmp_path), data(tmp_path, sample_seed=1)
    assert not rows(first.split("train"))[0] & rows(second.split("train"))[0]
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_all_snapshots_may_be_used_but_no_more(tmp_path):
    module = data(tmp_path, train_size=40, test_size=40)
    assert module.split("test")[0].shape[1] == 40
    with pytest.raises(ValueError, match=r"train_size=40, test_size=42: .*at most 80"):
        IsingDataModule(**{**SMALL, "train_size": 40, "test_size": 42})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("train_size", 0), ("train_size", 3), ("test_size", -2), ("side", 1), ("snapshots", 0), ("steps", -1)],
        *[("temperatures", 1), ("t_min", 2.5), ("t_min", 0), ("t_max", 2), ("t_min", float("nan")), ("batch_size", 0)],
        *[("source", "/nowhere"), ("label_noise", 1.5)],
    ],
)
def test_impossible_values_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option}={value}"):
        IsingDataModule(**{**SMALL, option: value})


# The cache


def test_sampled_once_and_reused(tmp_path, counted):
    first = data(tmp_path)
    second = data(tmp_path)
    assert len(counted) == 1
    assert all(map(torch.equal, first.split("test"), second.split("test")))
    data(tmp_path, train_size=30, data_seeds=[3])  # another split of the same snapshots
    assert len(counted) == 1
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    "change",
    [
        {"side": 4},
        {"steps": 100},
        {"t_min": 1.5},
        {"t_max": 3.0},
        {"t_min": 1.0000001},
        {"temperatures": 12},
        {"snapshots": 9},
        {"sample_seed": 1},
    ],
    ids=str,
)
def test_whatever_matters_is_in_the_name(tmp_path, counted, change):
    data(tmp_path)
    changed = {**SMALL, **change}
    module = data(tmp_path, **change)
    assert len(counted) == 2
    temperatures = np.linspace(changed.get("t_min", 1.0), changed.get("t_max", 3.5), changed["temperatures"])
    expected = sample(
        np.repeat(temperatures, changed["snapshots"]),
        changed["steps"],
        side=changed["side"],
        seed=changed.get("sample_seed", 0),
    )
    np.testing.assert_array_equal(module.dataset().inputs.numpy(), expected)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the spins
    path.write_bytes(bytes(content))


def damage_empty(path):
    path.write_bytes(b"")


def damage_foreign(path):
    np.savez(path, something=np.arange(3))


def damage_short(path):
    np.savez(path, bits=np.zeros(3, np.uint8), temperatures=np.zeros(3))


def damage_pickle(path):
    path.write_bytes(pickle.dumps({"bits": [1]}))


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_flip, damage_empty, damage_foreign, damage_short, damage_pickle],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, counted, caplog, monkeypatch, damage):
    monkeypatch.setattr(ising.log, "propagate", True)
    whole = data(tmp_path)
    content = whole.path.read_bytes()
    damage(whole.path)
    with caplog.at_level(logging.WARNING, "lit_grok"):
        again = data(tmp_path)
    assert len(counted) == 2
    assert f"{whole.path} is damaged and is made again" in caplog.text
    assert all(map(torch.equal, whole.split("train"), again.split("train")))
    assert len(whole.path.read_bytes()) == len(content)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path, monkeypatch):
    small = {"temperatures": 2, "snapshots": 1, "train_size": 2, "test_size": 2, "side": 4, "steps": 0}
    monkeypatch.setattr(IsingDataModule, "_check_sizes", lambda *_: None)
    module = IsingDataModule(**small, data_dir=str(tmp_path))
    module.prepare_data()
    right, content = module._load_sampled(), module.path.read_bytes()
    noticed = 0
    for i in range(len(content)):
        for mask in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[i] ^= mask
            module.path.write_bytes(bytes(damaged))
            found = module._load_sampled()
            noticed += found is None
            assert found is None or np.array_equal(found, right), i
    assert noticed > len(content) / 2


def test_an_interrupted_sampling_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ising, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data(tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    monkeypatch.undo()
    assert data(tmp_path).path.exists()


def test_a_full_disk_leaves_no_file_and_is_one_sentence(full_disk):
    folder, _ = full_disk
    fill_disk(folder)
    with pytest.raises(
        WriteError, match=r"ising_L8.*\.npz: cannot be written \((No space left on device|File too large)"
    ):
        data(folder, snapshots=600, temperatures=20)
    assert {path.suffix for path in folder.iterdir()} <= {".lock", ""}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"datamodule.data_dir=.*file/x: cannot be written"):
        data(tmp_path / "file" / "x")


def sampling_slowly(temperatures, steps, side, **_):
    Path(f"sampled.{os.getpid()}").touch()
    time.sleep(0.5)
    return np.ones((len(temperatures), side, side), np.int8)


def want(results, barrier):
    barrier.wait()
    module = IsingDataModule(**SMALL, data_dir="data")
    module.setup()
    results.put(module.split("train")[0].sum().item())


def test_two_processes_that_want_it_at_once_make_it_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ising, "sample", sampling_slowly)
    fork = multiprocessing.get_context("fork")
    results, barrier = fork.Queue(), fork.Barrier(2)
    processes = [fork.Process(target=want, args=(results, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [20 * 64] * 2
    for process in processes:
        process.join(60)
    assert len(list(tmp_path.glob("sampled.*"))) == 1


def test_a_process_that_waits_for_another_says_so(tmp_path, counted, caplog, monkeypatch):
    monkeypatch.setattr(ising.log, "propagate", True)
    caplog.set_level(logging.INFO, "lit_grok")
    lock = FileLock(IsingDataModule(**SMALL, data_dir=str(tmp_path)).path.with_suffix(".lock"))
    with lock:
        waiting = threading.Thread(target=data, args=(tmp_path,))
        waiting.start()
        while "waiting for the process that makes" not in caplog.text:
            assert waiting.is_alive()
            time.sleep(0.01)
        assert not counted
    waiting.join(60)
    assert len(counted) == 1


def test_a_process_that_is_killed_while_it_makes_the_data_keeps_nobody_from_making_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def hanging(*args, **_):
        Path("hanging").touch()
        time.sleep(100)

    fork = multiprocessing.get_context("fork")
    with monkeypatch.context() as patch:
        patch.setattr(ising, "sample", hanging)
        process = fork.Process(target=lambda: data(Path("data")))
        process.start()
        while not Path("hanging").exists():
            assert process.is_alive()
            time.sleep(0.01)
    process.kill()
    process.join(60)
    assert data(Path("data")).path.exists()


# The authors' file


def authors(count=40, side=8, scalar=float):
    temperatures = np.repeat(np.linspace(1, 3.5, 10), count // 10)
    spins = sample(temperatures, 200, side=side)
    entries = [
        [s.astype(float), scalar(t > CRITICAL_TEMPERATURE), scalar(t)] for s, t in zip(spins, temperatures, strict=True)
    ]
    return ["50 temperatures", entries], spins, temperatures


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("scalar", [float, np.float64, np.float32])
def test_the_authors_format(tmp_path, protocol, scalar):
    content, spins, temperatures = authors(scalar=scalar)
    path = tmp_path / "snapshots.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found, heat = read_snapshots(path)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, spins)
    np.testing.assert_allclose(heat, temperatures, rtol=1e-6)

    module = data(tmp_path, source=str(path), train_size=10, test_size=20)
    ordered = {bytes(s) for s, t in zip(spins, temperatures, strict=True) if t < CRITICAL_TEMPERATURE}
    assert all((s in ordered) == (label == 0) for s, label in rows(module.split("test"))[0])
    assert not list(tmp_path.glob("*.npz"))  # nothing was sampled


def test_a_pickle_of_an_old_numpy(tmp_path):
    content, spins, _ = authors()
    old = pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "old").write_bytes(old)
    np.testing.assert_array_equal(read_snapshots(tmp_path / "old")[0], spins)


def test_the_set_sizes_are_checked_against_the_file(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps(authors()[0]))
    with pytest.raises(ValueError, match="their sum is at most 40"):
        data(tmp_path, source=str(tmp_path / "file"), train_size=22, test_size=20)
    with pytest.raises(ValueError, match=r"side=16: the snapshots of .* have side 8"):
        data(tmp_path, source=str(tmp_path / "file"), side=16, train_size=10, test_size=10)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "os.system": Call(os.system, "touch owned"),
    "os.mkdir": Call(os.mkdir, "owned"),
    "eval": Call(eval, "__import__('os').mkdir('owned')"),
    "exec": Call(exec, "import os; os.mkdir('owned')"),
    "getattr": Call(getattr, "x", "upper"),
    "open": Call(open, "owned", "w"),
    "numpy.load": Call(np.load, "owned"),
    "numpy.memmap": Call(np.memmap, "owned", "uint8", "w+", 0, (3,)),
    "subprocess": Call(subprocess.Popen, ["touch", "owned"]),
    "torch": torch.ones(2),
    "io": Call(io.FileIO, "owned", "w"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", EVIL)
def test_a_pickle_that_wants_more_than_arrays_is_refused_and_not_run(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    content, *_ = authors()
    for place in (["", [[EVIL[name], 0, 1.0]]], [EVIL[name], content[1]], EVIL[name]):
        Path("evil").write_bytes(pickle.dumps(place, protocol=protocol))
        with pytest.raises(ValueError, match=r"datamodule.source=evil: not a readable snapshot file .*no use for"):
            read_snapshots("evil")
    assert not Path("owned").exists()


def test_names_with_dots_are_no_way_around(tmp_path):
    for module, name in (("numpy", "ndarray.tofile"), ("numpy", "dtype.__class__"), ("numpy.f2py", "os.system")):
        code = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93."
        (tmp_path / "evil").write_bytes(code)
        with pytest.raises(ValueError, match="no use for"):
            read_snapshots(tmp_path / "evil")


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    content = pickle.dumps(authors()[0], protocol=4)
    keep = int(keep * len(content)) if isinstance(keep, float) else keep
    (tmp_path / "short").write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"datamodule.source=.*short: not "):
        read_snapshots(tmp_path / "short")


@pytest.mark.parametrize(
    "content",
    [
        *[{}, [], ["x"], ["x", []], ["x", [[1, 2]]], 3, "text", ["x", [[np.ones((4, 4)), 0]]]],
        ["x", [[np.zeros((4, 4)), 0, 1.0]]],  # not ±1
        ["x", [[np.ones((4, 5)), 0, 1.0]]],  # not square
        ["x", [[np.ones(4), 0, 1.0]]],
        ["x", [[np.ones((4, 4)), 0, 1.0], [np.ones((8, 8)), 0, 1.0]]],
        ["x", [[np.full((4, 4), "a"), 0, 1.0]]],
        ["x", [[np.full((4, 4), np.nan), 0, 1.0]]],
        ["x", [[np.ones((4, 4)), 0, float("nan")]]],
        ["x", [[np.ones((4, 4)), 0, -1.0]]],
        ["x", [[np.ones((4, 4)), 0, "warm"]]],
    ],
    ids=repr,
)
def test_other_contents_are_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"^datamodule.source=.*other: "):
        read_snapshots(tmp_path / "other")
