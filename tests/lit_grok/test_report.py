"""The page of a run says what its files say, stands alone, and lets nothing be read as markup."""

import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest
import torch
import xarray as xr
import yaml

from lit_grok.figures.grokking import curves
from lit_grok.report import differences, main, write_overview, write_report
from lit_grok.results import write_results, write_summary
from tests.lit_grok.synthetic import tree


class Page(HTMLParser):
    """Tags, the texts of table cells, and everything that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.sources, self.anchors, self.links = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.sources += [attributes[name] for name in ("src", "srcset", "data") if name in attributes]
        self.anchors += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and self.lasttag in ("td", "th", "code", "a"):
            self.cells[-1] += data.strip()


def record(scale, seed, **changes):
    values = {
        "task": "toy",
        "init_scale": scale,
        "seed": seed,
        "weight_decay": 3e-5,
        "status": "grokked",
        "epochs": 100,
    }
    values |= {"t_train": 2, "t_test": 50, "train_accuracy": 1.0, "test_accuracy": 0.98765, "weight_norm": 31.4159}
    return values | changes


@pytest.fixture
def make_run(tmp_path):
    def make(name="one", config=(), records=None, figures=("ipr_distribution", "ipr_r4_distribution", "grok_time")):
        run_dir = tmp_path / "runs" / name
        (run_dir / "figures").mkdir(parents=True)
        results = tree(scales=(1.0,), seeds=2)
        results.attrs |= {"command": "python train.py task=toy 'seed=[0,1]'", "versions": "torch 2.13.0"}
        plain = {"/": results.to_dataset().reset_index("replica")}
        plain |= {name: branch.to_dataset(inherit=False) for name, branch in results.children.items()}
        write_results(run_dir, xr.DataTree.from_dict(plain), {"w": torch.zeros(2, 1)})
        whole = {"task": "toy", "epochs": 100, "callbacks": {"grok_time": {}, "ipr": {}, "ipr_r4": {"r": 4}}}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(whole | dict(config), sort_keys=False))
        if records is None:
            records = [record(1.0, 0), record(1.0, 1, t_test=None, status="memorised")]
        if records:
            write_summary(run_dir, records)
        for figure in figures:
            curves(results).savefig(run_dir / "figures" / f"{figure}.png", dpi=20)
        return run_dir

    return make


def test_the_page_has_replicas_figures_command_and_versions(make_run):
    run_dir = make_run()
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "toy, P = 7" in text
    first = page.cells.index("weight norm") + 1
    expected = ["1", "0", "3e-05", "grokked", "2", "50", "100", "1.000", "0.988", "31.42"]
    assert page.cells[first : first + 10] == expected
    assert "–" in page.cells  # the undefined t_test
    assert "python train.py task=toy &#x27;seed=[0,1]&#x27;" in text
    assert "torch 2.13.0" in text


def test_the_page_stands_alone(make_run):
    run_dir = make_run()
    text = write_report(run_dir).read_text()
    page = Page(text)
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources]
    there = {path.read_bytes() for path in (run_dir / "figures").iterdir()}
    assert set(pictures) == there
    assert len(pictures) == 3
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", re.sub(r"base64,[^\"]*", "", text))


def test_figures_stand_under_their_branch_in_the_order_of_the_configuration(make_run):
    text = write_report(make_run()).read_text()
    found = re.findall(r"<h3>(\w+)</h3>|<figcaption>(\w+)</figcaption>", text)
    order = [branch or f"figure {name}" for branch, name in found if branch != "Configuration"]
    assert order[:6] == [
        *("grok_time", "figure grok_time", "ipr", "figure ipr_distribution", "ipr_r4", "figure ipr_r4_distribution")
    ]


def test_a_damaged_picture_is_named_and_costs_nothing_else(make_run):
    run_dir = make_run()
    (run_dir / "figures" / "grok_time.png").write_bytes(b"<svg onload=alert(1)>")
    text = write_report(run_dir).read_text()
    assert "grok_time.png is damaged" in text
    assert len(Page(text).sources) == 2


def test_nothing_is_read_as_markup(make_run):
    evil = "<script>alert(1)</script>"
    run_dir = make_run(
        f"a&b {evil.replace('/', '')}", config={"task": evil, "note": evil}, records=[record(1.0, 0, status=evil)]
    )
    os.rename(run_dir / "figures" / "grok_time.png", run_dir / "figures" / '"><script>.png')
    for page in (write_report(run_dir), write_overview([run_dir, make_run("other")], run_dir.parent / "report.html")):
        parsed = Page(page.read_text())
        assert "script" not in parsed.tags
        assert "<script" not in page.read_text()
        assert evil in parsed.cells


def test_only_what_differs_from_the_defaults_is_listed(make_run):
    defaults = {"task": "toy", "epochs": 1000, "callbacks": {"grok_time": {}, "ipr": {}, "ipr_r4": {"r": 4}}}
    page = Page(write_report(make_run(), defaults).read_text())
    assert page.cells[page.cells.index("default") + 1 :] == ["epochs", "100", "1000"]
    same = write_report(make_run("same", config={"epochs": 1000}), defaults).read_text()
    assert "As the task's defaults say." in same


def test_differences():
    defaults = {
        "learning_rate": 1e-3,
        "optimizer": {"lr": 1e-3, "eps": 1e-8},
        "logger": {"mode": "offline"},
        "threads": 1,
    }
    config = {"learning_rate": 0.1, "optimizer": {"lr": 0.1}, "logger": {"mode": "online"}, "threads": 4, "mine": {}}
    assert differences(config, defaults) == {
        "learning_rate": (0.1, 1e-3),
        "mine": ({}, ...),
        "optimizer.eps": (..., 1e-8),
    }


def test_a_task_is_compared_with_its_own_file(make_run):
    page = Page(write_report(make_run(config={"task": "mod_add", "epochs": 100})).read_text())
    start = page.cells.index("epochs", page.cells.index("default"))
    assert page.cells[start : start + 3] == ["epochs", "100", "1000"]


def test_a_run_that_has_not_ended_has_a_page(make_run):
    run_dir = make_run(records=[])
    assert "has not ended" in write_report(run_dir).read_text()
    (run_dir / "results.nc").unlink()
    assert "has not ended" in write_report(run_dir).read_text()


def test_many_runs_have_one_page(make_run, capsys):
    for name, scale in (("one", 1.0), ("two", 10.0)):
        make_run(name, records=[record(scale, 0)])
    parent = make_run("three", records=[]).parent
    (parent / "notes").mkdir()
    assert main([str(parent / "*")]) == 0
    assert capsys.readouterr().out == f"{parent / 'report.html'}\n"
    page = Page((parent / "report.html").read_text())
    assert page.links == ["#run0", "#run1", "#run2"]  # one, three, two
    assert page.anchors == ["run0", "run1", "run2"]
    table = page.cells[: page.cells.index("init_scale", 3)]
    assert [cell for cell in table if cell in ("one", "two", "three")] == ["one", "three", "two"]
    assert len(page.sources) == 9
    assert not (parent / "one" / "report.html").exists()


def test_one_run_has_its_page_in_its_directory(make_run, capsys):
    run_dir = make_run()
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"


@pytest.mark.parametrize(
    ("damage", "message", "code"),
    [
        (lambda run_dir: (run_dir / "config.yaml").unlink(), "no run directory matches", 2),
        (lambda run_dir: (run_dir / "config.yaml").write_text("{"), "config.yaml: cannot be read", 2),
        (lambda run_dir: (run_dir / "summary.json").write_text(json.dumps({"a": 1})), "it is no list of records", 2),
        (lambda run_dir: (run_dir / "results.nc").write_bytes(b"no"), "results.nc: damaged", 2),
        (lambda run_dir: (run_dir / "report.html").mkdir(), "report.html: cannot be written", 1),
    ],
)
def test_bad_input_is_one_sentence(make_run, capsys, damage, message, code):
    run_dir = make_run()
    damage(run_dir)
    assert main([str(run_dir)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_every_pattern_has_to_match(make_run, capsys):
    run_dir = make_run()
    assert main([str(run_dir), "runs/typo*"]) == 2
    assert "runs/typo*: no run directory matches" in capsys.readouterr().err
    assert not (run_dir / "report.html").exists()


def test_a_run_leaves_its_page(command, monkeypatch):
    monkeypatch.setattr("lit_grok.report.write_report", write_report)
    page = (command.mod_add("seed=0:2") / "report.html").read_text()
    assert "P = 11" in page
    assert "data:image/png;base64" in page


def test_a_page_that_cannot_be_written_costs_a_warning(command, monkeypatch):
    monkeypatch.setattr("lit_grok.report.write_report", None)
    result = command(*command.MOD_ADD, "run_dir=run")
    assert result.code == 0
    assert result.err == "warning: report.html was not written (TypeError: 'NoneType' object is not callable)\n"
