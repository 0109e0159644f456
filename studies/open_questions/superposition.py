"""Is the compressive regime one of superposition? Open question 2 of *Grokking vs. Learning*."""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from studies.claims import Claim, Results
from studies.drawing import against_scale
from studies.open_questions.cells import as_cells, ends, trained
from studies.open_questions.sweeps import ENCODINGS
from studies.readings import over_scales, rank_correlation
from studies.study import Study

COMPRESSIBILITY = "pruning/final_compressibility"
_NAMES = {
    "features_per_neuron": "frequencies per neuron",
    "polysemantic_share": "neurons with two\nor more",
    "neurons_per_feature": "neurons per frequency",
    "interference": "interference",
    "effective_dimension": "effective dimension",
}
_NULLS = ("null_interference", "null_dimension")
#: Weight decay and init_scale: in the regime, on its mild side, and well outside, learned steadily and grokked.
_COMPRESSED, _MILD, _STEADY, _GROKKED = (3e-4, 0.1), (3e-5, 0.1), (3e-5, 1.0), (3e-5, 10.0)


def draw(results: Results) -> Mapping[str, Figure]:
    """Features of the input weights, interference and dimension against init_scale, for each weight decay."""
    trees = trained(results, ENCODINGS)
    if not trees:
        return {}
    panels = {f"superposition/{name}": label for name, label in _NAMES.items()}
    log = ("superposition/interference", "superposition/neurons_per_feature")
    both = panels | {COMPRESSIBILITY: "compressibility $C$"}
    return {"superposition": against_scale(trees, both, (*log, COMPRESSIBILITY), set="a")}


def _of(results: Results, name: str) -> xr.DataArray:
    """Mean over the sets of weights, dimensions (weight_decay, init_scale, seed)."""
    return ends(results, ENCODINGS, f"superposition/{name}").mean("set")


def _at(array: xr.DataArray, cell: tuple[float, float]) -> xr.DataArray:
    return array.sel(weight_decay=cell[0], init_scale=cell[1], drop=True)


def _ratio(results: Results, name: str, cell: tuple[float, float], null: str | None = None) -> xr.DataArray:
    """That of a cell over that of steady learning, each over its null model where there is one."""
    array = _of(results, name)
    if null:
        array = array / _of(results, null)
    return _at(array, cell) / _at(array, _STEADY)


CLAIMS = (
    Claim(
        name="compressed_neurons_carry_more",
        says="In the compressive regime a neuron carries more frequencies than in steady learning.",
        source="ours, on Sec. 7",
        statistic="frequencies per neuron at weight decay 3e-4, init_scale 0.1, over those at 3e-5, 1",
        values=lambda results: _ratio(results, "features_per_neuron", _COMPRESSED),
        side=">",
        threshold=1.2,
        main=True,
    ),
    Claim(
        name="small_weights_carry_more",
        says="Small initial weights alone do that as well.",
        source="ours, on Sec. 7",
        statistic="frequencies per neuron at init_scale 0.1 over those at 1, weight decay 3e-5",
        values=lambda results: _ratio(results, "features_per_neuron", _MILD),
        side=">",
        threshold=1.1,
    ),
    Claim(
        name="grokked_neurons_carry_as_many",
        says="A neuron that has grokked carries as many frequencies as one that has learned steadily.",
        source="ours, on Sec. 7",
        statistic="frequencies per neuron at init_scale 10 over those at 1, weight decay 3e-5",
        values=lambda results: _ratio(results, "features_per_neuron", _GROKKED),
        side="within",
        threshold=(0.9, 1.1),
        main=True,
    ),
    Claim(
        name="one_frequency_to_a_neuron",
        says="Outside the regime hardly any neuron carries two frequencies.",
        source="ours, on Sec. 7",
        statistic="share of neurons with two or more at weight decay 3e-5, init_scale 1",
        values=lambda results: _at(_of(results, "polysemantic_share"), _STEADY),
        side="<",
        threshold=0.1,
    ),
    Claim(
        name="compressed_features_interfere",
        says="In the compressive regime the frequencies interfere more, beyond what fewer neurons explain.",
        source="ours, on Sec. 7",
        statistic="interference over that of random weights of the same norms, 3e-4 and 0.1 over 3e-5 and 1",
        values=lambda results: _ratio(results, "interference", _COMPRESSED, "null_interference"),
        side=">",
        threshold=1.5,
        main=True,
    ),
    Claim(
        name="features_avoid_each_other",
        says="What has grokked interferes less than random weights of the same norms.",
        source="ours, on Sec. 7",
        statistic="interference over that of random weights at weight decay 3e-5, init_scale 10",
        values=lambda results: _at(_of(results, "interference") / _of(results, "null_interference"), _GROKKED),
        side="<",
        threshold=0.9,
    ),
    Claim(
        name="compressed_fill_fewer_dimensions",
        says="Compressed weights fill fewer dimensions, beyond what fewer neurons explain.",
        source="ours, on Sec. 7",
        statistic="effective dimension over that of random weights, 3e-4 and 0.1 over 3e-5 and 1",
        values=lambda results: _ratio(results, "effective_dimension", _COMPRESSED, "null_dimension"),
        side="<",
        threshold=0.9,
    ),
    Claim(
        name="superposition_follows_compressibility",
        says="The more compressible a network, the more frequencies a neuron carries.",
        source="ours, on Sec. 7",
        statistic="Spearman's ρ of C and the frequencies per neuron over all weight decays and init_scales",
        values=lambda results: over_scales(
            rank_correlation,
            as_cells(_of(results, "features_per_neuron")),
            as_cells(ends(results, ENCODINGS, COMPRESSIBILITY)),
            dim="cell",
        ),
        side=">",
        threshold=0.5,
        main=True,
    ),
)

STUDY = Study(
    name="superposition",
    title="Is the compressive regime one of superposition?",
    figures=(),
    sweeps=tuple(ENCODINGS.values()),
    draws=dict.fromkeys((COMPRESSIBILITY, *(f"superposition/{name}" for name in (*_NAMES, *_NULLS)))),
    claims=CLAIMS,
    draw=draw,
)
