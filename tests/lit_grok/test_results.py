import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr

import lit_grok
from lit_grok import results
from lit_grok.files import ReadError, WriteError, seal
from lit_grok.measures.grokking import Outcome
from lit_grok.networks import ModularMLP
from lit_grok.recorder import REPLICA_KEYS, Recorder, summarise
from lit_grok.replicas import ReplicaStack
from lit_grok.results import index_replicas, write_config, write_results
from tests.helpers import SUMMARY_FIELDS

SPECIFICATION = {"_target_": "lit_grok.networks.ModularMLP", "P": 7, "hidden": [5]}


def replica(init_scale=1.0, seed=0, **changes):
    streams = {f"seed_{name}": seed for name in ("init", "data", "order")}
    return {"init_scale": init_scale, "seed": seed, "weight_decay": 0.1, **streams, **changes}


def write_run(folder, replicas, epochs=(0, 10), config=None, offset=0.0, branches=()):
    """A run as train.py leaves it; accuracy = offset + replica + epoch / 1000, weights = the replica's number."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(replicas)
    for epoch in epochs:
        values = [offset + r + epoch / 1000 for r in range(len(replicas))]
        for name in ("evaluation/test_accuracy", *(f"{branch}/x" for branch in branches)):
            recorder.add(name, values, epoch)
    write_config(folder, {"task": "mod_add", "network": SPECIFICATION, "run_dir": str(folder), **(config or {})})
    stack = ReplicaStack([ModularMLP(7, [5]) for _ in replicas])
    write_results(folder, recorder.tree(), stack.stacked())
    return stack


PRODUCT = [replica(scale, seed) for scale in (1.0, 10.0) for seed in (0, 1, 2)]


# The recorder


def test_curves_have_replica_and_epoch():
    recorder = Recorder(PRODUCT)
    for epoch in (0, 1, 100):
        recorder.add("a/b", np.arange(6) + epoch, epoch)
    recorder.add("a/spectrum", np.ones((6, 3, 2)), None, ["layer", "rank"], {"layer": ["x", "y", "z"]})
    tree = recorder.tree()
    assert tree.a.b.dims == ("replica", "epoch")
    assert tree.a.epoch.values.tolist() == [0, 1, 100]
    assert tree.a.epoch.dtype == np.int64
    assert tree.a.b.values[2].tolist() == [2, 3, 102]
    assert tree.a.spectrum.dims == ("replica", "layer", "rank")
    assert tree.a.layer.values.tolist() == ["x", "y", "z"]
    assert set(REPLICA_KEYS) <= set(tree.coords)
    assert recorder.latest("a/b").tolist() == [100, 101, 102, 103, 104, 105]
    assert recorder.curve("a/b")[1].shape == (3, 6)


def test_what_was_not_measured_is_nan():
    recorder = Recorder(PRODUCT[:1])
    recorder.add("a/often", [1], 0)
    recorder.add("a/often", [2], 1)
    recorder.add("a/seldom", [3], 1)
    recorder.add("b/seldom", [3], 1)
    np.testing.assert_array_equal(recorder.tree().a.seldom.values, [[np.nan, 3]])
    np.testing.assert_array_equal(recorder.tree().b.seldom.values, [[3]])  # a branch has its own epochs


def test_the_same_epoch_again_replaces():
    recorder = Recorder(PRODUCT[:1])
    recorder.add("a/x", [1], 5)
    assert recorder.has("a/x", 5)
    assert not recorder.has("a/x", 4)
    assert not recorder.has("a/y", 5)
    recorder.add("a/x", [2], 5)
    assert [v.tolist() for v in recorder.curve("a/x")] == [[5], [[2.0]]]


@pytest.mark.parametrize(
    ("values", "dims"), [([1.0], ()), (np.ones((2, 3)), ()), (np.ones((2, 3)), ("a", "b")), (1.0, ())]
)
def test_shapes_that_do_not_fit_are_refused(values, dims):
    with pytest.raises(ValueError, match="a/x: shape"):
        Recorder(PRODUCT[:2]).add("a/x", values, 0, dims)


def test_shapes_that_change_are_refused():
    recorder = Recorder(PRODUCT[:2])
    recorder.add("a/x", np.ones((2, 3)), 0, ["layer"])
    with pytest.raises(ValueError, match="differ from"):
        recorder.add("a/x", np.ones((2, 4)), 1, ["neuron"])


def test_recorder_state_round_trip(tmp_path):
    recorder = Recorder(PRODUCT)
    recorder.add("a/x", np.random.default_rng(0).random(6), 0)
    recorder.add("a/x", np.full(6, np.nan), 3)
    recorder.add(
        "a/z", np.ones((6, 2)), None, ["layer"], {"layer": ["p", "q"]}, {"long_name": "zed", "units": "epochs"}
    )
    torch.save(recorder.state_dict(), tmp_path / "state")
    other = Recorder(PRODUCT)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    xr.testing.assert_identical(recorder.tree(), other.tree())
    other.add("a/x", np.ones(6), 4)
    assert other.tree().a.sizes["epoch"] == 3


def test_what_could_not_be_measured_then_is_amended():
    recorder = Recorder(PRODUCT[:2])
    for epoch in (0, 5, 9):
        recorder.add("a/x", [[epoch, np.nan], [epoch, np.nan]], epoch, ["layer"])
    recorder.amend("a/x", [[np.nan, 7.0], [8.0, np.nan]], 5)
    np.testing.assert_array_equal(recorder.curve("a/x")[1][1], [[5, 7], [8, np.nan]])
    np.testing.assert_array_equal(recorder.curve("a/x")[1][[0, 2], :, 0], [[0, 0], [9, 9]])
    assert np.isnan(recorder.curve("a/x")[1][[0, 2], :, 1]).all()
    for name, epoch, error in (("a/x", 6, ValueError), ("a/y", 5, KeyError)):
        with pytest.raises(error):
            recorder.amend(name, np.zeros((2, 2)), epoch)


def test_dimensions_of_one_name_may_differ_between_branches_only():
    recorder = Recorder(PRODUCT[:2])
    recorder.add("a/x", np.ones((2, 3)), 0, ["layer"], {"layer": ["p", "q", "r"]})
    recorder.add("b/x", np.ones((2, 1)), 0, ["layer"], {"layer": ["fc"]})
    tree = recorder.tree()
    assert (tree.a.sizes["layer"], tree.b.sizes["layer"]) == (3, 1)
    assert (tree.a.layer.values.tolist(), tree.b.layer.values.tolist()) == (["p", "q", "r"], ["fc"])
    with pytest.raises(ValueError, match=r"a/y: its dimension layer has the length 2, that of a/x has 3"):
        recorder.add("a/y", np.ones((2, 2)), 0, ["layer"])
    with pytest.raises(ValueError, match=r"a/y: the labels of its dimension layer differ"):
        recorder.add("a/y", np.ones((2, 3)), 0, ["layer"], {"layer": ["p", "q", "s"]})


@pytest.mark.parametrize("name", ["x", "a/b/c", "a/", "/x", "a b/x", "a/seed", "epoch/x"])
def test_names_that_results_cannot_have_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Recorder(PRODUCT[:1]).add(name, [1.0], 0)


def test_the_root_says_what_became_of_each_replica_and_every_variable_what_it_is(tmp_path):
    recorder = Recorder(PRODUCT[:2])
    recorder.attributes[""] = {"task": "mod_add", "title": "mod_add, P = 7", "command": "python x", "versions": "1"}
    recorder.attributes["a"] = {"scheme": "global"}
    recorder.add("a/half_life", [1.0, 2.0], 0, attributes={"units": "epochs"})
    recorder.add("a/share", [1.0, 2.0], 0, attributes={"long_name": "share of all"})
    judged = [Outcome("grokked", 10, 30, 20), Outcome("memorised", 10, None, None)]
    write_results(tmp_path, recorder.tree(judged), {"x": torch.ones(2, 1)})
    run = lit_grok.open_run(tmp_path)
    assert run.status.values.tolist() == ["grokked", "memorised"]
    np.testing.assert_array_equal(run.t_train, [10, 10])
    np.testing.assert_array_equal(run.t_test, [30, np.nan])
    np.testing.assert_array_equal(run.t_grok, [20, np.nan])
    assert run.attrs == recorder.attributes[""] | {"run_dir": str(tmp_path)}
    assert run.a.attrs == {"scheme": "global"}
    assert run.a.half_life.attrs == {"long_name": "half life", "units": "epochs"}
    assert run.a.share.attrs == {"long_name": "share of all"}
    for node in run.subtree:
        for name, variable in node.data_vars.items():
            assert variable.attrs["long_name"], name
            assert variable.attrs.get("units", "epochs") == "epochs", name  # all else is dimensionless


# Reading a run: .sel(init_scale=10).mean("seed") is how people do it


def test_a_product_is_selected_by_its_axes(tmp_path):
    write_run(tmp_path, PRODUCT)
    accuracy = lit_grok.open_run(tmp_path).evaluation.test_accuracy
    np.testing.assert_allclose(accuracy.sel(init_scale=10).mean("seed"), [4, 4.01])
    np.testing.assert_allclose(accuracy.sel(init_scale=10, seed=2), [5, 5.01])
    assert accuracy.sel(init_scale=10).dims == ("seed", "epoch")
    assert accuracy.sel(seed=1).dims == ("init_scale", "epoch")
    np.testing.assert_allclose(accuracy.groupby("init_scale").mean().values[:, 0], [1, 4])
    assert accuracy.sel(init_scale=10, epoch=10).mean().item() == pytest.approx(4.01)


def test_one_replica(tmp_path):
    write_run(tmp_path, [replica(10.0, 3)])
    accuracy = lit_grok.open_run(str(tmp_path)).evaluation.test_accuracy
    np.testing.assert_allclose(accuracy.sel(init_scale=10).mean("seed"), [0, 0.01])
    assert accuracy.dims == ("replica", "epoch")


def test_weight_decays_are_selected_too(tmp_path):
    write_run(tmp_path, [replica(10.0, s, weight_decay=d) for d in (0.0, 0.1) for s in (0, 1)])
    accuracy = lit_grok.open_run(tmp_path).evaluation.test_accuracy
    np.testing.assert_allclose(accuracy.sel(init_scale=10, weight_decay=0.1).mean("seed"), [2.5, 2.51])
    np.testing.assert_allclose(accuracy.sel(weight_decay=0.1, init_scale=10, seed=1), [3, 3.01])


@pytest.mark.parametrize("stream", ["seed_init", "seed_data", "seed_order"])
def test_fixed_seed_streams_do_not_get_in_the_way(tmp_path, stream):
    write_run(tmp_path, [r | {stream: 7} for r in PRODUCT])
    run = lit_grok.open_run(tmp_path)
    assert run.evaluation.test_accuracy.sel(init_scale=10).dims == ("seed", "epoch")
    assert run[stream].values.tolist() == [7] * 6


def test_the_directory_and_what_is_not_one(tmp_path):
    write_run(tmp_path / "run", PRODUCT[:1])
    assert lit_grok.open_run(tmp_path / "run").attrs["run_dir"] == str(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no results here yet \(it has no results.nc\)"):
        lit_grok.open_run(tmp_path)


def test_one_branch_is_read_alone(tmp_path):
    write_run(tmp_path, PRODUCT, branches=("pruning", "ipr"))
    assert set(lit_grok.open_run(tmp_path).children) == {"evaluation", "pruning", "ipr"}
    run = lit_grok.open_run(tmp_path, "evaluation")
    assert set(run.children) == {"evaluation"}
    np.testing.assert_allclose(run.evaluation.test_accuracy.sel(init_scale=10).mean("seed"), [4, 4.01])
    assert set(lit_grok.open_run(tmp_path, "ipr", "pruning").children) == {"pruning", "ipr"}
    with pytest.raises(KeyError, match=r"has no branch features; there are: evaluation, ipr, pruning"):
        lit_grok.open_run(tmp_path, "evaluation", "features")


def test_results_of_before_the_tree_are_refused_in_one_sentence(tmp_path):
    write_run(tmp_path, PRODUCT)
    flat = Recorder(PRODUCT).tree().to_dataset().assign(test_accuracy=(("replica", "epoch"), np.ones((6, 2))))
    flat.to_netcdf(tmp_path / "flat.nc", engine="netcdf4")
    (tmp_path / "results.nc").write_bytes(seal((tmp_path / "flat.nc").read_bytes()))
    with pytest.raises(ReadError, match=r"results.nc: .*no tree with the replicas at its root") as refused:
        lit_grok.open_run(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


# Several runs


def test_runs_with_different_seeds_are_one_set_of_replicas(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        config = {"seed": seed, "trainer": {"default_root_dir": str(folder)}, "seeds": {"init": None}}
        write_run(folder, [replica(10.0, seed)], config=config, offset=seed)
    runs = lit_grok.open_runs(tmp_path / "run*")
    np.testing.assert_allclose(runs.evaluation.test_accuracy.sel(init_scale=10).mean("seed"), [0.5, 0.51])
    assert runs.run_dir.values.tolist() == [str(tmp_path / "run0"), str(tmp_path / "run1")]


def test_different_epochs_are_aligned(tmp_path):
    write_run(tmp_path / "a", [replica(1.0)], epochs=(0, 10, 20))
    write_run(tmp_path / "b", [replica(10.0)], epochs=(0, 5))
    runs = lit_grok.open_runs(f"{tmp_path}/*")
    assert runs.evaluation.epoch.values.tolist() == [0, 5, 10, 20]
    nan = np.nan
    np.testing.assert_allclose(runs.evaluation.test_accuracy.sel(init_scale=1, seed=0), [0, nan, 0.01, 0.02])
    np.testing.assert_allclose(runs.evaluation.test_accuracy.sel(init_scale=10, seed=0), [0, 0.005, nan, nan])


def test_what_differs_between_the_configurations_is_a_coordinate(tmp_path):
    for name, size, shuffle in (("a", 32, False), ("b", 64, False), ("c", 64, True)):
        config = {
            "batch_size": size,
            "epochs": 10,
            "datamodule": {"batch_size": size, "shuffle": shuffle},
            "trainer": {"default_root_dir": name},
        }
        write_run(tmp_path / name, [replica(1.0, s) for s in (0, 1)], config=config, offset=ord(name))
    runs = lit_grok.open_runs(tmp_path / "*")
    chosen = runs.evaluation.test_accuracy.sel({"batch_size": 64, "datamodule.shuffle": True})
    np.testing.assert_allclose(chosen.isel(epoch=0).values, [ord("c"), ord("c") + 1])
    assert "epochs" not in runs.coords
    assert runs.sizes["replica"] == 6
    last = runs.evaluation.test_accuracy.sel({"batch_size": 32, "datamodule.shuffle": False, "init_scale": 1.0})
    assert last.dims == ("seed", "epoch")


def test_how_a_run_was_watched_is_no_coordinate(tmp_path):
    for seed, threads in enumerate((1, 2)):
        config = {"threads": threads, "logger": {"mode": str(seed)}, "trainer": {"accelerator": f"cpu{seed}"}}
        write_run(tmp_path / str(seed), [replica(1.0, seed)], config=config)
    assert set(lit_grok.open_runs(tmp_path / "*").replica.indexes["replica"].names) == {"init_scale", "seed"}


def test_a_replica_that_is_there_twice_is_told(tmp_path, caplog):
    for name, threads in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, [replica(1.0, 0), replica(1.0, 1)], config={"threads": threads})
    assert lit_grok.open_runs(tmp_path / "a").sizes["replica"] == 2
    assert not caplog.records
    lit_grok.open_runs(tmp_path / "*")
    assert "2 replicas are there more than once" in caplog.text


def test_runs_of_different_tasks(tmp_path):
    write_run(tmp_path / "a", [replica()], config={"task": "ising", "side": 8})
    write_run(tmp_path / "b", [replica()], config={"task": "mod_add", "P": 7})
    runs = lit_grok.open_runs(tmp_path / "*")
    assert runs.evaluation.test_accuracy.sel(task="ising").size == 2
    assert runs.sizes["replica"] == 2


def test_runs_without_results_are_left_out_and_none_is_an_error(tmp_path):
    write_run(tmp_path / "a", [replica()])
    (tmp_path / "b").mkdir()
    assert lit_grok.open_runs(tmp_path / "*").sizes["replica"] == 1
    with pytest.raises(FileNotFoundError, match="no run directory matches"):
        lit_grok.open_runs(tmp_path / "c*")


def test_a_run_that_lacks_a_branch_has_nan_there(tmp_path):
    write_run(tmp_path / "a", [replica(1.0, 0)])
    write_run(tmp_path / "b", [replica(10.0, s) for s in (0, 1)], branches=("pruning", "ipr"), offset=3)
    write_run(tmp_path / "c", [replica(5.0, 0)], branches=("ipr",))
    runs = lit_grok.open_runs(tmp_path / "*", "evaluation", "pruning")
    assert set(runs.children) == {"evaluation", "pruning"}
    assert runs.run_dir.values.tolist() == [str(tmp_path / name) for name in "abbc"]
    nan = np.nan
    np.testing.assert_allclose(runs.evaluation.test_accuracy.isel(epoch=0), [0, 3, 4, 0])
    np.testing.assert_allclose(runs.pruning.x.isel(epoch=0), [nan, 3, 4, nan])
    np.testing.assert_allclose(runs.pruning.x.sel(init_scale=10, seed=1), [4, 4.01])
    with pytest.raises(KeyError, match=r"no run has a branch features; there are: evaluation, ipr, pruning"):
        lit_grok.open_runs(tmp_path / "*", "features")


# Loading a network


@pytest.mark.parametrize("count", [1, 6])
def test_load_network_gives_the_right_weights_bit_by_bit(tmp_path, count):
    stack = write_run(tmp_path, PRODUCT[:count])
    for r, ours in enumerate(PRODUCT[:count]):
        network = lit_grok.load_network(tmp_path, init_scale=ours["init_scale"], seed=ours["seed"])
        assert type(network) is ModularMLP
        assert network.state_dict().keys() == stack.networks[r].state_dict().keys()
        assert all(map(torch.equal, network.parameters(), stack.networks[r].parameters()))
        pairs = torch.tensor([[1, 2], [6, 0]])
        assert torch.equal(network(pairs), stack.networks[r](pairs))
    if count == 1:
        assert all(map(torch.equal, lit_grok.load_network(tmp_path).parameters(), stack.networks[0].parameters()))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", [100_000, 100_001]),
        ("seed", [4294967294, 4294967295]),
        ("seed_init", [100_000, 100_001]),
        ("weight_decay", [0.0, 1e-9]),
        ("weight_decay", [3e-5, 3.0001e-5]),
        ("init_scale", [1.0, 1.000001]),
    ],
)
def test_replicas_that_are_close_are_still_told_apart(tmp_path, key, values):
    stack = write_run(tmp_path, [replica(**{key: value}) for value in values])
    for r, value in enumerate(values):
        network = lit_grok.load_network(tmp_path, **{key: value})
        assert all(map(torch.equal, network.parameters(), stack.networks[r].parameters()))


def test_a_scale_that_was_computed_is_found(tmp_path):
    write_run(tmp_path, [replica(0.3), replica(0.1)])
    lit_grok.load_network(tmp_path, init_scale=0.1 + 0.2)
    lit_grok.load_network(tmp_path, init_scale=np.float32(0.1))


@pytest.mark.parametrize("content", [None, b"", b"CDF and no more"])
def test_a_network_needs_no_results(tmp_path, content):
    stack = write_run(tmp_path, PRODUCT)
    (tmp_path / "results.nc").unlink()
    if content is not None:
        (tmp_path / "results.nc").write_bytes(content)
    network = lit_grok.load_network(tmp_path, init_scale=10, seed=1)
    assert all(map(torch.equal, network.parameters(), stack.networks[4].parameters()))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"replicas": "["},
        {"replicas": "7"},
        {"replicas": "[7, 8]"},
        {"replicas": "{}"},
        {"replicas": "[]"},
        {"replicas": '[{"init_scale": 1.0}, {"init_scale": 2.0}]'},
        {"replicas": json.dumps([replica(seed="a"), replica(seed="b")])},
        {"replicas": json.dumps([replica(seed=[]), replica(seed={})])},
        {"replicas": json.dumps([replica(seed=s) for s in (0, 1, 2)])},
        {"replicas": "[" * 100_000},
    ],
)
def test_hostile_metadata_of_the_weights_is_refused_in_one_sentence(tmp_path, metadata):
    stack = write_run(tmp_path, PRODUCT[:2])
    safetensors.torch.save_file(
        {k: v.detach().contiguous() for k, v in stack.stacked().items()}, tmp_path / "weights.safetensors", metadata
    )
    with pytest.raises(ReadError, match=r"weights.safetensors: ") as refused:
        lit_grok.load_network(tmp_path, seed=0)
    assert len(str(refused.value).splitlines()) == 1


def test_load_network_lists_what_there_is(tmp_path):
    write_run(tmp_path, [replica(1.0, 0), replica(10.0, 3)])
    for selection in ({"init_scale": 5}, {}, {"seed": 7}):
        with pytest.raises(KeyError, match=r"init_scale=1 seed=0.*init_scale=10 seed=3"):
            lit_grok.load_network(tmp_path, **selection)
    with pytest.raises(KeyError, match=r"scale: replicas are told apart by init_scale, seed, weight_decay"):
        lit_grok.load_network(tmp_path, scale=1)
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        lit_grok.load_network(tmp_path / "nowhere", seed=0)


def test_load_network_lists_what_tells_the_replicas_apart(tmp_path):
    write_run(tmp_path, [replica(weight_decay=0.0), replica(weight_decay=3e-5)])
    with pytest.raises(KeyError, match=r"weight_decay=0[,.' ].*weight_decay=3e-05"):
        lit_grok.load_network(tmp_path, init_scale=1)


def test_only_networks_are_built():
    with pytest.raises(ValueError, match=r"os.getcwd: not a torch.nn.Module class"):
        results.build_network({"_target_": "os.getcwd"})


# Nothing half-written, nothing unpickled


def with_noise(recorder, noise):
    return xr.DataTree.from_dict({"/": recorder.tree().to_dataset(), "noise": xr.Dataset({"noise": noise})})


WRITERS = {
    "results.nc": lambda folder, recorder, noise: write_results(folder, with_noise(recorder, noise), {}),
    "weights.safetensors": lambda folder, recorder, noise: write_results(
        folder, recorder.tree(), {"x": torch.from_numpy(noise.values)}
    ),
    # A quarter of it is more than the disk in decimal, and YAML is slow.
    "config.yaml": lambda folder, recorder, noise: write_config(folder, {"new": noise.values[::4].tolist()}),
    "summary.json": lambda folder, recorder, noise: results.write_summary(folder, [{"new": noise.values.tolist()}]),
}


@pytest.mark.parametrize("file", WRITERS)
def test_a_full_disk_leaves_the_old_file(full_disk, file):
    folder, size = full_disk
    write_run(folder, PRODUCT)
    results.write_summary(folder, [{"a": 1}])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    recorder = Recorder(PRODUCT)
    recorder.add("evaluation/test_accuracy", range(6), 99)
    noise = xr.DataArray(np.random.default_rng(0).random(size // 4), dims="value")
    with pytest.raises(WriteError, match=f"{file}: cannot be written"):
        WRITERS[file](folder, recorder, noise)
    after = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert after.keys() == before.keys()  # nothing temporary left either
    assert after[file] == before[file]
    assert lit_grok.open_run(folder).sizes["replica"] == 6


def test_written_files_can_be_read_by_others(tmp_path):
    write_run(tmp_path, PRODUCT)
    assert {oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == {"0o644"}


READER = """
import sys
blocked = "lightning lightning_fabric pytorch_lightning hydra omegaconf wandb callbacks datamodules".split()
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import pickle
def refuse(*args, **kwargs):
    raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refuse
import torch
torch.load = refuse
import lit_grok
run = lit_grok.open_run(sys.argv[1])
print(run.evaluation.test_accuracy.sel(init_scale=10).mean("seed").values.tolist())
print(lit_grok.load_network(sys.argv[1], init_scale=10, seed=1)(torch.tensor([[1, 2]])).shape)
print(lit_grok.open_runs(sys.argv[1] + "*").sizes["replica"])
"""


def test_results_open_with_lit_grok_alone_and_without_pickle(tmp_path):
    write_run(tmp_path / "run", PRODUCT)
    # from another folder, without the checkout's own on the path: lit_grok alone is enough
    root = Path(lit_grok.__file__).parents[1]
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "lit_grok").symlink_to(root / "lit_grok")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "run")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[4.0, 4.01]", "torch.Size([1, 7])", "6"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_in_place_of_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", PRODUCT)
    for file, read in (
        ("results.nc", lambda: lit_grok.open_run("run")),
        ("weights.safetensors", lambda: lit_grok.load_network("run", init_scale=1, seed=0)),
    ):
        good = (tmp_path / "run" / file).read_bytes()
        (tmp_path / "run" / file).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ReadError, match=rf"^run/{file}: "):
            read()
        (tmp_path / "run" / file).write_bytes(good)
    (tmp_path / "run" / "config.yaml").write_text("network: !!python/object/apply:os.mkdir [owned]")
    with pytest.raises(ReadError, match=r"^run/config.yaml: cannot be read as the configuration of a run"):
        lit_grok.load_network("run", init_scale=1, seed=0)
    assert not (tmp_path / "owned").exists()


# The summary


def summary(train, test, diverged=None, epochs=(0, 10, 20, 30)):
    recorder = Recorder([replica(10.0)])
    for epoch, a, b in zip(epochs, train, test, strict=True):
        values = {"train_accuracy": a, "test_accuracy": b, "train_loss": 1 - a, "test_loss": 1 - b, "weight_norm": 3.0}
        for name, value in values.items():
            recorder.add(f"evaluation/{name}", [value], epoch)
    return summarise(
        recorder, task="ising", chance=0.5, generalisation=0.9, diverged=[diverged], epochs=epochs[-1], seconds=1.5
    )[0]


def test_summary_written_out(tmp_path):
    record = summary([0.5, 1, 1, 0.98], [0.5, 0.7, 0.8, 0.96])
    expected = {
        "task": "ising",
        "init_scale": 10.0,
        "seed": 0,
        "weight_decay": 0.1,
        "status": "grokked",
        "grokked": True,
        "t_train": 10,
        "t_test": 30,
        "t_grok": 20,
        "epochs": 30,
        "seconds": 1.5,
        "weight_norm": 3.0,
        "train_accuracy": 0.98,
        "test_accuracy": 0.96,
        "max_train_accuracy": 1.0,
        "max_test_accuracy": 0.96,
        "train_loss": pytest.approx(0.02),
        "test_loss": pytest.approx(0.04),
    }
    assert expected.keys() == set(SUMMARY_FIELDS)
    assert {key: record[key] for key in SUMMARY_FIELDS} == expected
    results.write_summary(tmp_path, [record])
    assert json.loads((tmp_path / "summary.json").read_text()) == [record]


@pytest.mark.parametrize(
    ("status", "train", "test"),
    [
        ("steady", [0.5, 0.8, 0.96, 1], [0.5, 0.8, 0.95, 0.96]),
        ("memorised", [0.5, 1, 1, 1], [0.5, 0.6, 0.6, 0.8]),
        ("collapsed", [0.5, 0.9, 0.5, 0.5], [0.5, 0.8, 0.5, 0.5]),
        ("undertrained", [0.5, 0.6, 0.7, 0.7], [0.5, 0.6, 0.6, 0.6]),
    ],
)
def test_only_grokked_runs_are_called_grokked(status, train, test):
    record = summary(train, test)
    assert record["status"] == status
    assert record["grokked"] is False


def test_a_run_that_never_generalised_has_no_t_test():
    record = summary([0.5, 1, 1, 1], [0.5, 0.6, 0.6, 0.8])
    assert (record["t_train"], record["t_test"], record["t_grok"]) == (10, None, None)


def test_a_diverged_run_is_judged_by_what_was_sound():
    nan = np.nan
    record = summary([0.5, 0.8, 0.3, nan], [0.5, 0.6, 0.2, nan], diverged=20)  # an accuracy of NaN is a number
    assert (record["status"], record["grokked"]) == ("diverged", False)
    assert (record["t_train"], record["max_train_accuracy"], record["max_test_accuracy"]) == (10, 0.8, 0.6)
    assert (record["t_test"], record["t_grok"]) == (None, None)
    # as the weights that are kept, everything is that of the last sound evaluation
    assert (record["train_accuracy"], record["test_accuracy"], record["weight_norm"]) == (0.8, 0.6, 3.0)
    assert (record["train_loss"], record["test_loss"]) == pytest.approx((0.2, 0.4))
    record = summary([nan] * 4, [nan] * 4, diverged=0)
    assert (record["status"], record["t_train"], record["t_grok"]) == ("diverged", None, None)
    assert record["max_train_accuracy"] is None
    assert record["train_accuracy"] is None


def test_a_callback_may_measure_the_weight_norm_more_often():
    recorder = Recorder([replica(10.0)])
    for epoch in range(5):
        recorder.add("evaluation/weight_norm", [3.0 - epoch], epoch)
    for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss"):
        recorder.add(f"evaluation/{name}", [0.5], 0)
        recorder.add(f"evaluation/{name}", [0.7], 4)
    options = {"task": "ising", "chance": 0.5, "generalisation": 0.9, "epochs": 4, "seconds": 1.0}
    (record,) = summarise(recorder, diverged=[None], **options)
    assert (record["status"], record["weight_norm"]) == ("undertrained", -1.0)
    (record,) = summarise(recorder, diverged=[3], **options)
    assert (record["status"], record["weight_norm"], record["train_accuracy"]) == ("diverged", 1.0, 0.5)


def test_nan_and_infinity_become_null(tmp_path):
    results.write_summary(tmp_path, [{"a": float("nan"), "b": float("inf"), "c": 1.5, "d": None, "e": "nan"}])
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == [{"a": None, "b": None, "c": 1.5, "d": None, "e": "nan"}]
    assert "NaN" not in text
    assert "Infinity" not in text


def test_index_replicas_keeps_every_value():
    recorder = Recorder(PRODUCT)
    recorder.add("a/x", range(6), 0)
    indexed = index_replicas(recorder.tree())
    for r, ours in enumerate(PRODUCT):
        assert indexed.a.x.sel(init_scale=ours["init_scale"], seed=ours["seed"]).item() == r


# Runs that were measured differently


def recorded(folder, *entries, hidden=3):
    recorder = Recorder([replica(1.0)])
    for name, values, epoch, dims in entries:
        recorder.add(name, values, epoch, dims)
    folder.mkdir()
    write_config(folder, {"task": "toy", "hidden": hidden})
    write_results(folder, recorder.tree(), {})


def test_what_one_run_measured_once_stands_at_its_last_epoch_beside_the_curve_of_another(tmp_path):
    recorded(tmp_path / "a", ("ipr/mean_ipr", [0.5], None, []), ("evaluation/x", [1.0], 8, []))
    recorded(tmp_path / "b", ("ipr/mean_ipr", [0.1], 0, []), ("ipr/mean_ipr", [0.2], 4, []), hidden=4)
    found = lit_grok.open_runs(tmp_path / "*").ipr.mean_ipr
    assert found.epoch.values.tolist() == [0, 4, 8]
    np.testing.assert_array_equal(found.values, [[np.nan, np.nan, 0.5], [0.1, 0.2, np.nan]])


def test_layers_of_other_widths_are_filled_up(tmp_path):
    for name, width in (("a", 2), ("b", 3)):
        recorded(tmp_path / name, ("ipr/neuron_ipr", np.ones((1, width)), None, ["neuron"]), hidden=width)
    found = lit_grok.open_runs(tmp_path / "*").ipr.neuron_ipr
    np.testing.assert_array_equal(found.values, [[1, 1, np.nan], [1, 1, 1]])
