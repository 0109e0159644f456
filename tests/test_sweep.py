"""``wandb sweep configs/sweep/….yaml``: what its agent starts is train.py as it is, in the run that the agent made."""

import json
from pathlib import Path

import pytest
import wandb
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import load_sweep_config

from tests.helpers import wandb_ids, wandb_names, wandb_records

SWEEPS = sorted((Path(__file__).parents[1] / "configs" / "sweep").glob("*.yaml"))
SWEEP, RUN = "4qt1zzu8", "1mbku38n"
TINY = ("P=11", "network.hidden=[8]", "epochs=2", "run_dir=run")


@pytest.fixture
def in_sweep(monkeypatch):
    """The environment of an agent, which adds to it."""
    monkeypatch.setenv("WANDB_SWEEP_ID", SWEEP)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")
    wandb.teardown()  # its process has read another environment
    yield
    wandb.teardown()


def drawn(parameters):
    """A value for each parameter, of those that a sweep draws."""
    ways = {"value": lambda p: p["value"], "values": lambda p: p["values"][0], "min": lambda p: p["min"] * 1.000001}
    return {name: next(way(p) for key, way in ways.items() if key in p) for name, p in parameters.items()}


def started(sweep, values, monkeypatch):
    """The command line with which W&B's agent starts a run."""
    commands = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, **_: commands.append(command) or AgentProcess())
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id=SWEEP)
    agent._sweep_command = sweep["command"]
    arguments = {name: {"value": value} for name, value in values.items()}
    response = agent._process_command({"type": "run", "run_id": RUN, "program": sweep["program"], "args": arguments})
    assert "exception" not in response, response
    return commands[0]


class AgentProcess:
    """A process that nobody has started."""


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_an_agent_starts_train_py_and_it_logs_into_the_agents_run(command, in_sweep, monkeypatch, file):
    sweep = load_sweep_config(str(file))
    values = drawn(sweep["parameters"])
    env, interpreter, program, *keys = started(sweep, values, monkeypatch)
    assert (env, interpreter, program) == ("/usr/bin/env", "python", "train.py")
    assert keys == ["logger.mode=online", *(f"{name}={value}" for name, value in values.items())]
    result = command(*keys, *TINY, "~callbacks.fim_trajectory", "logger.mode=offline")
    assert (result.code, result.err) == (0, "")
    (records,) = wandb_records("run")
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.run_id, run.sweep_id) == (RUN, SWEEP)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in values} == values
    assert json.loads(Path("run/wandb_ids.json").read_text()) == [RUN]
    if "metric" in sweep:
        assert sweep["metric"]["name"] in wandb_names("run")["history"]


def test_a_run_of_a_sweep_goes_on_in_the_same_wandb_run_without_the_agent(command, in_sweep, monkeypatch):
    (file,) = (file for file in SWEEPS if file.stem == "init_scale")
    sweep = load_sweep_config(str(file))
    _, _, _, *keys = started(sweep, drawn(sweep["parameters"]), monkeypatch)
    assert command(*keys, *TINY, "callbacks=base", "logger.mode=offline").code == 0
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name)
    wandb.teardown()
    result = command("resume=run", "epochs=3")
    assert (result.code, result.err) == (0, "")
    assert wandb_ids("run") == [RUN]


@pytest.mark.parametrize("several", [["seed=0:2"], ["seed=0,1", "-m"], ["init_scale=[1,10]"]])
def test_several_replicas_would_share_the_agents_run_and_are_refused(command, in_sweep, several):
    result = command(*command.MOD_ADD, "logger=wandb", *several)
    jobs = 2 if "-m" in several else 1  # of which each is refused
    assert result.code == (1 if "-m" in several else 2)
    refusal = "error: init_scale, weight_decay and seed: the agent of a W&B sweep starts one replica"
    assert [line.startswith(refusal) for line in result.err.splitlines()] == [True] * jobs
    assert not list(command.folder.rglob("config.yaml"))


def test_without_wandb_an_agents_environment_means_nothing(command, in_sweep):
    command.mod_add("seed=0:2", "logger=csv")


def test_the_files_are_no_choices_of_train_py(command):
    result = command("task=mod_add", "sweep=init_scale")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: sweep: no such key")
