import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [*PROJECT["dependencies"], *(pin for extra in PROJECT["optional-dependencies"].values() for pin in extra)]


def split(pin):
    name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][\w.]*)", pin.strip()).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), version


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(split(line) for line in lines if line and not line.startswith("#"))


def test_environment_yml_has_the_names_and_pins_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(map(split, pip)) == sorted(map(split, PINS))
    assert f"python{PROJECT['requires-python']}" in conda
    assert "pip" in conda


def test_the_lock_file_has_every_pin_and_no_torchvision():
    lock = locked()
    for name, version in map(split, PINS):
        assert lock.get(name) == version, name
    assert "torchvision" not in lock
    assert not [name for name in lock if name.startswith(("nvidia", "cuda", "triton"))]  # several GB


def test_every_dependency_is_pinned_and_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    for block in re.findall(r"^(?:dependencies|dev) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert re.fullmatch(r'\s+"[\w.-]+==[\w.]+",\s+# \S.{3,}', line), line
    assert len(PINS) == len({split(pin)[0] for pin in PINS})


IMPORTED_AS = {
    "hydra-core": "hydra",
    "pyyaml": "yaml",
    "import-linter": None,
    "netcdf4": "netCDF4",
    "wandb-workspaces": "wandb_workspaces",
}
PLUGINS = {"hydra-submitit-launcher": "hydra_plugins", "hydra-joblib-launcher": None}  # Hydra finds them by itself
UNIMPORTED_TOOLS = {"pytest-xdist", "pytest-timeout", "ruff", "mypy", "pytest", "nngeometry", "mlxtend"}


def imports(*folders):
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    for file in [*files, ROOT / "train.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0]


def test_every_dependency_is_used_and_everything_used_is_a_dependency():
    import sys

    folders = ("lit_grok", "callbacks", "datamodules", "studies", "hydra_plugins")
    used = set(imports(*folders)) - set(sys.stdlib_module_names)
    used -= {"lit_grok", "callbacks", "datamodules", "studies"}
    names = [split(pin)[0] for pin in PROJECT["dependencies"]]
    runtime = {(IMPORTED_AS | PLUGINS).get(name, name) for name in names}
    assert used <= runtime | {"omegaconf"}  # Hydra's own configuration library
    everywhere = used | set(imports("tests", "benchmarks"))
    assert {n for n in runtime if n} - everywhere - UNIMPORTED_TOOLS == set()


@pytest.mark.parametrize("name", ["lit_grok", "callbacks", "datamodules", "configs", "tests"])
def test_the_users_own_names(name):
    assert (ROOT / name).is_dir()


@pytest.mark.parametrize("name", ["train.py", "environment.yml", "pyproject.toml", "requirements.lock", "Makefile"])
def test_the_files_at_the_top(name):
    assert (ROOT / name).is_file()


def test_what_is_shipped_is_lit_grok_alone_and_whole():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lit_grok").rglob("__init__.py")}
    assert set(setuptools["packages"]) == found


def test_train_py_is_a_short_recipe():
    lines = (ROOT / "train.py").read_text().splitlines()
    assert len(lines) < 150


WRITES = (
    r"os\.(replace|rename)\(|\.write_(text|bytes)\(|\.replace\((self\.)?path\)|open\([^)]*[\"'][wax]b?[\"']|"
    r"save_file\(|savefig\((self\.)?path"
)


def test_one_place_writes_files():
    files = [file for folder in ("lit_grok", "callbacks", "datamodules") for file in (ROOT / folder).rglob("*.py")]
    writers = [file.relative_to(ROOT) for file in (*files, ROOT / "train.py") if re.search(WRITES, file.read_text())]
    assert writers == [Path("lit_grok/files.py")]
