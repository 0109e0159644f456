"""A question the paper leaves open: which measure says first, and best, that a network is about to understand?

Every measure of every training is read from train accuracy 1 on until the test pairs outside the hole are known. Two
baselines stand beside the measures: the norm of the embeddings and that of all weights; a third is the clock. A random
table, which cannot be understood, tells false alarms.

Direction and threshold of a measure are found on the other seeds: those that tell best the epochs from which
understanding is at most `HORIZON` epochs away from all others (Youden's J). A seed's numbers are then

- ρ, Spearman's correlation with the test loss, its absolute value, mean over the settings that are understood,
- AUROC, the probability that the measure, in that direction, ranks an epoch with understanding at most `HORIZON` epochs
  away above one with it further away, or never; over the epochs of all settings, so that time alone does not suffice,
- lead, how many epochs before understanding the threshold is first crossed, mean over the settings that are understood;
  none where it is not crossed by then, or more than `HORIZON` epochs too early, and
- false alarms, the share of settings in which it is crossed that early, or for nothing.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from studies.beyond_progress_measures.sweeps import FORECASTS
from studies.claims import Claim, Results
from studies.readings import first_epoch, grid, rank_correlation
from studies.study import Study

#: "Soon" is within so many epochs.
HORIZON = 1000
_UNDERSTOOD = 0.9
_TOLD = ("rho", "auroc", "lead", "false_alarms")
LOSS, TRAIN, ACCURACY = "evaluation/test_loss", "evaluation/train_accuracy", "coverage/accuracy"


@dataclass(frozen=True)
class Measure:
    """What may announce understanding.

    Args:
        label: How it is called.
        path: ``BRANCH/VARIABLE``; None for the epoch itself.
        labels: Of further dimensions.
    """

    label: str
    path: str | None
    labels: tuple[tuple[str, str], ...] = ()

    def of(self, tree: xr.DataTree) -> xr.DataArray:
        """Its curves, dimensions (seed, epoch)."""
        if self.path is None:
            outside = _plain(tree, ACCURACY, group="outside")
            return outside.epoch + 0 * outside
        return _plain(tree, self.path, **dict(self.labels))


_BOTH = (("operand", "both"),)
MEASURES = {
    "med": Measure("MED", "uniformity/med", _BOTH),
    "relative_med": Measure("MED / mean norm", "uniformity/relative_med", _BOTH),
    "smallest_med": Measure("smallest MED of any step / mean norm", "uniformity/smallest_relative_med", _BOTH),
    "spread": Measure("spread of the embedding", "uniformity/spread", _BOTH),
    "embedding_gini": Measure("Fourier Gini, embedding", "progress_measures/fourier_gini", (("set", "embedding"),)),
    "output_gini": Measure("Fourier Gini, output", "progress_measures/fourier_gini", (("set", "output"),)),
    "restricted_loss": Measure("restricted loss", "progress_measures/restricted_loss"),
    "excluded_loss": Measure("excluded loss", "progress_measures/excluded_loss"),
    "local_complexity": Measure("local complexity", "progress_measures/local_complexity"),
    "mean_norm": Measure("mean embedding norm", "uniformity/mean_norm", _BOTH),
    "weight_norm": Measure("Σθ²", "progress_measures/sum_of_squares"),
    "epoch": Measure("the epoch", None),
}
BASELINES = ("mean_norm", "weight_norm", "epoch")
_OF_SUMS = ("restricted_loss", "excluded_loss")


def _plain(tree: xr.DataTree, path: str, **labels: str) -> xr.DataArray:
    return grid(tree, path, **labels).sel(init_scale=1.0, drop=True).dropna("epoch", how="all")


@dataclass(frozen=True, eq=False)
class Watch:
    """A measure from train accuracy 1 on until the network understands, or to the end.

    Args:
        epochs: Of the measurements, shape (n,).
        values: Of the measure.
        losses: On the test set, at the same epochs.
        understood: The epoch of understanding, inf where there is none.
    """

    epochs: np.ndarray
    values: np.ndarray
    losses: np.ndarray
    understood: float

    @property
    def soon(self) -> np.ndarray:
        """Whether understanding is at most `HORIZON` epochs away."""
        return self.understood - self.epochs <= HORIZON


def watch(tree: xr.DataTree, measure: Measure) -> dict[int, Watch]:
    """A measure in every seed of a setting that fits its training set.

    Args:
        tree: The results.
        measure: Which.
    """
    curve, outside = measure.of(tree), _plain(tree, ACCURACY, group="outside")
    loss = _plain(tree, LOSS).interp(epoch=curve.epoch)
    fitted = first_epoch(_plain(tree, TRAIN) >= 1)
    understood = first_epoch(outside >= _UNDERSTOOD)
    found = {}
    for seed in curve.seed.values.tolist():
        start, stop = float(fitted.sel(seed=seed)), float(understood.sel(seed=seed))
        stop = stop if np.isfinite(stop) else np.inf
        own, losses = curve.sel(seed=seed), loss.sel(seed=seed)
        use = ((curve.epoch >= start) & (curve.epoch < stop) & own.notnull()).values
        if use.any():
            found[seed] = Watch(curve.epoch.values[use], own.values[use], losses.values[use], stop)
    return found


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive ranks above a negative, ties counting one half; NaN without both.

    Example:
        >>> auroc(np.array([1.0, 2.0, 3.0]), np.array([False, False, True]))
        1.0
        >>> auroc(np.array([2.0, 2.0, 1.0]), np.array([True, False, False]))
        0.75
    """
    above, below = scores[positive], scores[~positive]
    if not (above.size and below.size):
        return np.nan
    difference = above[:, None] - below
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """The least score that counts as an alarm where the true less the false positive rate is highest (Youden's J).

    Example:
        >>> threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True]))
        3.0
    """
    each = np.unique(scores)
    alarm = scores >= each[:, None]
    rates = alarm[:, positive].mean(1) - alarm[:, ~positive].mean(1)
    return float(each[rates.argmax()])


def forecast(watches: Mapping[str, Mapping[int, Watch]], seed: int) -> dict[str, float]:
    """ρ, AUROC, lead and false alarms of a measure in one seed, with direction and threshold from the others.

    Args:
        watches: By setting and seed.
        seed: Which.

    Returns:
        ``rho``, ``auroc``, ``lead`` and ``false_alarms``; NaN where there is nothing to learn from, or to tell.
    """
    own = [by_seed[seed] for by_seed in watches.values() if seed in by_seed]
    others = [one for by_seed in watches.values() for other, one in by_seed.items() if other != seed]
    rho = [
        abs(rank_correlation(one.values, one.losses)) if np.ptp(one.values) > 0 else 0.0
        for one in own
        if np.isfinite(one.understood) and len(one.values) >= 5
    ]
    found = dict.fromkeys(_TOLD, np.nan) | {"rho": float(np.mean(rho)) if rho else np.nan}
    if not (own and others):
        return found
    values, soon = (np.concatenate([getattr(one, name) for one in others]) for name in ("values", "soon"))
    if soon.all() or not soon.any():
        return found
    sign = 1.0 if auroc(values, soon) >= 0.5 else -1.0
    level = threshold(sign * values, soon)
    crossed = {one: _first(one.epochs[sign * one.values >= level]) for one in own}
    known = [one for one in own if np.isfinite(one.understood)]
    values, soon = (np.concatenate([getattr(one, name) for one in own]) for name in ("values", "soon"))
    ahead = [one.understood - crossed[one] for one in known]
    always = [one.understood - one.epochs[0] for one in known]  # what an alarm that is always on has, without knowing
    leads = [_lead(epochs) - _lead(without) for epochs, without in zip(ahead, always, strict=True)]
    return found | {
        "auroc": auroc(sign * values, soon),
        "lead": float(np.mean(leads)) if leads else np.nan,
        "false_alarms": float(np.mean([crossed[one] < one.understood - HORIZON for one in own])),
    }


def _lead(ahead: float) -> float:
    """An alarm that comes too late, or a horizon too early, leads by nothing."""
    return ahead if 0 < ahead <= HORIZON else 0.0


def _first(epochs: np.ndarray) -> float:
    return float(epochs[0]) if epochs.size else np.inf


def statistics(results: Results, measure: str, like: str | None = None) -> xr.Dataset:
    """`forecast` of a measure, each with the dimension seed.

    The seeds share direction and threshold, so their values are not independent: on noise Student's 95 % interval of
    the AUROC leaves out .5 in a fifth of all cases, mostly below it.

    Args:
        results: Those of every setting.
        measure: A key of `MEASURES`.
        like: Only in the settings that have this one as well: restricted and excluded loss exist for sums and
            differences alone, which are not to be compared with all settings.
    """
    watches = {}
    for sweep in FORECASTS.values():
        tree = results[sweep.name]
        with suppress(KeyError):  # what only some operations have
            if like:
                MEASURES[like].of(tree)
            watches[sweep.name] = watch(tree, MEASURES[measure])
    seeds = sorted({seed for by_seed in watches.values() for seed in by_seed})
    found = [forecast(watches, seed) for seed in seeds]
    return xr.Dataset({name: ("seed", [one[name] for one in found]) for name in _TOLD}, {"seed": seeds})


def draw(results: Results) -> Mapping[str, Figure]:
    """The four numbers of every measure, a mark for each seed; of a summary from the epochs that it has kept."""
    if any(sweep.name not in results for sweep in FORECASTS.values()):
        return {}
    found = {name: statistics(results, name) for name in MEASURES}
    figure = Figure(figsize=(8.4, 0.24 * len(found) + 1.2), layout="constrained")
    titles = {
        "rho": "|Spearman's ρ|\nwith the test loss",
        "auroc": f"AUROC of {HORIZON} epochs\nto understanding",
        "lead": "epochs ahead of an\nalarm always on",
        "false_alarms": "settings with\na false alarm",
    }
    for axes, (key, title) in zip(figure.subplots(1, len(titles), sharey=True), titles.items(), strict=True):
        for row, (name, told) in enumerate(found.items()):
            colour = "0.4" if name in BASELINES else "C0"
            axes.plot(told[key], np.full(told[key].shape, row), "o", color=colour, markersize=4, alpha=0.5)
            axes.plot(told[key].mean("seed"), row, "|", color=colour, markersize=12)
        axes.set_title(title, fontsize="small")
        axes.set_yticks(range(len(found)), [MEASURES[name].label for name in found], fontsize="small")
        axes.tick_params(axis="x", labelsize="small")
    axes.invert_yaxis()
    return {"forecast": figure}


def _where(name: str) -> str:
    return ", x + y and x - y alone" if name in _OF_SUMS else ""


def _claims(name: str) -> list[Claim]:
    label = MEASURES[name].label
    found = [
        Claim(
            name=f"{name}_auroc",
            says=f"That the network understands within {HORIZON} epochs is told by: {label}.",
            source="ours",
            statistic=f"AUROC of {label}, direction from the other seeds{_where(name)}",
            values=lambda results: statistics(results, name).auroc,
            side=">",
            threshold=0.8,
        ),
        Claim(
            name=f"{name}_lead",
            says=f"Its threshold is crossed well before understanding: {label}.",
            source="ours",
            statistic=f"lead of {label} in epochs beyond that of an alarm that is always on{_where(name)}",
            values=lambda results: statistics(results, name).lead,
            side=">",
            threshold=HORIZON / 4,
        ),
        Claim(
            name=f"{name}_rho",
            says=f"The test loss is followed by: {label}.",
            source="Sec. 6.3" if name == "med" else "ours",
            statistic=f"|Spearman's ρ| of {label} and the test loss from train accuracy 1 on",
            values=lambda results: statistics(results, name).rho,
            side=">",
            threshold=0.5,
        ),
    ]
    return found if name in BASELINES else [*found, _against_the_norm(name)]


def _against_the_norm(name: str) -> Claim:
    label = MEASURES[name].label
    return Claim(
        name=f"{name}_beats_the_norm",
        says=f"Of what is to come more is told by {label} than by the plain norm of the embeddings.",
        source="ours",
        statistic=f"AUROC of {label} less that of the mean embedding norm{_where(name)}",
        values=lambda results: statistics(results, name).auroc - statistics(results, "mean_norm", like=name).auroc,
        side=">",
        threshold=0.05,
        main=True,
    )


STUDY = Study(
    name="forecast",
    title="Which measure says first, and best, that a network will understand?",
    figures=(),
    sweeps=tuple(FORECASTS.values()),
    draws=dict.fromkeys(
        (LOSS, TRAIN, ACCURACY, *dict.fromkeys(measure.path for measure in MEASURES.values() if measure.path))
    ),
    claims=tuple(claim for name in MEASURES for claim in _claims(name)),
    draw=draw,
)
