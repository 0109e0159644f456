import os
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from lightning import Callback, Trainer
from omegaconf import OmegaConf

import callbacks
from callbacks.checks import check_callbacks
from datamodules import ReplicaDataModule
from lit_grok import choices, cli, schema
from lit_grok.modules import LitClassifier
from lit_grok.replicas import ReplicaStack
from lit_grok.results import build_network

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS = {
    str(folder.relative_to(CONFIGS)): sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in CONFIGS.rglob("*")
    if folder.is_dir() and folder.parts[len(CONFIGS.parts)] not in ("hydra", "sweep")
}
# A group within a group (callbacks/extra) is added to what there is.
CHOICES = [f"{'+' * ('/' in group)}{group}={name}" for group, names in GROUPS.items() for name in names]
TASKS = GROUPS["task"]
#: What belongs to the tasks on pairs of residues alone.
ON_RESIDUES = ["mod_add", "prime"]
#: The tasks that a network fits, where these are others.
FITTING = {"ising_cnn": ["ising"], "resnet18": ["polygons"], "digit_mlp": ["mnist"]}


@pytest.fixture(autouse=True)
def own_hydra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["run_dir=run", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def assemble(config):
    """Everything that the configuration names, without sampling or training."""
    replicas = cli.replicas(config)
    schema.check_keys(config)
    schema.check_targets(config, config)
    datamodule = instantiate(config["datamodule"], data_seeds=[0], order_seeds=[0])
    network = build_network(config["network"])
    optimizer = instantiate(config["optimizer"])
    module = instantiate(
        config["module"], stack=ReplicaStack([network]), replicas=replicas, optimizer=optimizer, _convert_="all"
    )
    found = instantiate({"callbacks": config["callbacks"]}, _convert_="all")["callbacks"]
    check_callbacks(found, build_network(config["network"]), config)
    trainer = instantiate(config["trainer"], callbacks=list(found.values()), logger=False)
    return datamodule, module, found, trainer


def with_task(choice):
    """A choice that belongs to one task is tried with that task, any other with all."""
    group, _, name = choice.partition("=")
    if group == "task":
        return [[choice]]
    if group == "callbacks" and (task := name.removesuffix("_paper")) in TASKS:
        return [[f"task={task}", choice]]
    if group == "experiment":
        return [[choice]]
    if group == "network":
        return [[f"task={task}", choice] for task in FITTING.get(name, ON_RESIDUES)]
    return [[f"task={task}", choice] for task in (ON_RESIDUES if name == "superposition" else TASKS)]


@pytest.mark.parametrize("overrides", [o for choice in CHOICES for o in with_task(choice)], ids=" ".join)
def test_every_file_is_composed_and_instantiated(overrides):
    config = composed(*overrides)
    datamodule, module, found, trainer = assemble(config)
    assert isinstance(datamodule, ReplicaDataModule)
    assert isinstance(module, LitClassifier)
    assert isinstance(trainer, Trainer)
    assert all(isinstance(callback, Callback) for callback in found.values())
    module.configure_optimizers()
    make_loggers = instantiate(config["logger"], _partial_=True)
    assert callable(make_loggers)
    keys = [callback.state_key for callback in found.values()]
    assert len(set(keys)) == len(keys)  # otherwise one would load the state of another


@pytest.mark.parametrize("task", TASKS)
def test_the_networks_of_a_task_are_known(task):
    expected = [name for name in GROUPS["network"] if task in FITTING.get(name, ON_RESIDUES)]
    assert choices.fitting_networks(task) == expected


def test_every_file_is_reached_by_a_choice():
    files = {str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml") if file.parent.name != "sweep"}
    reached = {f"{group}/{name}.yaml" for group, names in GROUPS.items() for name in names}
    hydras = {"hydra/help/lit_grok.yaml", "hydra/sweeper/lit_grok.yaml", "hydra/launcher/slurm.yaml"}
    assert files == reached | {"train.yaml"} | hydras


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_file_says_how_it_is_used(file):
    lines = file.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert any("python train.py" in line for line in lines[:first]), lines[:first]


def targets(tree):
    if isinstance(tree, dict):
        if isinstance(tree.get("_target_"), str):
            yield tree["_target_"]
        for value in tree.values():
            yield from targets(value)


def test_every_callback_that_is_exported_is_in_a_configuration():
    used = {target for file in CONFIGS.rglob("*.yaml") for target in targets(yaml.safe_load(file.read_text()))}
    named = {get_object(target) for target in used}
    exported = {getattr(callbacks, name) for name in callbacks.__all__}
    shells = {c for c in exported if issubclass(c, Callback) and c.__name__ != "AnalysisCallback"}
    assert shells <= named


# The values of SCIENCE.md §1


def test_ising_is_the_papers():
    config = composed("task=ising")
    expected = {
        "side": 16,
        "epochs": 100_000,
        "weight_decay": 0.1,
        "learning_rate": 1e-4,
        "batch_size": 300,
        "log_every": 100,
        "loss": "cross_entropy",
        "init_scale": 1.0,
        "seed": 0,
    }
    assert {key: config[key] for key in expected} == expected
    data = config["datamodule"]
    assert (data["train_size"], data["test_size"], data["temperatures"], data["snapshots"]) == (300, 1000, 50, 1000)
    assert (data["t_min"], data["t_max"], data["steps"]) == (1.0, 3.5, 50_000)
    assert config["optimizer"]["_target_"] == "lit_grok.optimizers.Adam"
    assert sum(p.numel() for p in build_network(config["network"]).parameters()) == 6798


def test_modular_addition_is_the_papers():
    config = composed("task=mod_add")
    expected = {
        "P": 113,
        "epochs": 1000,
        "weight_decay": 3e-5,
        "learning_rate": 5e-3,
        "batch_size": 64,
        "log_every": 1,
        "loss": "cross_entropy",
    }
    assert {key: config[key] for key in expected} == expected
    data = config["datamodule"]
    assert (data["train_fraction"], data["operation"], data["shuffle"]) == (0.7, "add", False)
    assert sum(p.numel() for p in build_network(config["network"]).parameters()) == 174_193
    assert config["module"]["classes"] == 113


def test_polygons_are_the_papers():
    config = composed("experiment=polygons_paper")
    expected = {"symbols": 11, "side": 224, "epochs": 20_000, "batch_size": 200}
    assert {key: config[key] for key in expected} == expected
    assert (config["weight_decay"], config["learning_rate"]) == (1e-4, 1e-3)
    data = config["datamodule"]
    assert (data["train_fraction"], data["shuffle"], data["side"]) == (0.25, True, 224)
    assert config["optimizer"]["_target_"] == "lit_grok.optimizers.Adam"
    network = build_network(config["network"])
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 1000 * 513 + 52 * 513


def test_mnist_is_omnigroks_and_the_first_papers():
    config = composed("task=mnist")
    expected = {"weight_decay": 0.01, "learning_rate": 1e-3, "batch_size": 200, "loss": "mse"}
    assert {key: config[key] for key in expected} == expected
    assert (config["datamodule"]["train_size"], config["network"]["hidden"]) == (1000, [200, 200])
    assert config["optimizer"]["_target_"] == "lit_grok.optimizers.AdamW"
    assert config["epochs"] * 5 == 100_000
    config = composed("experiment=mnist_paper")
    expected = {"weight_decay": 0.01, "learning_rate": 1e-4, "batch_size": 300, "loss": "cross_entropy"}
    assert {key: config[key] for key in expected} == expected
    assert (config["datamodule"]["train_size"], config["network"]["hidden"]) == (500, [70, 35])
    assert (config["optimizer"]["_target_"], config["network"]["init"]) == ("lit_grok.optimizers.Adam", "xavier_normal")


@pytest.mark.parametrize("task", TASKS)
def test_top_level_keys_reach_their_objects(task):
    sizes = {"ising": ["side=8"], "polygons": ["symbols=3", "network.classes=17"], "mnist": ["network.classes=12"]}
    size = sizes.get(task, ["P=13"])
    overrides = ["epochs=7", "warmup_steps=0", "learning_rate=0.5", "batch_size=6", "log_every=3"]
    overrides += ["checkpoint_every=5", "loss=mse", "label_noise=0.5"]
    datamodule, module, found, trainer = assemble(composed(f"task={task}", *size, *overrides))
    assert trainer.max_epochs == 7
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.5
    assert module.loss == "mse"
    assert datamodule.batch_size == 6
    assert datamodule.label_noise == 0.5
    assert (found["evaluation"].every, found["checkpoint"].every) == (3, 5)
    reached = {
        "ising": lambda: datamodule.side == 8,
        "polygons": lambda: datamodule.symbols == 3 and module.classes == 17,
        "mnist": lambda: module.classes == 12,
    }
    assert reached.get(task, lambda: datamodule.P == module.classes == 13)()


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["task=ising"], "ising, side = 16"),
        (["task=mod_add", "P=59", "init_scale=[1,10]", "epochs=5"], "mod_add, P = 59"),
        (["task=mod_add", "operation=multiply"], "mod_add, P = 113, operation = multiply"),
        (
            ["task=prime", "layers=2", "hole=strip", "hole_size=40"],
            "prime, P = 97, hole = strip, hole_size = 40, layers = 2",
        ),
        (["task=prime"], "prime, P = 97"),
        (["task=mnist", "learning_rate=0.1"], "mnist"),
    ],
)
def test_a_title_names_the_size_and_what_is_not_as_usual(overrides, title):
    assert cli.provenance(composed(*overrides))["title"] == title


def test_nothing_is_written_while_composing(tmp_path):
    for task in TASKS:
        assemble(composed(f"task={task}"))
    assert os.listdir(tmp_path) == []
