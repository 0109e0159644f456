"""What a study is, and how its results become a summary that is small enough to be committed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import lit_grok
from lit_grok.files import reading, write
from lit_grok.results import index_replicas
from studies.claims import Claim, Judgement, Results, judge, uses, weigh
from studies.runs import Run, Sweep

RESULTS = Path(__file__).parents[1] / "docs" / "results"
#: Beside summaries and beside runs: seconds of one seed of each sweep on one core.
COSTS = "costs.json"

#: A summary keeps so many points of a long axis: more cannot be told apart in a figure.
_POINTS = 64
_DIGITS = 4
_SHAPE = {"study": str, "versions": list, "runs": list, "claims": list, "results": dict}
_OUTCOMES = ("status", "t_train", "t_test", "t_grok", "epochs")


@dataclass(frozen=True)
class Study:
    """One question that is put to runs: what they are, what is claimed of them, and how it is drawn.

    Args:
        name: By which it is asked for.
        title: What it is about.
        figures: Those of its paper that it draws, ``fig2``, …: it is found by them as well.
        sweeps: What is trained.
        draws: What the drawings need of the results, ``BRANCH/VARIABLE``; of which init_scales, where not of all.
        claims: What is said of the results.
        draw: Draws them from the results or from a summary; by the figure's name.
        sample: For what needs no training: the results of these seeds.
    """

    name: str
    title: str
    figures: tuple[str, ...]
    sweeps: tuple[Sweep, ...]
    draws: Mapping[str, Sequence[float] | None]
    claims: tuple[Claim, ...]
    draw: Callable[[Results], Mapping[str, Figure]]
    sample: Callable[[Sequence[int]], xr.DataTree] | None = None

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """The runs of these seeds, all sweeps of one seed before the next."""
        return [sweep.run(seed) for seed in seeds for sweep in self.sweeps]


def chosen(tree: xr.DataTree, scales: Sequence[float]) -> xr.DataTree:
    """The replicas of some init_scales.

    Args:
        tree: What ``open_runs`` gives.
        scales: Which; those that there are none of are left out.
    """
    return _replicas(tree, np.flatnonzero(np.isin(np.atleast_1d(tree.coords["init_scale"].values), list(scales))))


def living(tree: xr.DataTree) -> xr.DataTree:
    """The results without the replicas that collapsed."""
    status = np.atleast_1d(tree.to_dataset().status.values)
    return _replicas(tree, np.flatnonzero(status != "collapsed")) if (status != "collapsed").any() else tree


def _replicas(tree: xr.DataTree, kept: np.ndarray) -> xr.DataTree:
    branches = {name: branch.to_dataset(inherit=False).isel(replica=kept) for name, branch in tree.children.items()}
    return xr.DataTree.from_dict({"/": tree.to_dataset().isel(replica=kept), **branches})


def gather(study: Study, seeds: Sequence[int], root: Path) -> Results:
    """The results of those runs of a study that are complete, one tree for each sweep that has any.

    Args:
        study: The study.
        seeds: Of which.
        root: Where runs are.
    """
    if study.sample:
        return Results({study.name: study.sample(seeds)})
    found = Results()
    for sweep in study.sweeps:
        complete = [run for run in map(sweep.run, seeds) if run.complete(root)]
        if complete:
            found[sweep.name] = lit_grok.open_runs([root / run.name for run in complete])
    return found


def summarise(study: Study, results: Results) -> dict[str, Any]:
    """Everything that a table, a page or a notebook needs of a study, in lists and mappings of numbers and texts.

    Args:
        study: The study.
        results: What `gather` found.

    Returns:
        ``claims`` with the statistic of each seed and the verdict, ``results`` thinned out for the drawings, ``runs``
        with their commands, and the ``versions`` they were made with.
    """
    runs = []
    for sweep in study.sweeps:
        if sweep.name in results:
            seeds = sorted({int(seed) for seed in results[sweep.name].seed.values})
            runs.append(_described(sweep, seeds))
    return {
        "study": study.name,
        "title": study.title,
        "figures": list(study.figures),
        "versions": sorted({str(tree.attrs.get("versions", "")) for tree in results.values()} - {""}),
        "runs": runs,
        "claims": [_told(claim, judge(claim, results)) for claim in study.claims],
        "results": {name: pack(tree, study.draws) for name, tree in results.items()},
    }


def _told(claim: Claim, found: Judgement) -> dict[str, Any]:
    """A claim and what became of it."""
    return {
        **{name: getattr(claim, name) for name in ("name", "says", "source", "statistic", "asks", "paper")},
        "verdict": found.verdict,
        "n": len(found.values),
        **{name: _rounded(getattr(found, name)) for name in ("estimate", "low", "high")},
        "values": {str(seed): _rounded(value) for seed, value in sorted(found.values.items())},
    }


def _described(sweep: Sweep, seeds: Sequence[int]) -> dict[str, Any]:
    """A sweep, and the command that trains all its seeds at once."""
    several = f"seed=[{','.join(map(str, seeds))}]" if len(seeds) > 1 else f"seed={seeds[0]}"
    command = sweep.run(seeds[0]).typed.replace(f"seed={seeds[0]}", several)
    names = {str(seed): sweep.run(seed).name for seed in seeds}
    return {"sweep": sweep.name, "command": command, "seeds": list(seeds), "names": names}


def merge(study: Study, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with what an earlier one has of other seeds: numbers accumulate, from several machines too.

    Args:
        study: The study.
        new: What holds where both have something.
        old: The earlier one. What another configuration has found is left out, and a claim whose statistic was another
            then has no values of it.
    """
    old = _of_the_same_runs(study, new, old)
    results = {name: packed for name, packed in old["results"].items() if name not in new["results"]}
    for name, packed in new["results"].items():
        results[name] = _joined(packed, old["results"][name]) if name in old["results"] else packed
    joined = results_of({"results": results})
    before = {claim["name"]: claim for claim in old["claims"]}
    claims = []
    for claim, told in zip(study.claims, new["claims"], strict=True):
        there = before.get(claim.name, {"statistic": None})
        values = there["values"] if there["statistic"] == claim.statistic else {}
        if claim.of_ends:
            values = values | {str(seed): value for seed, value in judge(claim, joined).values.items()}
        values = values | told["values"]
        claims.append(_told(claim, weigh(claim, {int(seed): value for seed, value in values.items()})))
    runs = []
    for sweep in study.sweeps:
        seeds = {
            s for summary in (new, old) for run in summary["runs"] if run["sweep"] == sweep.name for s in run["seeds"]
        }
        runs += [_described(sweep, sorted(seeds))] if seeds else []
    return {
        **new,
        "versions": sorted({*new["versions"], *old["versions"]}),
        "runs": runs,
        "claims": claims,
        "results": results,
    }


def _of_the_same_runs(study: Study, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier summary without the seeds that were trained otherwise, or of which the new one has read everything."""
    sweeps = {sweep.name: sweep for sweep in study.sweeps}
    read = {run["sweep"]: set(run["seeds"]) for run in new["runs"]}
    stale = {
        run["sweep"]: {
            seed
            for seed in run["seeds"]
            if run["sweep"] not in sweeps or run["names"].get(str(seed)) != sweeps[run["sweep"]].run(seed).name
        }
        for run in old["runs"]
    }
    there = results_of(old)
    used = {claim.name: uses(claim, there) for claim in study.claims}

    def gone(claim: str, seed: int) -> bool:
        """Whether one of the sweeps that the claim is about is another now, or the new summary has read all of them."""
        those = used.get(claim) or set(there)
        had = {run["sweep"] for run in old["runs"] if seed in run["seeds"] and run["sweep"] in those}
        return any(seed in stale.get(sweep, ()) for sweep in those) or (
            bool(had) and all(seed in read.get(sweep, ()) for sweep in had)
        )

    claims = [
        {**claim, "values": {s: v for s, v in claim["values"].items() if not gone(claim["name"], int(s))}}
        for claim in old["claims"]
    ]
    runs = [{**run, "seeds": [s for s in run["seeds"] if s not in stale[run["sweep"]]]} for run in old["runs"]]
    results = {name: _without(packed, stale.get(name, set())) for name, packed in old["results"].items()}
    return {
        **old,
        "claims": claims,
        "runs": runs,
        "results": {n: p for n, p in results.items() if p["replicas"]["seed"]},
    }


def _without(packed: Mapping[str, Any], seeds: set[int]) -> dict[str, Any]:
    """Packed results without the replicas of some seeds."""
    kept = [i for i, seed in enumerate(packed["replicas"]["seed"]) if seed not in seeds]
    lists = {key: {k: [v[i] for i in kept] for k, v in packed[key].items()} for key in ("replicas", "outcomes")}
    branches = {
        branch: {
            **found,
            "variables": {
                n: {**one, "values": [one["values"][i] for i in kept]} for n, one in found["variables"].items()
            },
        }
        for branch, found in packed["branches"].items()
    }
    return {**packed, **lists, "branches": branches}


def _joined(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Packed results with the replicas of other seeds from earlier ones, as far as those were measured alike."""
    seeds = set(new["replicas"]["seed"])
    kept = [i for i, seed in enumerate(old["replicas"]["seed"]) if seed not in seeds]

    def longer(here: list, there: list) -> list:
        return here + [there[i] for i in kept]

    branches = {}
    for branch, found in new["branches"].items():
        variables = {}
        for name, one in found["variables"].items():
            other = old["branches"].get(branch, {}).get("variables", {}).get(name, {})
            alike = all(one[key] == other.get(key) for key in ("dims", "coords", "shape"))
            values = one["values"] + [other["values"][i] if alike else None for i in kept]
            variables[name] = {**one, "values": values}
        branches[branch] = {**found, "variables": variables}
    groups = {key: {k: longer(v, old[key][k]) for k, v in new[key].items()} for key in ("replicas", "outcomes")}
    return {**new, **groups, "branches": branches}


def pack(tree: xr.DataTree, draws: Mapping[str, Sequence[float] | None]) -> dict[str, Any]:
    """What drawings need of the results, thinned out, as lists and mappings; `unpack` is its inverse.

    Args:
        tree: The results.
        draws: ``BRANCH/VARIABLE``, and of which init_scales, None for all.
    """
    scales = np.atleast_1d(tree.coords["init_scale"].values)
    root = tree.to_dataset()
    packed: dict[str, Any] = {
        "attrs": {key: str(tree.attrs[key]) for key in ("task", "title") if key in tree.attrs},
        "replicas": {key: np.atleast_1d(root[key].values).tolist() for key in ("init_scale", "seed", "weight_decay")},
        "outcomes": {key: [_rounded(value) for value in root[key].values.tolist()] for key in _OUTCOMES if key in root},
        "branches": {},
    }
    for path, chosen in draws.items():
        branch, _, name = path.partition("/")
        if branch not in tree.children or name not in tree[branch]:
            continue
        array = _thinned(tree[branch].to_dataset()[name].transpose("replica", ...))
        kept = np.isin(scales, list(chosen)) if chosen is not None else np.ones(len(scales), bool)
        there = packed["branches"].setdefault(branch, {"attrs": dict(tree[branch].attrs), "variables": {}})
        there["variables"][name] = {
            "dims": list(map(str, array.dims[1:])),
            "coords": {str(dim): array[dim].values.tolist() for dim in array.dims[1:] if dim in array.coords},
            "attrs": {key: str(value) for key, value in array.attrs.items()},
            "shape": list(array.shape[1:]),
            "values": [
                _rounded(values.tolist()) if keep and np.isfinite(values).any() else None
                for keep, values in zip(kept, array.values, strict=True)
            ],
        }
    return packed


def unpack(packed: Mapping[str, Any]) -> xr.DataTree:
    """The tree of results that was packed."""
    keys = {key: ("replica", values) for key, values in packed["replicas"].items()}
    outcomes = {
        key: ("replica", [math.nan if v is None else v for v in values]) for key, values in packed["outcomes"].items()
    }
    branches = {"/": xr.Dataset(outcomes, keys, packed["attrs"])}
    for branch, there in packed["branches"].items():
        variables = {}
        for name, one in there["variables"].items():
            blank = np.full(one["shape"], np.nan)
            values = np.stack([blank if v is None else np.array(v, float) for v in one["values"]])
            variables[name] = xr.DataArray(values, one["coords"], ("replica", *one["dims"]), attrs=one["attrs"])
        branches[branch] = xr.Dataset(variables, attrs=there["attrs"])
    return index_replicas(xr.DataTree.from_dict(branches))


def _thinned(array: xr.DataArray) -> xr.DataArray:
    """At most so many epochs, evenly spaced on a logarithmic axis, and ranks, evenly spaced."""
    if "epoch" in array.dims:
        array = array.dropna("epoch", how="all")
        epochs = array.epoch.values
        if len(epochs) > _POINTS:
            wanted = np.r_[0, np.geomspace(max(epochs[0], 1), epochs[-1], _POINTS)]
            array = array.isel(epoch=np.unique(np.abs(epochs[:, None] - wanted).argmin(0)))
    if "rank" in array.dims and array.sizes["rank"] > _POINTS:
        array = array.isel(rank=np.linspace(0, array.sizes["rank"] - 1, _POINTS).round().astype(int))
    return array


def _rounded(value: Any) -> Any:
    """Numbers to four digits, whole ones as they are, what is not finite as None."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float) or value.is_integer():
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def write_summary(summary: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write a summary as ``STUDY.json``; returns the file."""
    path = folder / f"{summary['study']}.json"
    head = {key: value for key, value in summary.items() if key != "results"}
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    numbers = json.dumps(summary["results"], separators=(",", ":"), allow_nan=False)
    write(path, f'{text},\n "results": {numbers}\n}}\n')
    return path


def read_summary(study: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read one back.

    Raises:
        FileNotFoundError: Where there is none.
        lit_grok.files.ReadError: Where it is damaged.
    """
    path = folder / f"{study}.json"
    with reading(path, "the summary of a study"):
        found = dict(json.loads(path.read_text()))
        for key, kind in _SHAPE.items():
            if not isinstance(found.get(key), kind):
                raise ValueError(f"it has no {key}")
        results_of(found)
        return found


def known_seconds(folder: Path) -> dict[str, float]:
    """Seconds of one seed of a sweep, by its name, where that was measured; nothing where the file is damaged."""
    try:
        found = json.loads((folder / COSTS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def results_of(summary: Mapping[str, Any]) -> Results:
    """The results that a summary has kept."""
    return Results({name: unpack(packed) for name, packed in summary["results"].items()})
