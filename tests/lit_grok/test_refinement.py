"""Boundaries of a phase diagram, located by bisection."""

import runpy
import shlex
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from lit_grok import open_runs
from lit_grok.refinement import between, main, majority

SCALES = [0.1, 0.3, 1.0, 3.0, 10.0]
DECAYS = [1e-5, 1e-4, 1e-3]
#: So that a tiny network memorises.
LONGER = ("network.hidden=[64]", "learning_rate=0.02", "epochs=60")


def truth(scale, decay):
    """Grokking beyond a line, death beyond another."""
    if decay > 4e-4:
        return "collapsed"
    return "grokked" if scale * (decay / 1e-5) ** 0.3 > 1.7 else "steady"


def test_cells_are_those_between_neighbours_that_differ():
    grid = {cell: truth(*cell) for cell in product(SCALES, DECAYS)}
    found = between(grid)
    assert (1.73, 1e-5) in found  # between 1, which is steady, and 3
    assert (0.548, 1e-4) in found  # between .3 and 1: the line is at .85
    assert (1.0, 3.16e-5) in found
    assert {cell for cell in found if cell[1] == 3.16e-4} == {(scale, 3.16e-4) for scale in SCALES}
    assert not [cell for cell in found if cell[1] == 1e-3]  # all dead alike
    assert not set(found) & set(grid)


def test_where_all_are_alike_nothing_is_to_be_done():
    assert between(dict.fromkeys(product(SCALES, DECAYS), "steady")) == []
    assert between({(1.0, 1e-5): "steady"}) == []


def test_six_levels_locate_the_boundary_for_a_fraction_of_the_grid():
    cells = {cell: truth(*cell) for cell in product(SCALES, DECAYS)}
    for _ in range(5):
        cells |= {cell: truth(*cell) for cell in between(cells, resolution=1.05)}
    row = sorted(scale for scale, decay in cells if decay == 1e-5)
    steady = max(scale for scale in row if cells[scale, 1e-5] == "steady")
    assert steady < 1.7 < 1.1 * steady
    everywhere = np.log(100) / np.log(1.1) * np.log(100) / np.log(1.1)  # cells of a grid that is as fine
    assert len(cells) < 0.05 * everywhere


def test_zero_lies_a_tenth_below_its_neighbour():
    assert between({(1.0, 0.0): "memorised", (1.0, 0.1): "grokked"}) == [(1.0, 0.0316)]


def test_neighbours_that_are_close_are_left_alone():
    close = {(1.0, 1.0): "steady", (1.05, 1.0): "grokked"}
    assert between(close) == []
    assert between(close, resolution=1.01) == [(1.02, 1.0)]


@pytest.fixture
def grid(command):
    """Networks of which one memorises: the others start from nothing, or decay to it."""
    command.mod_add("init_scale=[0,1]", "weight_decay=[0,0.1]", *LONGER, "run_dir=phases/grid")
    return command


def test_printed_commands_train_the_next_level(grid, capfd, monkeypatch):
    own = [*grid.MOD_ADD, *LONGER]
    assert main(["phases/*", *own]) == 0
    told = capfd.readouterr()
    lines = told.out.splitlines()
    assert "4 cells, 2 commands" in told.err
    assert all(f"refined_1_{decay}" in line for decay, line in zip(("0", "0.0316"), lines, strict=True))
    assert (grid.folder / "phases" / "phases.png").exists()
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["python", "train.py"]
        assert grid(*words[2:]).code == 0
    run = open_runs("phases/*")
    assert sorted(majority(run)) == [(0.0, 0.0), (0.0, 0.1), (0.316, 0.0), (1.0, 0.0), (1.0, 0.0316), (1.0, 0.1)]
    assert main(["phases/*", *own]) == 0
    assert "refined_2_" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing/*"], "nothing/*: no run directory matches"),
        (["phases/*", "weight_decay=1"], "weight_decay=1: the commands say themselves which cells they train"),
        (["phases/*", "seed=0:2"], "leave it out"),
    ],
)
def test_refusals(grid, capfd, arguments, said):
    assert main(arguments) == 2
    assert said in capfd.readouterr().err


def test_runs_that_differ_in_something_else(grid, capfd):
    grid.mod_add("init_scale=[0,1]", *LONGER, "batch_size=32", "run_dir=phases/other")
    assert main(["phases/*"]) == 2
    assert "these runs differ in batch_size as well" in capfd.readouterr().err


def test_the_setting_is_that_of_the_runs(grid, capfd):
    own = [*grid.MOD_ADD, *LONGER]
    assert main(["phases/*", *(word for word in own if not word.startswith(("P=", "epochs=")))]) == 2
    said = capfd.readouterr()
    assert "these runs have P=11 (not 113), epochs=60 (not 1000): say P=11 epochs=60" in said.err
    assert not said.out
    with pytest.raises(SystemExit):
        main(["phases/*", *own, "threds=3"])
    assert "threds: no such key (did you mean threads?)" in capfd.readouterr().err
    assert main(["phases/*", *own, "logger=csv", "threads=1"]) == 0


def test_it_is_a_command(grid, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["refinement", "phases/*", *grid.MOD_ADD, *LONGER])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(Path(__file__).parents[2] / "lit_grok" / "refinement.py"), run_name="__main__")
    assert stop.value.code == 0
