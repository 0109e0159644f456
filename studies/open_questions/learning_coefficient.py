"""What the local learning coefficient follows, if not compressibility: open question 3 of *Grokking vs. Learning*."""

from collections.abc import Mapping
from functools import partial

import xarray as xr
from matplotlib.figure import Figure

from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.open_questions.cells import along, as_cells, ends, trained
from studies.open_questions.sweeps import ENCODINGS
from studies.readings import grid, learned, over_scales, rank_correlation
from studies.study import Study

LLC, C = "llc/coefficient", "pruning/final_compressibility"
#: What it might follow, and what that is called.
CANDIDATES = {
    "kept_share": ("pruning/final_kept_share", "the share of weights that is needed"),
    "gini": ("weights/gini", "the inequality of the weights"),
    "dead_neurons": ("weights/dead_neurons", "the number of dead neurons"),
    "dimension": ("superposition/effective_dimension", "the dimension that the input weights fill"),
    "ipr": ("ipr/mean_ipr", "the localisation in the Fourier basis"),
    "train_loss": ("evaluation/train_loss", "the training loss"),
    "weight_norm": ("evaluation/weight_norm", "the norm of the weights"),
}
#: Those of which more goes with a lower coefficient.
_AGAINST = ("gini", "dead_neurons", "train_loss")
_DEVELOPMENT = "pruning/compressibility"


def draw(results: Results) -> Mapping[str, Figure]:
    """The coefficient and what it might follow against init_scale, for each weight decay."""
    trees = trained(results, ENCODINGS)
    if not trees:
        return {}
    panels = {
        LLC: "learning coefficient",
        C: "compressibility $C$",
        "pruning/final_kept_share": "kept share",
        "ipr/mean_ipr": "mean IPR",
        "evaluation/train_loss": "train loss",
        "evaluation/weight_norm": "norm of the weights",
    }
    return {"learning_coefficient": against_scale(trees, panels, (C, "evaluation/train_loss"))}


def _rank(results: Results, path: str) -> xr.DataArray:
    """Spearman's ρ of the coefficient and another quantity over all weight decays and init_scales."""
    other = ends(results, ENCODINGS, path)
    if "set" in other.dims:
        other = other.sel(set="a")
    return over_scales(rank_correlation, as_cells(along(results, ENCODINGS, _trained)), as_cells(other), dim="cell")


def _rank_along(results: Results, dim: str) -> xr.DataArray:
    """Spearman's ρ of the coefficient and C over one of the two knobs, mean over the values of the other one."""
    coefficient, known = along(results, ENCODINGS, _trained), ends(results, ENCODINGS, C)
    of_each = over_scales(rank_correlation, coefficient, known, dim=dim)
    return of_each.mean([name for name in of_each.dims if name != "seed"])


def _trained(tree: xr.DataTree) -> xr.DataArray:
    """The coefficient of the trained networks, NaN where the chains have not settled on them."""
    found = grid(tree, LLC)
    return found.isel(epoch=-1, drop=True) if "epoch" in found.dims else found


def _along(results: Results, scale: float) -> xr.DataArray:
    """Spearman's ρ of the coefficient and C over the epochs from t_test on at weight decay 3e-5."""
    tree = results[ENCODINGS[3e-5].name]
    coefficient = grid(tree, LLC)
    coefficient = coefficient.where(coefficient.epoch >= learned(tree, grid(tree, "t_test")))
    coefficient = coefficient.sel(init_scale=scale, drop=True).dropna("epoch", how="all")
    known = grid(tree, _DEVELOPMENT).sel(init_scale=scale, drop=True).dropna("epoch", how="all")
    at = known.interp(epoch=coefficient.epoch)
    return over_scales(rank_correlation, coefficient, at, dim="epoch")


def _settled(results: Results) -> xr.DataArray:
    """Share of the trained networks whose chains have settled."""
    return along(results, ENCODINGS, lambda tree: _trained(tree).notnull().mean("init_scale")).mean("weight_decay")


CLAIMS = (
    Claim(
        name="chains_settle",
        says="The chains settle on these networks, by the sampler's own tests.",
        source="ours, on Sec. 7",
        statistic="share of the networks with an estimate that is believed",
        values=_settled,
        side=">",
        threshold=0.9,
    ),
    Claim(
        name="coefficient_falls_with_compressibility",
        says="Over weight decays and init_scales more compressible networks have a lower learning coefficient.",
        source="ours, on Sec. 7",
        statistic="Spearman's ρ of the coefficient and C",
        values=partial(_rank, path=C),
        side="<",
        threshold=-0.5,
        main=True,
    ),
    *(
        Claim(
            name=f"coefficient_falls_along_{dim}",
            says=f"At any one {other} more compressible networks have a lower learning coefficient.",
            source="ours, on Sec. 7",
            statistic=f"Spearman's ρ of the coefficient and C over the {knob}s, mean over the {other}s",
            values=partial(_rank_along, dim=dim),
            side="<",
            threshold=-0.5,
        )
        for dim, knob, other in (
            ("init_scale", "init_scale", "weight decay"),
            ("weight_decay", "weight decay", "init_scale"),
        )
    ),
    *(
        Claim(
            name=f"coefficient_follows_{name}",
            says=f"The learning coefficient {'falls' if name in _AGAINST else 'rises'} with {label}.",
            source="ours, on Sec. 7",
            statistic="Spearman's ρ over all weight decays and init_scales",
            values=partial(_rank, path=path),
            side="<" if name in _AGAINST else ">",
            threshold=-0.8 if name in _AGAINST else 0.8,
            main=name in ("kept_share", "ipr"),
        )
        for name, (path, label) in CANDIDATES.items()
    ),
    *(
        Claim(
            name=f"along_{name}",
            says=f"Once a network that {does} has understood, the coefficient and C move against each other.",
            source="ours, on Sec. 7",
            statistic=f"Spearman's ρ over the epochs from t_test on, weight decay 3e-5, init_scale {scale:g}",
            values=partial(_along, scale=scale),
            side="<",
            threshold=-0.5,
        )
        for name, does, scale in (("grokking", "groks", 10.0), ("steady", "learns steadily", 1.0))
    ),
)

STUDY = Study(
    name="learning_coefficient",
    title="What does the local learning coefficient follow?",
    figures=(),
    sweeps=tuple(ENCODINGS.values()),
    draws=dict.fromkeys((LLC, C, _DEVELOPMENT, *(path for path, _ in CANDIDATES.values()))),
    claims=CLAIMS,
    draw=draw,
)
