"""Fig. 11: a snapshot with an extended domain wall is ordered, as its energy says and its magnetisation does not."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from datamodules.glauber import sample
from datamodules.ising import CRITICAL_TEMPERATURE
from lit_grok.figures.common import title
from lit_grok.measures.ising import energy, magnetisation
from lit_grok.results import index_replicas
from studies.claims import Claim, Results
from studies.readings import end
from studies.study import Study

_TEMPERATURES, _EACH, _STEPS, _SIDE = np.linspace(1.0, 3.5, 50), 40, 50_000, 16
_COLD, _WALL = 1.5, 0.5  # a snapshot so cold has a wall where its |m| is so small
_EXAMPLES = 6


def snapshots(seeds: Sequence[int]) -> xr.DataTree:
    """What snapshots of the default task look like and what a single threshold makes of them, for these seeds."""
    temperatures = np.repeat(_TEMPERATURES, _EACH)
    disordered, cold = temperatures > CRITICAL_TEMPERATURE, temperatures <= _COLD
    found: dict[str, list] = {"wall_share": [], "energy_accuracy": [], "magnetisation_accuracy": [], "wall_energy": []}
    examples = []
    for seed in seeds:
        spins = sample(temperatures, _STEPS, side=_SIDE, seed=seed)
        e, m = (f(torch.from_numpy(spins).float()).numpy() for f in (energy, magnetisation))
        walls = cold & (abs(m) < _WALL)
        best, edge = _threshold(e, disordered)
        found["wall_share"].append(walls.sum() / cold.sum())
        found["energy_accuracy"].append(best)
        found["magnetisation_accuracy"].append(_threshold(-abs(m), disordered)[0])
        found["wall_energy"].append((e[walls] < edge).mean() if walls.any() else np.nan)
        shown = np.resize(np.flatnonzero(walls), _EXAMPLES) if walls.any() else np.zeros(_EXAMPLES, int)
        examples.append(spins[shown].astype(float))
    replica = {"init_scale": np.ones(len(seeds)), "weight_decay": np.zeros(len(seeds)), "seed": list(seeds)}
    root = xr.Dataset(coords={key: ("replica", values) for key, values in replica.items()})
    root.attrs = {"task": "ising", "title": f"ising, side = {_SIDE}"}
    branch = xr.Dataset({name: ("replica", values) for name, values in found.items()})
    branch["examples"] = (("replica", "example", "row", "column"), np.stack(examples))
    return index_replicas(xr.DataTree.from_dict({"/": root, "snapshots": branch}))


def _threshold(values: np.ndarray, disordered: np.ndarray) -> tuple[float, float]:
    """Accuracy of the best rule "disordered above", and where it draws the line."""
    levels, level = np.unique(values, return_inverse=True)  # equal values are on the same side
    gain = np.bincount(level, np.where(disordered, -1, 1))
    right = disordered.sum() + np.r_[0, np.cumsum(gain)]  # where so many levels are called ordered
    edges = np.r_[levels[0] - 1, (levels[:-1] + levels[1:]) / 2, levels[-1] + 1]
    return right.max() / len(values), edges[right.argmax()]


def draw(results: Results) -> Mapping[str, Figure]:
    """Some such snapshots."""
    spins = results["domain_walls"].snapshots.examples.values[0]
    figure = Figure(figsize=(1.3 * len(spins), 1.75), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(spins)), spins, strict=True):
        axes.imshow(one, cmap="Greys", vmin=-1, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(True)
        axes.set(xticks=[], yticks=[], title=f"$m$ = {one.mean():.2f}")
    title(figure, f"Snapshots at $T$ ≤ {_COLD} with |$m$| < {_WALL}")
    return {"fig11": figure}


def _values(name: str, results: Results) -> xr.DataArray:
    return end(results["domain_walls"], f"snapshots/{name}").isel(init_scale=0, drop=True)


CLAIMS = (
    Claim(
        name="walls",
        says="A few of the cold snapshots have a small magnetisation.",
        source="App. B, Fig. 11; its interval of temperatures and number of steps are ours",
        statistic="share of the snapshots at T ≤ 1.5 with |m| < 0.5",
        values=lambda results: _values("wall_share", results),
        side="within",
        threshold=(0.02, 0.3),
        paper="a few",
    ),
    Claim(
        name="right_by_energy",
        says="By their energy, cold snapshots with a small magnetisation are told to be ordered.",
        source="App. B",
        statistic="share of them below the best threshold of the energy",
        values=lambda results: _values("wall_energy", results),
        side=">",
        threshold=0.9,
    ),
    Claim(
        name="energy_tells_more",
        says="The energy tells the phases better than the magnetisation.",
        source="Secs. 2.1, 4.1",
        statistic="accuracy of the best threshold, energy less |magnetisation|",
        values=lambda results: _values("energy_accuracy", results) - _values("magnetisation_accuracy", results),
        side=">",
        threshold=0,
    ),
    Claim(
        name="ceiling",
        says="The finite lattice keeps what features can tell near .95.",
        source="ours, of App. B",
        statistic="accuracy of the best threshold of the energy",
        values=lambda results: _values("energy_accuracy", results),
        side="within",
        threshold=(0.92, 0.98),
    ),
)

STUDY = Study(
    name="domain_walls",
    title="Why energy and not magnetisation?",
    figures=("fig11",),
    sweeps=(),
    draws=dict.fromkeys(
        f"snapshots/{name}"
        for name in ("wall_share", "energy_accuracy", "magnetisation_accuracy", "wall_energy", "examples")
    ),
    claims=CLAIMS,
    draw=draw,
    sample=snapshots,
)
