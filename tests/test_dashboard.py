"""``python dashboard.py``: every name that a panel asks for is one that training logs."""

import json
import subprocess
import sys

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

import dashboard
from lit_grok import dashboards
from tests.helpers import wandb_names


def offline(captured):
    dashboard.main(["my_team/lit_grok", "--offline"])
    return json.loads(captured.readouterr().out)


def found(tree, kind):
    """All dictionaries below that have this key."""
    if isinstance(tree, dict):
        if kind in tree:
            yield tree
        tree = list(tree.values())
    for branch in tree if isinstance(tree, list) else ():
        yield from found(branch, kind)


def names(specification):
    """What a specification asks runs for, by where they have it."""
    asked = {"history": set(), "summary": set(), "config": set()}
    for panel in found(specification, "viewType"):
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            asked["history"] |= {config["xAxis"], *config["metrics"]}
            continue
        assert panel["viewType"] == "Scatter Plot"
        for axis in ("xAxis", "yAxis", "zAxis"):
            kind, _, name = config[axis].partition(":")
            asked[kind].add(name.removesuffix(".value"))
    for key in [key for runs in found(specification, "grouping") for key in runs["grouping"]]:
        asked[key["section"]].add(key["name"].removesuffix(".value"))
    for column in [column for runs in found(specification, "columnPinned") for column in runs["columnPinned"]]:
        kind, _, name = column.partition(":")
        if kind != "run":
            asked[kind].add(name.removesuffix(".value"))
    return asked


def test_every_name_is_one_that_a_run_logs(command, monkeypatch, capfd):
    here = ("logger=wandb", "init_scale=[1,10]")
    runs = [
        command.mod_add("callbacks=mod_add", *here, "run_dir=mod_add"),
        command.ising("callbacks=ising", *here, "run_dir=ising"),
    ]
    logged = [wandb_names(run) for run in runs]
    specification = offline(capfd)
    assert names(specification["report"])["history"] == names(specification["workspace"])["history"]
    for board in specification.values():
        for kind, asked in names(board).items():
            assert asked
            assert asked <= {name for of_run in logged for name in of_run[kind]}, kind
    assert all("epoch" in of_run["history"] for of_run in logged)


def test_workspace_and_report_show_the_same_panels_grouped_by_task_and_init_scale(capsys, monkeypatch):
    monkeypatch.setattr(wandb, "Api", None)  # nothing is asked of a server
    specification = offline(capsys)
    titles = {
        board: sorted(panel["config"]["chartTitle"] for panel in found(specification[board], "viewType"))
        for board in specification
    }
    assert titles["workspace"] == titles["report"]
    groups = [[key["name"] for key in runs["grouping"]] for runs in found(specification, "grouping")]
    grouped = ["task.value", "init_scale.value"]
    assert groups.count(grouped) == len(dashboards.sections())  # that of the workspace, and all but one of the report
    assert groups.count([]) == 1  # a point is a run
    places = [
        [tuple(panel["layout"].values()) for panel in grid["panels"]]
        for grid in found(specification["report"], "panels")
        if isinstance(grid["panels"], list) and grid["panels"]
    ]
    assert all(len(set(grid)) == len(grid) for grid in places)


def test_compressibility_against_train_loss():
    (panel,) = (panel for panel in dashboards.sections()["Outcome"] if panel.title == "C against train loss")
    assert (panel.x, panel.y, panel.z) == ("train_loss", "pruning/final_compressibility", wr.Config("init_scale"))


def test_both_are_saved_in_the_project(monkeypatch, capsys):
    saved = []
    for board in (ws.Workspace, wr.Report):
        monkeypatch.setattr(board, "save", lambda self: saved.append((type(self), self.entity, self.project)))
    dashboard.main(["my_team/my project"])
    assert saved == [(ws.Workspace, "my_team", "my project"), (wr.Report, "my_team", "my project")]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [wandb.errors.UsageError("No API key.\nSecond line"), ValueError()])
def test_what_the_server_refuses_is_said_in_one_sentence(monkeypatch, capsys, error):
    def api(*_, **__):
        raise error

    monkeypatch.setattr(wandb, "Api", api)
    with pytest.raises(SystemExit) as stop:
        dashboard.main(["my_team/lit_grok"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    reason = next(iter(str(error).splitlines()), "ValueError")
    assert line.startswith(f"error: my_team/lit_grok: W&B did not take the workspace ({reason}); ")
    assert "--offline" in line


@pytest.mark.parametrize("project", ["lit_grok", "a/b/c", "/b", "a/", "a/b?c", "a b/c", "a/" + "b" * 129])
def test_what_is_no_project_is_refused_in_one_sentence(capsys, project):
    with pytest.raises(SystemExit) as stop:
        dashboard.main([project])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {project}: not ENTITY/PROJECT")


def test_the_library_is_imported_by_panels_alone():
    code = "import sys, lit_grok.dashboards; sys.exit(any(name.startswith('wandb') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_a_short_recipe():
    with open(dashboard.__file__) as file:
        assert len(file.readlines()) < 100
