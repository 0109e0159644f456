"""Every command and every example of the README and the pages in docs/, run in a fresh folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import matplotlib.pyplot as plt
import pytest
from PIL import Image

import studies
from studies import pages

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
TRAINING = [line for line in COMMANDS if line.startswith("python train.py")]
EXAMPLE_RUN = "2026-01-31_12-00-00"

# The smallest settings, for whatever a command does not set itself.
TINY = {
    "ising": {
        "side": 8,
        "epochs": 2,
        "log_every": 1,
        "datamodule.snapshots": 4,
        "datamodule.steps": 200,
        "datamodule.train_size": 20,
        "datamodule.test_size": 40,
    },
    "sparse_parity": {
        "bits": 6,
        "epochs": 2,
        "network.width": 8,
        "datamodule.train_size": 20,
        "datamodule.test_size": 20,
        "callbacks.fim_trajectory.inputs": 20,
    },
    "mod_add": {"P": 11, "epochs": 2, "network.hidden": "[8]", "callbacks.fim_trajectory.inputs": 20},
}


def overrides(line):
    """What a line passes to train.py, offline and in this process, with two seeds and all that it leaves open tiny."""
    line = re.sub(r"seed=0:\d+,\S+", "seed=0:2,2:4", line.replace("logger.mode=online", "logger.mode=offline"))
    line = re.sub(r"hydra[/.]launcher\S*=\S+ ", "", re.sub(r"seed=0:\d+(?!,)\b", "seed=0:2", line))  # tested elsewhere
    given = shlex.split(line.replace("--config-dir=examples", f"--config-dir={ROOT / 'examples'}"))[2:]
    keys = {word.partition("=")[0] for word in given}
    task = next((word.partition("=")[2] for word in given if word.startswith("task=")), "ising")
    return given + [f"{key}={value}" for key, value in TINY[task].items() if key not in keys]


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """The README's own callback, in a module outside the project."""
    source = next(block for language, block in BLOCKS if language == "python" and "AnalysisCallback" in block)
    (tmp_path / "my_lab.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_lab", None)


@pytest.mark.parametrize("line", [line for line in TRAINING if "resume=" not in line])
def test_training_commands(command, my_lab, monkeypatch, line):
    # Figures are drawn but not rendered, which takes the longest; W&B is given a dot instead.
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, path, **_: Image.new("1", (1, 1)).save(path, "png")
    )
    assert command(*overrides(line)).code == 0


@pytest.mark.parametrize("line", [line for line in TRAINING if "resume=" in line])
def test_resume_command(command, line):
    resume = next(word for word in shlex.split(line) if word.startswith("resume="))
    task = resume.split("/")[1]
    first = overrides(f"python train.py task={task} run_dir={resume.partition('=')[2]} logger=none")
    assert command(*first).code == 0
    assert command(resume, "epochs=3").code == 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_make_commands_are_targets(line):
    recipe = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert recipe.stdout.strip()


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("wandb")])
def test_wandb_commands_exist(line):
    wandb = Path(sys.executable).with_name("wandb")
    subprocess.run([wandb, shlex.split(line)[1], "--help"], capture_output=True, check=True)


def test_all_commands_are_covered():
    assert {line.split()[0] for line in COMMANDS if line} == {"make", "python", "wandb"}
    scripts = {line.split()[1] for line in COMMANDS if line.startswith("python")}
    assert scripts == {"train.py", "reproduce.py", "dashboard.py"}


def test_studies_that_are_named_exist():
    given = [word for line in COMMANDS if line.startswith("python reproduce.py") for word in line.split()[2:]]
    names = [word for i, word in enumerate(given) if not word.startswith("-") and not given[i - 1].startswith("-")]
    assert [studies.find(name) for name in names]


def test_the_tables_of_verdicts_are_those_of_the_summaries():
    for path, text in pages.pages().items():
        assert path.read_text() == text, f"{path}: run python -m studies.pages"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_notebook_examples(command, my_lab, monkeypatch):
    run = f"runs/ising/{EXAMPLE_RUN}"
    line = f"python train.py task=ising run_dir={run} init_scale=[1,10] seed=[0,1] callbacks=base logger=none"
    assert command(*overrides(line)).code == 0
    monkeypatch.chdir(command.folder)
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    plt.close("all")
