import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

import lit_grok
from tests.helpers import SUMMARY_FIELDS, files_with

ROOT = Path(__file__).parents[1]


def summary(run):
    return json.loads((run / "summary.json").read_text())


# Bad input: exit code 2, one line, nothing left behind

BAD = [
    ("task=nope", "task=nope: unknown; allowed: ising, mod_add"),
    ("init_scal=3", "init_scal: no such key (did you mean init_scale?); allowed: init_scale, seed, "),
    (
        "datamodule.shufle=true",
        "datamodule.shufle: no such key (did you mean datamodule.shuffle?); allowed: datamodule.",
    ),
    ("callbacks=nope", "callbacks=nope: unknown; allowed: "),
    ("optimizer=nope", "optimizer=nope: unknown; allowed: adam, adamw, sgd"),
    ("logger=nope", "logger=nope: unknown; allowed: csv, none, wandb"),
    ("optimizer=null", "config group override must be a string"),
    ("+callbacks.x._target_=callbacks.Nope", "callbacks.x: _target_=callbacks.Nope: cannot be imported"),
    ("+callbacks.x._target_=nowhere.Nope", "callbacks.x: _target_=nowhere.Nope: cannot be imported"),
    ("+callbacks.x=1", "callbacks.x=1: not a Lightning callback; give callbacks.x._target_"),
    ("~callbacks.evaluation", "callbacks.evaluation: cannot be left out"),
    ("init_scale=-1", "init_scale=-1: must be a finite number, 0 or more"),
    ("init_scale=nan", "init_scale=nan: must be a finite number, 0 or more"),
    ("init_scale=[1,-2]", "init_scale=-2: must be a finite number, 0 or more"),
    ("init_scale=[]", "init_scale=[]: an empty list; give at least one value"),
    ("seed=[]", "seed=[]: an empty list"),
    ("seed=3:3", "seed=3:3: an empty list"),
    ("seed=-1", "seed=-1: must be a whole number from 0 to 4294967295"),
    ("seed=[1,1]", "the lists hold the same value twice"),
    ("seeds.init=x", "seeds.init=x: must be a whole number"),
    ("weight_decay=inf", "weight_decay=inf: must be a finite number"),
    ("learning_rate=-1", "learning_rate=-1: must be a finite number"),
    ("P=9 datamodule.operation=multiply", "P=9: operation=multiply needs a prime modulus"),
    ("P=10 datamodule.operation=multiply", "P=10: operation=multiply needs a prime modulus"),
    ("P=1", "P=1: the modulus is at least 2"),
    ("P=eleven", "P=eleven: must be a whole number"),
    ("datamodule.operation=divide", "operation=divide: unknown; allowed: add, subtract, multiply"),
    ("datamodule.train_fraction=1", "train_fraction=1: must lie between 0 and 1"),
    ("network.hidden=3", "network={'P': 11, 'hidden': 3}: "),
    ("network.hidden=[0]", "hidden=[0]: "),
    ("network._target_=os.getcwd", "network._target_=os.getcwd: not a torch.nn.Module class"),
    ("loss=hinge", "loss=hinge: unknown; allowed: cross_entropy, mse"),
    ("epochs=0", "epochs=0: must be a whole number, 1 or more"),
    ("epochs=many", "epochs=many: must be a whole number, 1 or more"),
    ("batch_size=0", "batch_size=0: must be a whole number, 1 or more"),
    ("threads=0", "threads=0: must be auto or a whole number, 1 or more"),
    ("threads=all", "threads=all: must be auto or a whole number, 1 or more"),
    ("log_every=0", "log_every=0: must be a whole number, 1 or more"),
    ("checkpoint_every=0", "checkpoint_every=0: must be a whole number, 1 or more"),
    ("accelerator=mps", "accelerator=mps: not on this machine; allowed: auto, cpu"),
    ("accelerator=abacus", "accelerator=abacus: not on this machine; allowed: auto, cpu"),
    ("trainer.gradient_clip_val=1 seed=0:2", "trainer.gradient_clip_val=1: clipping by norm would scale"),
    ("run_dir=file/run", "run_dir=file/run: cannot be written"),
    ("run_dir=full", "run_dir=full: exists and is not empty; choose another, or go on with resume=full"),
    ("resume=nowhere", "resume=nowhere: not a run's directory (it has no config.yaml)"),
    ("resume=full", "resume=full: not a run's directory (it has no config.yaml)"),
    ("epochs", "epochs: cannot be read as KEY=VALUE"),
]
BAD_ISING = [
    ("side=10", "side=10: the two poolings by 2 need a positive multiple of 4"),
    ("side=0", "side=0: must be at least 2"),
    ("datamodule.train_size=180", "train_size=180, test_size=40: "),
    ("datamodule.train_size=3", "train_size=3: must be a positive even number"),
    ("datamodule.t_min=3", "t_min=3, t_max=3.5: must be positive and lie on both sides of Tc"),
    ("datamodule.data_dir=file/data", "datamodule.data_dir=file/data: cannot be written"),
    ("datamodule.source=nowhere", "datamodule.source=nowhere: no such file"),
    ("datamodule.source=truncated", "datamodule.source=truncated: not a readable snapshot file"),
    ("datamodule.source=foreign", "datamodule.source=foreign: not the authors' format"),
    ("datamodule.source=evil", "datamodule.source=evil: not a readable snapshot file (it refers to posix.mkdir"),
    ("datamodule.source=file", "datamodule.source=file: not a readable snapshot file"),
]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def prepare(folder):
    (folder / "file").touch()
    (folder / "full").mkdir()
    (folder / "full" / "something").touch()
    (folder / "foreign").write_bytes(pickle.dumps({"a": 1}))
    (folder / "truncated").write_bytes(pickle.dumps(["x", [[np.ones((8, 8)), 0, 1.0]]])[:-40])
    (folder / "evil").write_bytes(pickle.dumps(["x", [[Evil(), 0, 1.0]]]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [*BAD, *((f"task=ising {o}", m) for o, m in BAD_ISING)],
    ids=[o for o, _ in (*BAD, *BAD_ISING)],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, overrides, message):
    prepare(command.folder)
    before = sorted(command.folder.rglob("*"))
    tiny = command.ISING if overrides.startswith("task=ising") else command.MOD_ADD
    result = command(*tiny, *overrides.split())
    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in result.err + result.out
    after = sorted(path for path in command.folder.rglob("*") if path.parts[len(command.folder.parts)] != "data")
    assert after == before


def test_a_folder_of_the_users_stays_where_it_was(command):
    (command.folder / "mine").mkdir()
    assert command(*command.MOD_ADD, "run_dir=mine", "P=1").code == 2
    assert command(*command.MOD_ADD, "run_dir=mine/deep/er", "P=1").code == 2
    assert [str(p.relative_to(command.folder)) for p in command.folder.rglob("*")] == ["mine"]


# A run as a user starts it


def user(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_user_types_one_command(tmp_path):
    tiny = ("task=mod_add", "P=7", "network.hidden=[8]", "epochs=2", "logger=none", "init_scale=[1,10]")
    result = user(tmp_path, *tiny)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (run,) = (tmp_path / "runs" / "mod_add").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name)
    assert f"mod_add, 2 replica(s), results in runs/mod_add/{run.name}" in result.stdout
    assert sorted(p.name for p in run.iterdir()) == [
        *("checkpoints", "config.yaml", "figures", "results.nc", "summary.json", "train.log", "weights.safetensors"),
    ]
    assert os.listdir(tmp_path) == ["runs"]  # nothing of Hydra's, Lightning's or W&B's beside it


def test_help_names_the_tasks_the_keys_and_five_examples(command):
    result = command("--help")
    assert result.code in (0, None)
    for word in ("task=ising", "task=mod_add"):
        assert word in result.out
    keys = "init_scale seed epochs weight_decay learning_rate batch_size optimizer accelerator threads logger run_dir P"
    for key in [*keys.split(), "seeds.init", "seeds.data", "seeds.order", "resume", "side"]:
        assert re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", result.out), key
    examples = [line for line in result.out.splitlines() if line.strip().startswith("python train.py")]
    assert len(examples) == 5


def test_the_examples_of_the_help_are_accepted(command):
    text = command("--help").out
    lines = [line.split()[2:] for line in text.splitlines() if line.strip().startswith("python train.py ")]
    assert lines
    for words in lines:
        if "-m" in words or any(word.startswith("resume=") for word in words):
            continue
        result = command(*words, "--cfg", "job")
        assert result.code in (0, None), words


def test_what_a_run_leaves(command):
    run = command.ising("init_scale=[1,10]", "seed=0:2", "weight_decay=[0.1,0.2]")
    records = summary(run)
    assert len(records) == 8
    assert all(set(SUMMARY_FIELDS) <= record.keys() for record in records)
    assert [(r["init_scale"], r["weight_decay"], r["seed"]) for r in records] == [
        (i, w, s) for i in (1.0, 10.0) for w in (0.1, 0.2) for s in (0, 1)
    ]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["side"] == config["network"]["side"] == 8  # resolved, every default spelled out
    assert "ising, 8 replica(s)" in (run / "train.log").read_text()
    dataset = lit_grok.open_run(run)
    assert dataset.test_accuracy.sel(init_scale=10, weight_decay=0.1).mean("seed").sizes == {"epoch": 5}
    network = lit_grok.load_network(run, init_scale=10, seed=1, weight_decay=0.2)
    assert network(torch.ones(3, 8, 8)).shape == (3, 2)


# Replicas, ranges and queues


def test_brackets_train_together_and_commas_queue(command):
    result = command("-m", *command.MOD_ADD, "init_scale=1,10", "seed=0:2", "epochs=1")
    assert result.code in (0, None)
    runs = sorted((command.folder / "runs" / "mod_add").iterdir())
    assert len(runs) == 2  # one after the other, and in folders of their own though they start in the same second
    assert [[r["init_scale"] for r in summary(run)] for run in runs] in ([[1, 1], [10, 10]], [[10, 10], [1, 1]])
    together = lit_grok.open_runs("runs/mod_add/*")
    assert together.test_accuracy.sel(init_scale=10).dims == ("seed", "epoch")


def test_runs_that_start_in_the_same_second_do_not_collide(command, monkeypatch):
    from omegaconf import OmegaConf

    command(*command.MOD_ADD, "epochs=1")  # registers Hydra's own resolvers
    (only,) = (command.folder / "runs" / "mod_add").iterdir()
    for count in (2, 3):
        name = only.name
        OmegaConf.register_new_resolver("now", lambda _, name=name: name, replace=True)
        monkeypatch.setattr("hydra.core.utils.setup_globals", lambda: None)
        monkeypatch.setattr("hydra._internal.hydra.setup_globals", lambda: None, raising=False)
        assert command(*command.MOD_ADD, "epochs=1").code == 0
        names = sorted(p.name for p in (command.folder / "runs" / "mod_add").iterdir())
        assert len(names) == count
    assert names == [only.name, f"{only.name}-1", f"{only.name}-2"]


SEEDS = ("init_scale=1", "epochs=2", "datamodule.shuffle=true")


def start(run):
    """What the three seeds decide: the untrained network, the data and the first step."""
    dataset = lit_grok.open_run(run).isel(replica=0)
    return (
        dataset.weight_norm.sel(epoch=0).item(),
        dataset.train_loss.sel(epoch=0).item(),
        dataset.train_loss.sel(epoch=2).item(),
    )


def test_each_seed_stream_changes_its_own_part_alone(command):
    reference = start(command.mod_add(*SEEDS, "run_dir=reference"))
    again = start(command.mod_add(*SEEDS, "run_dir=again", "seed=0"))
    init = start(command.mod_add(*SEEDS, "run_dir=init", "seeds.init=1"))
    data = start(command.mod_add(*SEEDS, "run_dir=data", "seeds.data=1"))
    order = start(command.mod_add(*SEEDS, "run_dir=order", "seeds.order=1"))
    assert again == reference
    assert init[0] != reference[0]
    assert data[0] == reference[0]  # the same weights,
    assert data[1] != reference[1]  # other data
    assert order[:2] == reference[:2]  # the same weights and data,
    assert order[2] != reference[2]  # in another order
    whole = start(command.mod_add(*SEEDS, "run_dir=whole", "seed=1"))
    streams = command.mod_add(*SEEDS, "run_dir=streams", "seeds.init=1", "seeds.data=1", "seeds.order=1")
    assert start(streams) == whole


@pytest.mark.parametrize("task", ["mod_add", "ising"])
def test_a_replica_does_not_depend_on_its_neighbours(command, task):
    train = getattr(command, task)
    many = train("run_dir=many", "init_scale=[1,10]", "seed=0:3", "datamodule.shuffle=true", "epochs=2")
    alone = train("run_dir=alone", "init_scale=10", "seed=2", "datamodule.shuffle=true", "epochs=2")
    among = lit_grok.open_run(many).sel(init_scale=10, seed=2)
    single = lit_grok.open_run(alone).sel(init_scale=10, seed=2)
    for name in ("train_loss", "test_loss", "weight_norm"):
        np.testing.assert_allclose(among[name], single[name], rtol=1e-5)
    pairs = zip(
        lit_grok.load_network(many, init_scale=10, seed=2).parameters(),
        lit_grok.load_network(alone).parameters(),
        strict=True,
    )
    assert max((p - q).abs().max().item() for p, q in pairs) < 1e-5


# Resume


def test_resume_keeps_the_configuration(command):
    run = command.mod_add("seed=3")
    for override in ("init_scale=2", "seed=4", "datamodule.shuffle=true", "batch_size=3", "optimizer=sgd"):
        result = command(f"resume={run}", override)
        assert result.code == 2
        assert result.err.startswith(f"error: {override}: a resumed run keeps its configuration; only epochs, ")
        assert len(result.err.splitlines()) == 1
    assert command(f"resume={run}", "epochs=6", "seed=3").code == 0  # the same value is no change
    assert summary(run)[0]["epochs"] == 6
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 6


def test_resuming_a_finished_run_changes_nothing(command):
    run = command.mod_add()
    before = (run / "weights.safetensors").read_bytes(), summary(run)
    assert command(f"resume={run}").code == 0
    after = (run / "weights.safetensors").read_bytes(), summary(run)
    for record in (*before[1], *after[1]):
        record.pop("seconds")
    assert after == before


def test_fewer_epochs_than_there_are(command):
    run = command.mod_add()
    result = command(f"resume={run}", "epochs=2")
    assert result.code == 2
    assert re.fullmatch(r"error: epochs=2: .*4.*\n", result.err)
    assert summary(run)[0]["epochs"] == 4


def test_a_moved_run_goes_on_where_it_is(command):
    run = command.mod_add()
    run.rename(command.folder / "moved")
    assert command("resume=moved", "epochs=6").code == 0
    assert summary(command.folder / "moved")[0]["epochs"] == 6
    assert not run.exists()


# Weights & Biases


def wandb_runs(run):
    return sorted((run / "wandb").glob("offline-run-*"))


def test_offline_run_directories_one_per_replica(command):
    run = command.mod_add("logger=wandb", "seed=0:2", "epochs=2")
    ids = json.loads((run / "wandb_ids.json").read_text())
    assert len(set(ids)) == 2
    assert sorted(path.name.split("-")[-1] for path in wandb_runs(run)) == sorted(ids)
    assert all(list(path.glob("*.wandb")) for path in wandb_runs(run))
    assert os.listdir(command.folder) == ["run"]


class Closed(WandbLogger):
    """A W&B run that only notes how it was closed."""

    codes: ClassVar[list] = []
    summary: ClassVar[dict] = {}

    def __init__(self, **_):
        pass

    experiment = property(lambda self: self)
    offline = True
    name = version = save_dir = None

    def define_metric(self, *_, **__):
        pass

    log_metrics = log_image = log_hyperparams = save = finalize = after_save_checkpoint = define_metric

    def finish(self, exit_code=None):
        self.codes.append(exit_code)


def test_a_training_that_fails_closes_wandb_with_an_exit_code(command, monkeypatch):
    monkeypatch.setattr("lit_grok.loggers.WandbLogger", Closed)
    monkeypatch.setattr("lit_grok.loggers.wandb.init", lambda **_: Closed())
    fails = (
        "+callbacks.fails._target_=tests.helpers.FailsWhile",
        "+callbacks.fails.epoch=2",
        "+callbacks.fails.every=1",
    )
    (command.folder / "failing").touch()
    with pytest.raises(RuntimeError, match="no such luck"):
        command(*command.MOD_ADD, "seed=0:2", "logger=wandb", *fails, "run_dir=failed")
    assert Closed.codes == [1, 1]
    Closed.codes.clear()
    (command.folder / "failing").unlink()
    assert command("resume=failed").code == 0
    assert Closed.codes == [0, 0]
    assert Closed.summary["status"]


def test_wandb_that_cannot_start_does_not_stop_the_training(command, monkeypatch):
    def init(**options):
        raise PermissionError(13, "Permission denied: 'wandb'")

    monkeypatch.setattr("lit_grok.loggers.wandb.init", init)
    result = command(*command.MOD_ADD, "logger=wandb", "run_dir=run")
    assert result.code == 0
    assert result.err.startswith("warning: W&B could not start, the run goes on without it: ")
    assert "W&B could not start" in (command.folder / "run" / "train.log").read_text()
    assert len(summary(command.folder / "run")) == 1


def test_secrets_of_the_environment_reach_no_file(tmp_path):
    secrets = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "MY_TOKEN": "correct horse battery staple"}
    tiny = ("task=mod_add", "P=7", "network.hidden=[8]", "epochs=2", "callbacks=base", "run_dir=run")
    result = user(tmp_path, *tiny, **secrets)
    assert result.returncode == 0, result.stderr
    assert any(path.suffix == ".wandb" for path in tmp_path.rglob("*"))
    (tmp_path / "told").write_text(secrets["MY_TOKEN"])
    assert [path.name for path in files_with(tmp_path, secrets["MY_TOKEN"])] == ["told"]  # it would be found
    assert not files_with(tmp_path, secrets["WANDB_API_KEY"])
    assert not any(secret in result.stdout + result.stderr for secret in secrets.values())


def test_wandb_of_a_bad_mode(command):
    result = command(*command.MOD_ADD[:-1], "callbacks=base", "logger=wandb", "logger.mode=cloud")
    assert result.code == 2
    assert result.err == "error: logger.mode=cloud: unknown; allowed: offline, online\n"
    assert os.listdir(command.folder) == []
