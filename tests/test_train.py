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
from tests.helpers import SUMMARY_FIELDS, files_with, wandb_ids

ROOT = Path(__file__).parents[1]


def summary(run):
    return json.loads((run / "summary.json").read_text())


# Bad input: exit code 2, one line, nothing left behind

BAD = [
    ("task=nope", "task=nope: unknown; allowed: ising, mnist, mod_add, "),
    ("init_scal=3", "init_scal: no such key (did you mean init_scale?); allowed: init_scale, seed, "),
    (
        "datamodule.shufle=true",
        "datamodule.shufle: no such key (did you mean datamodule.shuffle?); allowed: datamodule.",
    ),
    ("callbacks=nope", "callbacks=nope: unknown; allowed: "),
    ("optimizer=nope", "optimizer=nope: unknown; allowed: adam, adamw, adamw_transformer, sgd"),
    ("logger=nope", "logger=nope: unknown (did you mean none?); allowed: csv, none, wandb"),
    ("optimizer=null", "config group override must be a string"),
    (
        "+callbacks.x._target_=callbacks.Nope",
        "callbacks.x._target_=callbacks.Nope: callbacks has no Nope; it has AnalysisCallback, ",
    ),
    (
        "+callbacks.x._target_=nowhere.Nope",
        "callbacks.x._target_=nowhere.Nope: there is no module nowhere, neither installed nor in this ",
    ),
    ("+callbacks.x=1", "callbacks.x=1: not a Lightning callback; give callbacks.x._target_"),
    ("~callbacks.evaluation", "callbacks.evaluation: cannot be left out"),
    ("init_scale=-1", "init_scale=-1: must be a finite number, 0 or more"),
    ("init_scale=nan", "init_scale=nan: must be a finite number, 0 or more"),
    ("init_scale=[1,-2]", "init_scale=-2: must be a finite number, 0 or more"),
    ("init_scale=[]", "init_scale=[]: an empty list; give at least one value"),
    ("seed=[]", "seed=[]: an empty list"),
    ("seed=3:3", "seed=3:3: an empty list"),
    ("seed=-1", "seed=-1: must be a whole number from 0 to 4294967295"),
    ("seed=[1,1]", "seed=[1,1]: has 1 twice"),
    ("seeds.init=x", "seeds.init=x: must be a whole number"),
    ("weight_decay=inf", "weight_decay=inf: must be a finite number"),
    ("learning_rate=-1", "learning_rate=-1: must be a finite number"),
    ("P=9 operation=multiply", "P=9: operation=multiply needs a prime modulus"),
    ("P=10 operation=multiply", "P=10: operation=multiply needs a prime modulus"),
    ("P=1", "P=1, hidden=[16]: P is at least 2"),
    ("P=eleven", "P=eleven: must be a whole number"),
    ("datamodule.operation=subtract", "subtract: always the same as operation: set operation instead"),
    ("hole=disc", "hole=disc: unknown; allowed: none, square, strip"),
    ("warmup_steps=-1", "warmup_steps=-1: must be a whole number, 0 or more"),
    ("operation=divide", "operation=divide: unknown; allowed: add, subtract, multiply"),
    ("train_fraction=1", "train_fraction=1: must lie between 0 and 1"),
    ("network.hidden=3", "network.hidden=3: must be a list of whole numbers, such as [3]"),
    ("network.hidden=[0]", "hidden=[0]: "),
    ("network._target_=os.getcwd", "network._target_=os.getcwd: not a torch.nn.Module class"),
    ("loss=hinge", "loss=hinge: must be one of cross_entropy, mse"),
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
    ("epochs", "epochs: cannot be read as KEY=VALUE; write epochs=VALUE, without spaces"),
    ("epochs = 3", "epochs: cannot be read as KEY=VALUE; write epochs=VALUE, without spaces"),
    ("seed=0;3", "seed=0;3: cannot be read as KEY=VALUE; lists are written [1,2], without spaces, and special "),
    ("init_scale=[1, 10]", "init_scale=[1,: cannot be read as KEY=VALUE; lists are written [1,2], without spaces"),
    ("--halp", "--halp: no such option (did you mean --help?); keys are written KEY=VALUE, without dashes"),
    ("--init_scale=3", "--init_scale=3: no such option; write init_scale=3; keys are written KEY=VALUE"),
    ("init_scale=1,10", "init_scale=1,10: write init_scale=[1,10] to train all at once, or -m init_scale=1,10 to "),
    ("network.hidden=8,8", "network.hidden=8,8: write network.hidden=[8,8] for a list, or -m network.hidden=8,8 to "),
    (
        "callbacks=mod_add ~callbacks.prunning",
        "callbacks.prunning: no such key (did you mean callbacks.pruning?); allowed: callbacks.",
    ),
    ("~callback.pruning", "callback.pruning: no such key (did you mean callbacks.pruning?); allowed: init_scale, "),
    (
        "callbacks=mod_add callbacks.prunning.every=3",
        "callbacks.prunning.every: no such key (did you mean callbacks.pruning.every?)",
    ),
    ("side=8", "side: no such key here, but with task=ising; allowed: init_scale, "),
    ("datamodule.t_min=1", "datamodule.t_min: no such key here, but with task=ising; allowed: datamodule._target_, "),
    ("+epoch=5", "epoch: no such key (did you mean epochs?); allowed: init_scale, "),
    ("+datamodul.shuffle=true", "datamodul: no such key (did you mean datamodule?); allowed: init_scale, "),
    ("+init_scale=3", "+init_scale: it is there already: write init_scale=VALUE, without the plus"),
    ("+optimizer.beta=3", "optimizer.beta: no such key (did you mean optimizer.betas?); allowed: optimizer."),
    ("+trainer.maxepochs=3", "trainer.maxepochs: no such key (did you mean trainer.max_epochs?); allowed: trainer."),
    ("experiment=mine", "experiment=mine: unknown; allowed: mnist_paper, polygons_paper"),
    ("+experiment=mine", "experiment=mine: unknown; allowed: mnist_paper, polygons_paper"),
    ("task=[ising,mod_add]", "task=[ising,mod_add]: one at a time; -m task=ising,mod_add queues a run for each"),
    ("~log_every", "callbacks.evaluation.every: it follows the key log_every, which there is not"),
    ("~network", "network.hidden: there is no network, which ~network has taken out"),
    ("datamodule=5", "datamodule=5: must be an object, such as {_target_: my_lab.MyClass}"),
    (
        "callbacks.evaluation.split=train",
        "callbacks.evaluation.every; for what its class takes besides, write +callbacks.",
    ),
    ("SEED=3", "SEED: no such key (did you mean seed?); allowed: init_scale, "),
    ("trainer.devices=2", "trainer.devices=2: replicas train on one device"),
    ("trainer.devices=two", "`devices` selected with `CPUAccelerator` should be an int > 0"),
    ("~network._target_", "network: give network._target_, a class, and its arguments"),
    ("callbacks.evaluation=null", "callbacks.evaluation=null: not a Lightning callback; give callbacks.evaluation."),
    ("epochs=${nope}", "epochs: it follows the key nope, which there is not"),
    ("epochs=1.5", "epochs=1.5: must be a whole number, 1 or more"),
    ("epochs=true", "epochs=true: must be a whole number, 1 or more"),
    ("epochs=null", "epochs=null: must be a whole number, 1 or more"),
    ("label_noise=some", "label_noise=some: must be a number between 0 and 1"),
    ("seeds=5", "seeds=5: must be a mapping {KEY: VALUE} or null"),
    ("seed=0:1000000000", "seed=0:1000000000: 1000000000 replicas; no more than 100000 train at once (-m and commas "),
    ("run_dir=", "run_dir=: must be a directory"),
    ("resume=true", "resume=true: must be a directory or null"),
    ("resume=5", "resume=5: not a run's directory (it has no config.yaml)"),
    ("dry_run=maybe", "dry_run=maybe: must be true or false"),
    ("P=[7,11]", "P=[7,11]: must be a whole number"),
    ("P=eleven", "P=eleven: must be a whole number"),
    ("train_fraction=abc", "train_fraction=abc: must be a number"),
    ("datamodule.shuffle=maybe", "datamodule.shuffle=maybe: must be true or false"),
    ("network.hidden=512", "network.hidden=512: must be a list of whole numbers, such as [512]"),
    ("network.hidden=[8,abc]", "network.hidden=[8,abc]: must be a list of whole numbers"),
    ("logger=wandb logger.tags=grok", "logger.tags=grok: must be a list of strings, such as [grok]"),
    ("logger=wandb logger.entity=true", "logger.entity=true: must be a string or null"),
    ("callbacks=mod_add callbacks.ipr.per_decade=abc", "callbacks.ipr.per_decade=abc: must be a whole number or null"),
    ("callbacks=mod_add callbacks.pruning.scores=abc", "callbacks.pruning.scores=abc: must be an object: give "),
    ("callbacks=mod_add callbacks.fim_trajectory.variants=regression", "must be a list of classif_logits, regression"),
    ("trainer.gradient_clip_val=abc", "trainer.gradient_clip_val=abc: must be a number or null"),
    ("+trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number"),
    ("trainer.max_epochs=5", "trainer.max_epochs=5: always the same as epochs: set epochs instead"),
    ("++trainer.max_epochs=5", "trainer.max_epochs=5: always the same as epochs: set epochs instead"),
    ("optimizer.lr=1", "optimizer.lr=1: always the same as learning_rate: set learning_rate instead"),
    ("network.P=7", "network.P=7: always the same as P: set P instead"),
    ("+callbacks.x=my_lab.X", "callbacks.x=my_lab.X: not a Lightning callback; give callbacks.x._target_"),
    ("optimizer._target_=torch.optim.Adamm", "torch.optim has no Adamm (did you mean Adam?)"),
    ("optimizer._target_=torch.optim.RMSprop +optimizer.momentum=x", "optimizer.momentum=x: must be a number"),
]
BAD_ISING = [
    ("side=10", "side=10: the two poolings by 2 need a positive multiple of 4"),
    ("side=0", "side=0: the two poolings by 2 need a positive multiple of 4"),
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network=digit_mlp", "network: DigitMLP cannot take the inputs of this task, which are int64 of shape (2,)"),
        ("network=resnet18", "network: ResNet18 cannot take the inputs of this task"),
        ("optimizer.betas=[0.9,1]", "optimizer: Invalid beta parameter at index 1"),
    ],
)
def test_what_does_not_fit_a_task_is_refused_before_it_trains(command, override, message):
    result = command("task=prime", "P=11", "epochs=2", "logger=none", "callbacks=base", "run_dir=run", override)
    assert result.code == 2
    assert message in result.err
    assert not (command.folder / "run").exists()


def test_a_folder_of_the_users_stays_where_it_was(command):
    (command.folder / "mine").mkdir()
    assert command(*command.MOD_ADD, "run_dir=mine", "P=1").code == 2
    assert command(*command.MOD_ADD, "run_dir=mine/deep/er", "P=1").code == 2
    assert [str(p.relative_to(command.folder)) for p in command.folder.rglob("*")] == ["mine"]


def test_a_queue_is_told_what_a_single_run_is_told(command):
    result = command("-m", "init_scal=1,10")
    assert result.code == 2
    assert result.err.startswith("error: init_scal: no such key (did you mean init_scale?)")


def test_numbers_are_spelled_as_one_likes(command):
    run = command.mod_add("epochs=1e1", "log_every=2.0", "datamodule.shuffle=yes", "logger=csv")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["epochs"], config["trainer"]["max_epochs"], config["datamodule"]["shuffle"]) == (10, 10, True)
    assert summary(run)[0]["epochs"] == 10
    assert lit_grok.open_run(run).evaluation.epoch.values.tolist() == [0, 2, 4, 6, 8, 10]


# Files that are wrong

EXPERIMENTS = {
    "broken": ("epochs: 5\n seed: 3\n", "broken.yaml: not readable as YAML (line 3, column 6: mapping values are "),
    "open": ("epochs: [1, 2\n", "open.yaml: not readable as YAML (line 3, column 1: "),
    "twice": (
        "epochs: 5\nepochs: 6\n",
        "twice.yaml: not readable as YAML (line 3, column 1: found duplicate key epochs)",
    ),
    "tab": ("epochs:\t5\n", "tab.yaml: not readable as YAML (line 2, column 8: "),
    "typo": ("epoch: 5\n", "epoch: no such key (did you mean epochs?); allowed: "),
    "type": ("epochs: five\n", "epochs=five: must be a whole number, 1 or more"),
    "nested": ("datamodule:\n  shuffle: maybe\n", "datamodule.shuffle=maybe: must be true or false"),
    "contrary": ("trainer:\n  max_epochs: 5\n", "trainer.max_epochs=5: always the same as epochs: set epochs instead"),
    "other": (
        "defaults:\n  - override /task: modadd\n",
        "task=modadd: unknown (did you mean mod_add?); allowed: ising, ",
    ),
}


@pytest.fixture
def experiments(command):
    """A folder of configurations of the user's own."""
    folder = command.folder / "mine" / "experiment"
    folder.mkdir(parents=True)
    for name, (text, _) in EXPERIMENTS.items():
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    (folder / "bare.yaml").write_text("epochs: 5\n")
    (folder / "good.yaml").write_text("# @package _global_\nepochs: 2\nseed: 3\ndatamodule:\n  shuffle: yes\n")
    return "--config-dir=mine"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_file_that_is_wrong_is_one_sentence(command, experiments, name):
    result = command(experiments, f"experiment={name}", "run_dir=run")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert EXPERIMENTS[name][1] in result.err
    assert not (command.folder / "run").exists()


def test_a_file_that_is_not_there_or_lacks_its_first_line(command, experiments):
    result = command(experiments, "experiment=god")
    assert result.err.startswith("error: experiment=god: unknown (did you mean good?); allowed: bare, ")
    result = command(experiments, *command.MOD_ADD, "experiment=bare")
    assert result.err == "error: experiment: its file must begin with the line '# @package _global_'\n"


def test_a_file_that_is_right(command, experiments):
    result = command(*command.MOD_ADD, experiments, "experiment=good")
    assert result.err.startswith(
        "error: experiment=good: options such as -m and --config-dir=DIR stand before or behind"
    )
    assert command(experiments, *command.MOD_ADD, "experiment=good", "run_dir=run").code == 0
    run = command.folder / "run"
    assert summary(run)[0]["seed"] == 3
    assert yaml.safe_load((run / "config.yaml").read_text())["datamodule"]["shuffle"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs: [1, 2\nseed: 3\n",
            "run/config.yaml: cannot be read as the configuration of a run (line 2, column ",
        ),
        ("", "run/config.yaml: cannot be read as the configuration of a run (it is no mapping"),
        ("- a\n", "run/config.yaml: cannot be read as the configuration of a run (it is no mapping"),
        ("epochs: 3\n", "run/config.yaml: task: missing, and no run can do without it"),
    ],
)
def test_a_run_whose_configuration_is_damaged(command, text, message):
    (command.mod_add() / "config.yaml").write_text(text)
    result = command("resume=run")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(f"error: {message}")


# A module in the folder where one is

LAB = """
from callbacks import AnalysisCallback

class LargestWeightCallback(AnalysisCallback):
    def measure(self, network, batch):
        return {"largest_weight": max(p.abs().max() for p in network.parameters())}
"""


def test_a_module_in_the_current_folder_is_found(command):
    (command.folder / "my_lab.py").write_text(LAB)
    mine = "+callbacks.mine._target_=my_lab.LargestWeight"
    result = command(*command.MOD_ADD, mine)
    assert result.code == 2
    assert result.err == (
        "error: callbacks.mine._target_=my_lab.LargestWeight: my_lab has no LargestWeight "
        "(did you mean LargestWeightCallback?)\n"
    )
    result = command(*command.MOD_ADD, f"{mine}Callback", "+callbacks.mine.evry=2")
    assert result.err.startswith(
        "error: callbacks.mine.evry: no such key (did you mean callbacks.mine.every?); allowed: "
    )
    run = command.mod_add(f"{mine}Callback", "+callbacks.mine.every=2")
    assert lit_grok.open_run(run).mine.largest_weight.dropna("epoch").epoch.values.tolist() == [0, 2, 4]


def test_a_module_of_a_name_that_the_project_has_does_not_hide_the_projects(command):
    (command.folder / "callbacks.py").write_text("raise RuntimeError('hidden')\n")
    assert summary(command.mod_add())


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


SECRETS = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "MY_TOKEN": "correct horse battery staple"}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """What a user sees who types one command, and the folder where that was, in an environment with secrets."""
    folder = tmp_path_factory.mktemp("typed")
    tiny = ("task=mod_add", "P=7", "network.hidden=[8]", "epochs=2", "init_scale=[1,10]")
    return user(folder, *tiny, **SECRETS), folder


def test_a_user_types_one_command(typed):
    result, folder = typed
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (run,) = (folder / "runs" / "mod_add").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.name)
    assert f"mod_add, 2 replica(s), results in runs/mod_add/{run.name}" in result.stdout
    assert sorted(p.name for p in run.iterdir()) == [
        *(
            "checkpoints",
            "config.yaml",
            "figures",
            "report.html",
            "results.nc",
            "summary.json",
            "train.log",
            "wandb",
            "wandb_ids.json",
            "weights.safetensors",
        ),
    ]
    assert os.listdir(folder) == ["runs"]  # nothing of Hydra's, Lightning's or W&B's beside it


@pytest.mark.parametrize("arguments", [["--help"], ["init_scal=3"], ["epochs=many"], ["task=mod_add", "seed=x"]])
def test_help_and_typos_do_not_wait_for_what_trains(tmp_path, arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train.py', *{arguments}]\n"
        f"sys.path[0] = {str(ROOT)!r}\n"
        "try:\n    runpy.run_path(sys.path[0] + '/train.py', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'lightning', 'wandb', 'xarray', 'matplotlib', 'numba', 'numpy'} & {*sys.modules}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "", result.stdout


ON_PAIRS = "embedding_mlp, modular_mlp, one_hot_mlp, transformer"


@pytest.mark.parametrize(
    ("task", "network", "allowed"),
    [
        ("polygons", "transformer", "resnet18"),
        ("polygons", "digit_mlp", "resnet18"),
        ("polygons", "ising_cnn", "resnet18"),
        ("mod_add", "resnet18", ON_PAIRS),
        ("ising", "modular_mlp", "ising_cnn"),
        ("mnist", "resnet18", "digit_mlp"),
    ],
)
def test_a_network_of_another_task(command, task, network, allowed):
    result = command(f"task={task}", f"network={network}", "run_dir=run")
    assert result.code == 2
    assert result.err == f"error: network={network}: this network is not for task={task}; allowed: {allowed}\n"
    assert list(command.folder.iterdir()) == []


def test_a_network_that_is_made_to_fit_and_one_for_a_task_of_ones_own(command):
    ising = [o for o in command.ISING if o != "run_dir=run"]
    assert command(*ising, "network=digit_mlp", "network.side=8", "network.classes=2", "run_dir=run").code == 0
    own = (f"--config-dir={ROOT / 'examples'}", "task=sparse_parity", "network=transformer", "logger=none")
    assert command(*own).err == "error: network.P: it follows the key P, which there is not\n"


def test_what_only_the_network_itself_can_say_is_not_guessed(command, monkeypatch):
    (command.folder / "own_networks.py").write_text(OWN_NETWORKS)
    monkeypatch.syspath_prepend(str(command.folder))
    assert command(*command.MOD_ADD, "+callbacks.mine._target_=own_networks.NeedsAttribute").code == 0
    made = command("task=mod_add", "network._target_=own_networks.network", "run_dir=other")
    assert made.err == "error: network._target_=own_networks.network: not a torch.nn.Module class\n"


OWN_NETWORKS = """
from typing import Protocol, runtime_checkable

from callbacks import AnalysisCallback
from lit_grok.networks import ModularMLP


@runtime_checkable
class HasColumns(Protocol):
    column_major: tuple


class NeedsAttribute(AnalysisCallback):
    requires = (HasColumns,)

    def measure(self, network, batch):
        return {}


def network(**options):
    return ModularMLP(**options)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=prime", "~callbacks"], r"\(network=transformer, optimizer=adamw_transformer\)"),
        (["task=ising", "network=transformer"], r"\(network=transformer, optimizer=adam, callbacks=ising\)"),
    ],
)
def test_help_of_what_will_not_train(command, arguments, said):
    result = command(*arguments, "--help")
    assert (result.code or 0, result.err) == (0, "")
    assert re.search(f"Keys of task={arguments[0].removeprefix('task=')} {said}", result.out)


def test_the_help_of_a_task_shows_its_keys_with_their_values(command):
    prime = command("task=prime", "P=59", "--help").out
    for line in (
        r"Keys of task=prime \(network=transformer, optimizer=adamw_transformer, callbacks=prime\), and their values",
        r"P +59",
        r"operation +add +add \| subtract \| .*",
        r"hole_size +null +the largest residue in the hole",
        r"layers +1",
        r"network\.d_mlp +512",
        r"network\.normalisation +none +none \| layer",
    ):
        assert re.search(rf"^ *{line}$", prime, re.MULTILINE), line
    assert "datamodule.P" not in prime  # it follows P
    assert re.search(r"^ *datamodule\.t_max +3\.5$", command("--help").out, re.MULTILINE)
    own = command(f"--config-dir={ROOT / 'examples'}", "task=sparse_parity", "--help").out
    assert re.search(r"^ *bits +40$", own, re.MULTILINE)


def test_help_names_the_tasks_the_keys_and_five_examples(command):
    result = command("--help")
    assert result.code in (0, None)
    for word in ("task=ising", "task=mod_add"):
        assert word in result.out
    keys = "init_scale seed epochs weight_decay learning_rate batch_size optimizer accelerator threads logger run_dir P"
    for key in [*keys.split(), "seeds.init", "seeds.data", "seeds.order", "resume", "dry_run", "side"]:
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
    log = (run / "train.log").read_text()
    assert "ising, 8 replica(s)" in log
    table = [line for line in log.splitlines() if re.match(r" *(0\.)?1?\d +\d +0\.\d +\w+ ", line)]
    assert [line.split()[:4] for line in table] == [
        [f"{r['init_scale']:g}", f"{r['seed']}", f"{r['weight_decay']:g}", r["status"]] for r in records
    ]
    results = lit_grok.open_run(run)
    assert results.evaluation.test_accuracy.sel(init_scale=10, weight_decay=0.1).mean("seed").sizes == {"epoch": 5}
    assert results.status.values.tolist() == [r["status"] for r in records]
    for name in ("t_train", "t_test", "t_grok"):
        expected = [np.nan if r[name] is None else r[name] for r in records]
        np.testing.assert_array_equal(results[name], expected)
    assert {k: results.attrs[k] for k in ("task", "title")} == {"task": "ising", "title": "ising, side = 8"}
    assert results.attrs["command"].startswith("python train.py task=ising side=8 ")
    assert {"lit_grok", "torch"} <= {words.split()[0] for words in results.attrs["versions"].split(", ")}
    for node in results.subtree:
        for name, variable in node.data_vars.items():
            assert variable.attrs["long_name"], name
            assert variable.attrs.get("units", "epochs") == "epochs", name  # all else is dimensionless
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
    assert together.evaluation.test_accuracy.sel(init_scale=10).dims == ("seed", "epoch")


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
    evaluation = lit_grok.open_run(run, "evaluation").evaluation.isel(replica=0)
    return (
        evaluation.weight_norm.sel(epoch=0).item(),
        evaluation.train_loss.sel(epoch=0).item(),
        evaluation.train_loss.sel(epoch=2).item(),
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
    among, single = (lit_grok.open_run(r).evaluation.to_dataset().sel(init_scale=10, seed=2) for r in (many, alone))
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
    assert wandb_ids(run) == sorted(ids)
    assert all(list(path.glob("*.wandb")) for path in wandb_runs(run))
    assert os.listdir(command.folder) == ["run"]


class Closed(WandbLogger):
    """A W&B run that only notes how it was closed."""

    codes: ClassVar[list] = []
    summary: ClassVar[dict] = {}
    id = "0123abcd"

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
    monkeypatch.setattr("wandb.init", lambda **_: Closed())
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

    monkeypatch.setattr("wandb.init", init)
    result = command(*command.MOD_ADD, "logger=wandb", "run_dir=run")
    assert result.code == 0
    assert result.err.startswith("warning: W&B could not start, the run goes on without it: ")
    assert "W&B could not start" in (command.folder / "run" / "train.log").read_text()
    assert len(summary(command.folder / "run")) == 1


def test_secrets_of_the_environment_reach_no_file(typed, tmp_path):
    result, folder = typed
    assert any(path.suffix == ".wandb" for path in folder.rglob("*"))
    (tmp_path / "told").write_text(SECRETS["MY_TOKEN"])
    assert [path.name for path in files_with(tmp_path, SECRETS["MY_TOKEN"])] == ["told"]  # it would be found
    for secret in SECRETS.values():
        assert not files_with(folder, secret)
        assert secret not in result.stdout + result.stderr


def test_wandb_of_a_bad_mode(command):
    result = command(*command.MOD_ADD[:-1], "callbacks=base", "logger=wandb", "logger.mode=cloud")
    assert result.code == 2
    assert result.err == "error: logger.mode=cloud: must be one of offline, online\n"
    assert os.listdir(command.folder) == []
