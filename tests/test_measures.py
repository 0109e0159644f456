"""docs/measures.md against what the callbacks declare and what runs write."""

import re
from pathlib import Path

import pytest

from lit_grok import open_run

PAGE = (Path(__file__).parents[1] / "docs" / "measures.md").read_text()
#: The other schemes of a paper's pruning measure what `pruning` does.
LIKE_PRUNING = re.compile(r"^pruning_\w+/")
MNIST = (
    *("task=mnist", "datamodule.train_size=40", "datamodule.test_size=40", "network.hidden=[8]", "batch_size=20"),
    *("epochs=1", "logger=none", "callbacks.fim_trajectory.inputs=20", "callbacks.fim_trajectory.every=1"),
)
POLYGONS = (
    *("task=polygons", "symbols=2", "network.classes=13", "side=16", "network.width=2", "batch_size=4", "epochs=1"),
    *("logger=none", "network.normalisation=group"),
)
EXTRA = (
    "+callbacks/extra@callbacks.superposition=superposition",
    *("callbacks.llc.chains=2", "callbacks.llc.steps=20", "callbacks.llc.burn_in=2"),
)


def rows():
    """Name to meaning, as often as a table has it."""
    for line in PAGE.splitlines():
        names, _, rest = line.removeprefix("| ").partition(" | ")
        if line.startswith("| `"):
            meaning = re.split(r"(?<!\\) \| ", rest)[0].replace("\\|", "|")
            yield from ((name, meaning) for name in re.findall(r"`([\w/]+)`", names))


@pytest.mark.parametrize(
    "overrides",
    [
        lambda command: (*command.MOD_ADD[:-1], "callbacks=mod_add_paper", *EXTRA),
        lambda command: (*command.ISING[:-1], "callbacks=ising"),
        lambda command: (*command.PRIME[:-1], "callbacks=prime"),
        lambda command: POLYGONS,
        lambda command: MNIST,
    ],
    ids=["mod_add", "ising", "prime", "polygons", "mnist"],
)
def test_everything_that_a_run_writes_is_on_the_page_under_its_long_name(command, overrides):
    result = command(*overrides(command), "seed=0:2", "run_dir=run")
    assert result.code == 0, result.err
    run, known = open_run("run"), set(rows())
    written = {(name, run[name].attrs["long_name"]) for name in run.to_dataset().data_vars}
    for branch, node in run.children.items():
        names = {LIKE_PRUNING.sub("pruning/", f"{branch}/{name}"): name for name in node.to_dataset(False).data_vars}
        written |= {(name, node[own].attrs["long_name"]) for name, own in names.items()}
    assert written <= known


def test_the_page_has_nothing_that_no_callback_measures():
    import callbacks

    declared = {
        pair for name in callbacks.__all__ for pair in getattr(getattr(callbacks, name), "long_names", {}).items()
    }
    assert [name for name, meaning in rows() if "/" in name and (name.partition("/")[2], meaning) not in declared] == []
