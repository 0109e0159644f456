"""Table 1: what is trained, read off the configuration that train.py resolves."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.results import build_network, index_replicas
from studies.claims import TASKS, Claim, Results
from studies.grokking_vs_learning.sweeps import ISING, MOD_ADD
from studies.readings import end
from studies.study import Study

#: What the paper gives. Both learning rates and the weight decay of modular addition are those of the authors' code.
PAPER = {
    "ising": {"epochs": 100_000, "weight_decay": 0.1, "learning_rate": 1e-4, "batch_size": 300, "parameters": 6798},
    "mod_add": {"epochs": 1000, "weight_decay": 3e-5, "learning_rate": 5e-3, "batch_size": 64, "parameters": 174_193},
}


def defaults(seeds: Sequence[int]) -> xr.DataTree:
    """The numbers of both tasks; they are the same for every seed."""
    rows = []
    for sweep in (ISING, MOD_ADD):
        config = sweep.run(0).config
        parameters = sum(p.numel() for p in build_network(config["network"]).parameters())
        rows.append([float(config[name]) for name in list(PAPER["ising"])[:-1]] + [parameters])
    replica = {"init_scale": np.ones(len(seeds)), "weight_decay": np.zeros(len(seeds)), "seed": list(seeds)}
    root = xr.Dataset(coords={key: ("replica", values) for key, values in replica.items()})
    labels = {"task": list(PAPER), "setting": list(PAPER["ising"])}
    values = xr.DataArray(np.stack([rows] * len(seeds)), labels, ("replica", *labels))
    return index_replicas(xr.DataTree.from_dict({"/": root, "settings": xr.Dataset({"value": values})}))


def draw(results: Results) -> Mapping[str, Figure]:
    """Ours beside the paper's."""
    values = results["parameters"].settings.value.isel(replica=0)
    cells = [
        [name.replace("_", " ")]
        + [f"{x:g}" for task in PAPER for x in (PAPER[task][name], float(values.sel(task=task, setting=name)))]
        for name in PAPER["ising"]
    ]
    figure = Figure(figsize=(6.5, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    columns = ["", "ising: paper", "here", "mod_add: paper", "here"]
    axes.table(cells, colLabels=columns, loc="center", edges="horizontal").scale(1, 1.4)
    return {"table1": figure}


def _difference(results: Results, task: str) -> xr.DataArray:
    """The largest relative difference of a setting from the paper's."""
    ours = end(results["parameters"], "settings/value", task=task).isel(init_scale=0, drop=True)
    paper = xr.DataArray(list(PAPER[task].values()), {"setting": list(PAPER[task])})
    return abs(ours / paper - 1).max("setting")


CLAIMS = tuple(
    Claim(
        name=f"{task}_settings",
        says="Epochs, weight decay, learning rate, batch size and number of parameters "
        f"of {TASKS[task]} are the paper's.",
        source="App. A, Table 1; App. F for the numbers of parameters",
        statistic="largest relative difference of a setting",
        values=partial(_difference, task=task),
        side="<",
        threshold=1e-9,
        paper="0",
    )
    for task in PAPER
)

STUDY = Study(
    name="parameters",
    title="What is trained?",
    figures=("table1",),
    sweeps=(),
    draws={"settings/value": None},
    claims=CLAIMS,
    draw=draw,
    sample=defaults,
)
