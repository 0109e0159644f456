"""Claims as code, and the verdict on each: one value per seed, a side, and an interval that lies on it or does not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from scipy import stats

Verdict = Literal["reproduced", "not reproduced", "undecided", "too few seeds"]
#: Above or below a threshold, or between two.
Side = Literal[">", "<", "within"]
#: The mean over seeds, with Student's interval, or the share of seeds of which something is true, with Wilson's.
Kind = Literal["mean", "share"]

#: What claims call the tasks.
TASKS = {
    "ising": "the Ising task",
    "mod_add": "modular addition",
    "prime": "addition in a transformer",
    "mnist": "the class of digits",
}

_CONFIDENCE = 0.95
#: Seeds, of fewer of which nothing is decided. Four of four would exceed one half in 1 of 16 cases by chance, five in
#: 1 of 32.
FEWEST = {"mean": 3, "share": 5}


class NotTrained(KeyError):
    """No run of this sweep is complete."""


class Results(dict[str, xr.DataTree]):
    """The results of each sweep by its name, as ``open_runs`` gives them, or what a summary has kept of them."""

    def __missing__(self, sweep: str) -> xr.DataTree:
        raise NotTrained(sweep)


@dataclass(frozen=True)
class Claim:
    """Something that is said of the results.

    Args:
        name: By which a summary and a table know it.
        says: The claim, in one sentence.
        source: Where it is made: a section or figure, or ``ours``.
        statistic: What is measured of each seed, in a few words.
        values: The statistic, one value per seed; NaN for a seed that has none.
        side: On which side of the threshold it is claimed to lie.
        threshold: A number; for ``within`` the lower and the upper one.
        kind: ``mean``, or ``share`` where the statistic is 1 or 0.
        paper: The number that its source gives, as it gives it.
        main: Whether it is one of those that a reader asks about first.
        of_ends: Whether it compares several sweeps by what a summary keeps of them, ends or means over a curve that it
            has thinned out, so that they may have been trained on several machines.
    """

    name: str
    says: str
    source: str
    statistic: str
    values: Callable[[Results], xr.DataArray]
    side: Side
    threshold: float | tuple[float, float]
    kind: Kind = "mean"
    paper: str = ""
    main: bool = False
    of_ends: bool = False

    @property
    def asks(self) -> str:
        """Side and threshold in words.

        Example:
            >>> Claim("a", "", "", "", values=None, side="within", threshold=(-0.1, 0.1)).asks
            'between -0.1 and 0.1'
        """
        if isinstance(self.threshold, tuple):
            return f"between {self.threshold[0]:g} and {self.threshold[1]:g}"
        return f"{self.side} {self.threshold:g}"


@dataclass(frozen=True)
class Judgement:
    """What became of a claim.

    Args:
        verdict: ``reproduced``, ``not reproduced``, ``undecided`` or ``too few seeds``.
        values: The statistic of each seed that has one, by seed.
        estimate: Their mean, or the share.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    verdict: Verdict
    values: Mapping[int, float]
    estimate: float
    low: float
    high: float


def judge(claim: Claim, results: Results) -> Judgement:
    """The verdict on a claim.

    Args:
        claim: The claim.
        results: Those of the sweeps there are.

    Returns:
        *Reproduced* where the 95 % interval lies on the claimed side, *not reproduced* where it lies on the other, and
        *undecided* where it holds the threshold. Where fewer than three seeds have a value, five of a share, there are
        *too few seeds* for any of these.

    Example:
        >>> seeds = xr.DataArray([0.9, 1.0, 1.1], dims="seed", coords={"seed": [0, 1, 2]})
        >>> claim = Claim("a", "", "", "", values=lambda results: seeds, side=">", threshold=0.5)
        >>> found = judge(claim, Results())
        >>> found.verdict, round(found.low, 2), round(found.high, 2)
        ('reproduced', 0.75, 1.25)
    """
    try:
        array = claim.values(results)
    except NotTrained:
        return weigh(claim, {})
    return weigh(claim, {int(s): float(value) for s, value in zip(array.seed.values, array.values, strict=True)})


def uses(claim: Claim, results: Results) -> set[str]:
    """Names of the sweeps that a claim is about, among those there are."""
    asked: set[str] = set()

    class Watched(Results):
        def __getitem__(self, sweep: str) -> xr.DataTree:
            asked.add(sweep)
            return super().__getitem__(sweep)

    try:
        claim.values(Watched(results))
    except (NotTrained, KeyError, ValueError):  # a summary has not kept all that it needs: all it might be about
        return set(results)
    return asked


def weigh(claim: Claim, by_seed: Mapping[int, float]) -> Judgement:
    """The verdict on a claim from the statistic of each seed; those that are NaN are left out."""
    by_seed = {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
    values = list(by_seed.values())
    if not values:
        return Judgement("too few seeds", {}, math.nan, math.nan, math.nan)
    low, high = student_interval(values) if claim.kind == "mean" else wilson_interval(values)
    verdict = decide(low, high, claim.side, claim.threshold) if len(values) >= FEWEST[claim.kind] else "too few seeds"
    return Judgement(verdict, by_seed, float(np.mean(values)), low, high)


def decide(low: float, high: float, side: Side, threshold: float | tuple[float, float]) -> Verdict:
    """On which side of the threshold an interval lies.

    Args:
        low: Its lower end.
        high: Its upper end.
        side: Which side is claimed.
        threshold: For ``within`` the ends of the range; an interval that only overlaps with it decides nothing.

    Raises:
        ValueError: Where side and threshold do not fit.

    Example:
        >>> decide(0.6, 0.8, ">", 0.5), decide(0.4, 0.8, ">", 0.5), decide(0.1, 0.3, ">", 0.5)
        ('reproduced', 'undecided', 'not reproduced')
        >>> decide(-0.05, 0.05, "within", (-0.1, 0.1)), decide(0.2, 0.3, "within", (-0.1, 0.1))
        ('reproduced', 'not reproduced')
    """
    if (side == "within") != isinstance(threshold, tuple):
        raise ValueError(f"{side} {threshold}: a range is what 'within' needs, and only 'within'")
    if isinstance(threshold, tuple):
        inside, outside = threshold[0] <= low and high <= threshold[1], high < threshold[0] or low > threshold[1]
    elif side == ">":
        inside, outside = low > threshold, high <= threshold
    else:
        inside, outside = high < threshold, low >= threshold
    return "reproduced" if inside else "not reproduced" if outside else "undecided"


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean: mean ± t(n − 1) · s / √n.

    Args:
        values: One per seed. A single one has an interval without ends.

    Example:
        >>> [round(end, 3) for end in student_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def wilson_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a share of seeds (Wilson 1927).

    Args:
        values: 1 where it is true, else 0.

    Example:
        >>> [round(end, 3) for end in wilson_interval([1, 1, 1, 1, 1])]
        [0.566, 1.0]
    """
    interval = stats.binomtest(round(sum(values)), len(values)).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
