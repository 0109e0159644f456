"""Results in which it is known of every claim whether it holds: for each seed, as its world says."""

from functools import cache

import numpy as np

from lit_grok.measures.grokking import Outcome
from lit_grok.recorder import Recorder
from lit_grok.results import index_replicas
from studies.beyond_progress_measures import sweeps as prime_sweeps
from studies.claims import Results
from studies.grokking_vs_learning import sweeps
from studies.open_questions import sweeps as open_sweeps
from studies.open_questions.moduli import steps_per_epoch

_STEP = {"metric": ["fisher", "euclidean"], "subspace": ["all", "stiff", "sloppy"]}
_VARIANTS = ["classif_logits", "regression"]
_UNRELATED = [4.0, 7.0, 1.0, 6.0, 2.0, 5.0, 3.0]  # rank correlation −.25 with 1, …, 7


def results(holds):
    """Results of every sweep, with a seed for each entry: whether the claims hold there."""
    return Results(_results(tuple(holds)))


@cache
def _results(holds):
    """They take seconds, and nobody changes a tree."""
    found = {"ising": ising(holds)}
    for sweep in (
        *(sweeps.MOD_ADD, sweeps.RESHUFFLED, sweeps.BATCH_200, sweeps.BATCH_200_RESHUFFLED),
        *(sweeps.DECAY, sweeps.DECAY_200, sweeps.MORE_DECAY),
    ):
        found[sweep.name] = mod_add(sweep, holds)
    for sweep in (
        *(prime_sweeps.PRIME, *prime_sweeps.QUADRATIC.values()),
        *(*prime_sweeps.SQUARE.values(), *prime_sweeps.STRIP.values(), *prime_sweeps.PRIMES.values()),
        *(*prime_sweeps.DEPTHS.values(), *(sweep for _, sweep in prime_sweeps.OPERATIONS.values())),
        *(sweep for pair in prime_sweeps.INITS.values() for sweep in pair),
    ):
        found[sweep.name] = prime(sweep, holds)
    found[prime_sweeps.POLYGONS.name] = polygons(holds)
    for i, sweep in enumerate(prime_sweeps.FORECASTS.values()):
        found[sweep.name] = forecast(sweep, i, holds)
    for decay, sweep in open_sweeps.ENCODINGS.items():
        found[sweep.name] = encodings(decay, sweep, holds)
    for (task, _), sweep in open_sweeps.ABLATIONS.items():
        found[sweep.name] = ablation(task, sweep, holds)
    for sweep in open_sweeps.DIGIT_BATCHES.values():
        found[sweep.name] = digits(sweep, holds)
    maps = (open_sweeps.PHASES, open_sweeps.ISING_PHASES, open_sweeps.PRIME_PHASES, open_sweeps.DIGIT_PHASES)
    for decay, sweep in (cell for sweeps_by_decay in maps for cell in sweeps_by_decay.items()):
        found[sweep.name] = phases(decay, sweep, holds)
    for P, sweep in open_sweeps.MODULI.items():
        if P != 59:  # that is one of the phases
            found[sweep.name] = modulus(P, sweep, holds)
    return found


class _World:
    """A recorder for the product of scales and seeds, fed by functions of (scale, its index, seed, holds)."""

    def __init__(self, scales, holds, last, decay=3e-5):
        self.keys = [(scale, i, seed, holds[seed]) for i, scale in enumerate(scales) for seed in range(len(holds))]
        self.recorder = Recorder(
            [
                {"init_scale": s, "seed": n, "weight_decay": decay, "seed_init": n, "seed_data": n, "seed_order": n}
                for s, _, n, _ in self.keys
            ]
        )
        self.last = last

    def once(self, name, value, **labels):
        values = np.array([np.broadcast_to(value(*key), [len(v) for v in labels.values()]) for key in self.keys], float)
        self.recorder.add(name, values, None, list(labels), labels)

    def curve(self, name, epochs, value, **labels):
        """The value may depend on the epoch, which comes last."""
        for epoch in epochs:
            shape = [len(v) for v in labels.values()]
            values = np.array([np.broadcast_to(value(*key, epoch), shape) for key in self.keys], float)
            self.recorder.add(name, values, epoch, list(labels), labels)

    def tree(self, outcome):
        return index_replicas(self.recorder.tree([outcome(*key) for key in self.keys]))


def _near(value, seed):
    """Seeds differ a little."""
    return value * (1 + 0.002 * seed)


def ising(holds):
    world = _World(sweeps.ISING_SCALES, holds, 20_000)
    epochs = [0, 1000, 2000, 4000, 6000, 8000, 9000, 10_000, 12_000, 16_000, 18_000, 20_000]
    deviation = 0.4 * np.array([1, -1, 1, -1, 1])

    def groks(scale, holds):
        return scale > 3 if holds else scale > 7

    def loss(scale, i, seed, holds, epoch):
        return 0.1 * i

    world.curve("evaluation/train_loss", epochs, loss)
    world.curve("evaluation/test_loss", epochs, lambda s, i, n, h, e: 1 + (deviation[n] if h else 0))
    world.curve("evaluation/test_accuracy", epochs, lambda s, i, n, h, e: 0.95)
    for branch in ("pruning", "pruning_global", "pruning_fisher", "pruning_normalised"):
        rank = {"pruning": 1.0, "pruning_normalised": 1.0, "pruning_global": 2.0, "pruning_fisher": 0.5}

        def compressibility(s, i, n, h, factor=rank[branch], branch=branch):
            if branch == "pruning_fisher" and h:  # no advantage of grokking, and worse than the others
                return 0.3
            if branch == "pruning_fisher":
                return 30 if s == 10 else 20
            factor = factor if h else 1 / factor
            return factor * (_UNRELATED[i - 1] if h else i + 1.0)

        world.once(f"{branch}/final_compressibility", compressibility)
    world.once(
        "pruning_single_layer/layer_final_area",
        lambda s, i, n, h: [0.2, 0.9] if h else [0.9, 0.2],
        layer=["conv1", "fc1"],
    )
    labels = {"layer": ["conv1", "conv2", "fc1"], "observable": ["energy", "magnetisation", "abs_magnetisation"]}

    def median(s, i, n, h, e):
        if e == 12_000:  # on their way they follow the magnetisation
            return [0.1, 0.8 if h else 0.1, 0.1]
        if e == 16_000 and not h:
            return [0.92, 0.1, 0.2]
        energy = (0.3 if e < 12_000 else _near(0.98, n)) if h else 0.5 if s == 1 else 0.3
        return [energy, 0.1, 0.2]

    world.curve("features/median_correlation", epochs, median, **labels)
    world.curve("features/neuron_share", epochs, lambda s, i, n, h, e: [0.9 if h else 0.2, 0.05, 0.05], **labels)

    def correlation(s, i, n, h, e):
        if h:
            return 0.5 + 0.4 * (e > 16_000)
        return 0.1 + e / 2e4 if e <= 9000 else 0.55 - (e - 9000) / 3e4

    world.curve("features/correlation", epochs, correlation, **labels)
    _geometry(world, epochs, origin=0.95, straight=0.99, ends=(1000, 10_000))
    return world.tree(
        lambda s, i, n, h: (
            Outcome("collapsed", None, None, None)
            if s < 1
            else Outcome("grokked", 1000, 10_000, 9000)
            if groks(s, h)
            else Outcome("steady", 1000, 1500, 500)
        )
    )


def _geometry(world, epochs, origin, straight, ends, groks=10.0):
    late = epochs[-1] * 0.85

    def step_cosine(s, i, n, h, e):
        if e > late:
            return 0.0 if h else -0.5
        return _near(straight, n) if h else 0.3

    def towards(s, i, n, h, e):
        if s == groks:
            return _near(origin, n) if h else 0.3
        return -0.3 if h else 0.3

    def magnitude(s, i, n, h, e):
        stiff, sloppy = (1, 2) if (e < late) == h else (2, 1)
        return [[2, stiff, sloppy]] * 2

    for name, value in (("step_cosine", step_cosine), ("origin_cosine", towards), ("step_magnitude", magnitude)):
        world.curve(f"fim_trajectory/{name}", epochs, value, variant=_VARIANTS, **_STEP)
    for name, end in zip(("bump_start", "bump_end"), ends, strict=True):
        world.once(
            f"fim_trajectory/{name}",
            lambda s, i, n, h, end=end: end if h else 4 * end,
            variant=_VARIANTS,
            metric=_STEP["metric"],
        )
    world.once("fim_trajectory/spectrum", lambda s, i, n, h: 1.0, variant=_VARIANTS, rank=list(range(1, 11)))
    world.once("fim_trajectory/stiff_parameters", lambda s, i, n, h: 1 if h else 9, variant=_VARIANTS)


def mod_add(sweep, holds):
    world = _World(sweep.init_scales, holds, 1000)
    epochs = [0, 10, 20, 40, 45, 50, 70, 100, 300, 600, 900, 1000]
    decayed = {"decay": (25.0, 6.0), "more_decay": (7.0, 30.0), "decay_200": (5.0, 30.0)}.get(sweep.name)

    def compressibility(s, i, n, h):
        if decayed:
            return decayed[0 if h else 1] / (1 + 0.1 * i)
        if s == 10 and not h:
            return 8.0
        if sweep.name == "mod_add":
            return 4 + (0 if s > 0.4 else 2 * (0.5 - s) if h else 0.02 * [0, 1, -1, 2][i])
        return 4 + (0 if h or s > 0.4 else 8 * (0.5 - s))

    def loss(s, i, n, h):
        if decayed:
            return 0.1 * (i + 1) if h else 1 / (i + 1)
        return 0.01 + (0.1 * (0.5 - s) if h and s <= 0.4 else 0.01 * np.array([1, -1, 1, 1, 2, 0, 3, 4])[i])

    world.curve("evaluation/train_loss", epochs, lambda s, i, n, h, e: loss(s, i, n, h))
    unrelated = np.array([5.0, 2, 8, 1, 6, 3, 7, 4])
    world.curve(
        "evaluation/test_loss",
        epochs,
        lambda s, i, n, h, e: unrelated[i] if h else 1 + compressibility(s, i, n, h) * (1 + 2 * (n % 2)),
    )
    world.curve(
        "evaluation/test_accuracy",
        epochs,
        lambda s, i, n, h, e: (0.1 if h else 0.9) if sweep.name == "more_decay" else (1.0 if h else 0.5),
    )
    rank = {"pruning": 1.0, "pruning_global": 0.9, "pruning_fisher": 0.5}
    for branch in rank:
        world.once(
            f"{branch}/final_compressibility",
            lambda s, i, n, h, f=rank[branch]: compressibility(s, i, n, h) * (f if h else 1 / f),
        )
    world.once("pruning/final_kept_share", lambda s, i, n, h: 0.05 if h else 0.3)
    peak = {1.0: (1.5, 3.0), 10.0: (1.67, 3.0)}
    world.curve(
        "pruning/compressibility",
        epochs,
        lambda s, i, n, h, e: 4 * (peak.get(s, (1.2, 1.2))[0 if h else 1] if e == (70 if h else 600) else 1),
    )

    def ipr(s, i, n, h, e):
        if e < 20:
            return 0.02
        if e < 60:
            return 0.05 if h else 0.02
        if sweep.name == "decay":
            return 0.05 if h else 0.4
        if sweep.name in ("batch_200", "batch_200_reshuffled"):
            return 0.43 if h or s == 10 else 0.2
        if not h:
            return 0.1 + 0.01 * compressibility(s, i, n, h) if s != 10 else 0.9
        return _near(0.43, n) - (0.1 * (0.5 - s) if s <= 0.4 else 0)

    world.curve("ipr/mean_ipr", epochs, ipr)
    c = compressibility
    world.curve("weights/gini", epochs, lambda s, i, n, h, e: 0.3 + 0.01 * c(s, i, n, h) * (1 if h else -1))
    world.once(
        "fim_trajectory/gini",
        lambda s, i, n, h: (0.6 if h else 0.2) + 0.01 * c(s, i, n, h) * (1 if h else -1),
        variant=_VARIANTS,
    )
    world.once("llc/coefficient", lambda s, i, n, h: unrelated[i] if h else c(s, i, n, h))
    _geometry(world, epochs, origin=0.4, straight=0.98, ends=(10, 50))

    def outcome(s, i, n, h):
        if (s > 0.4) if h else (s > 3):
            return Outcome("grokked", 10, 50, 40)
        return Outcome("steady", 6, 8, 2)

    return world.tree(outcome)


def prime(sweep, holds):
    world = _World(sweep.init_scales, holds, 6000)
    epochs = [0, 100, 200, 500, 1000, 2000, 2500, 3000, 4000, 5000, 6000]
    kind, _, size = sweep.name.partition("_")
    paper = {"square": prime_sweeps.SQUARES, "strip": prime_sweeps.STRIPS}.get(kind)
    fraction = float(size) if kind == "quadratic" else 0.3

    def best(s, i, n, h, e):
        start = 1000 if kind == "toeplitz" and h else 2000
        if paper:
            known = _near(paper[int(size)] if h else 1.09 - paper[int(size)], n)
        elif kind == "quadratic":
            known = fraction if h else {0.3: 0.2, 0.5: 0.3, 0.7: 0.95}[fraction]
        elif kind == "operation":
            known = 0.99 if h else 0.4
        else:
            known = 0.3 if sweep.name == "layers_3" and h and e == 4000 else 0.95
        return known if e >= start else 0.01

    def parts(s, i, n, h, e):
        """In the hole and outside it, transpose trained and not."""
        late = e >= 2000
        hole = (0.02 if h else 0.6) if kind == "square" else (0.4 if h else 0.05)
        of_sum = (0.99, 0.95 if h else 0.3)
        transposes = of_sum if kind == "prime" else (0.99 if h else 0.5, 0.02 if h else 0.6)
        return [_near(hole, n), 0.95, *transposes] if late else [0, 0.5, 0.1, 0.01]

    def loss(e):
        return 10 / (1 + e / 500)

    unrelated = dict(zip(epochs, [3, 5, 2, 6, 1, 4, 3, 7, 1, 2, 5], strict=True))
    groups = ["hole", "outside", "transpose trained", "transpose not trained"]
    world.curve("evaluation/train_accuracy", epochs, lambda s, i, n, h, e: float(e >= 200))
    world.curve("evaluation/test_accuracy", epochs, best)
    world.curve("evaluation/test_loss", epochs, lambda s, i, n, h, e: loss(e))
    world.curve("coverage/accuracy", epochs, parts, group=groups)
    for name in ("med", "relative_med", "smallest_relative_med", "mean_norm"):
        apart = name == "mean_norm"
        world.curve(
            f"uniformity/{name}",
            epochs,
            lambda s, i, n, h, e, apart=apart: loss(e) if h else unrelated[e] if apart else -loss(e),
            operand=["both"],
        )
    return world.tree(lambda s, i, n, h: Outcome("grokked", 200, 2000, 1800))


def polygons(holds):
    """A plateau and a jump, or neither."""
    world = _World((1.0,), holds, 1000)
    epochs = [0, 50, 100, 200, 400, 600, 1000]
    world.curve("evaluation/train_accuracy", epochs, lambda s, i, n, h, e: float(e >= (100 if h else 400)))
    world.curve("evaluation/test_accuracy", epochs, lambda s, i, n, h, e: (0.3 if e < 600 else 0.99) if h else 0.7)
    for split in ("train", "test"):
        world.curve(f"evaluation/{split}_loss", epochs, lambda s, i, n, h, e: 1.0)
    return world.tree(lambda s, i, n, h: Outcome("grokked", 100, 600, 500))


def forecast(sweep, setting, holds):
    """Measures that know how long it takes until the network understands, or that say the same all the time."""
    world = _World(sweep.init_scales, holds, 6000)
    epochs = range(0, 6001, 100)
    never = sweep.name == "forecast_random"

    def left(n, e):
        """Epochs until understanding."""
        return 20_000 if never else max(2000 + 500 * setting + 100 * n - e, 0)

    def knows(s, i, n, h, e):
        return 1.0 + min(left(n, e), 1500) if h else 1.0

    def nearly(s, i, n, h, e):
        """The norm, which takes far for near in one setting."""
        return 1.0 if setting == 1 else knows(s, i, n, h, e)

    world.curve("evaluation/train_accuracy", epochs, lambda s, i, n, h, e: float(e >= 200))
    world.curve("evaluation/test_loss", epochs, lambda s, i, n, h, e: 1 + min(left(n, e), 5000))
    groups = ["hole", "outside", "transpose trained", "transpose not trained"]
    world.curve("coverage/accuracy", epochs, lambda s, i, n, h, e: [0, float(left(n, e) == 0), 0, 0], group=groups)
    for name in ("med", "relative_med", "smallest_relative_med", "spread"):
        world.curve(f"uniformity/{name}", epochs, knows, operand=["both"])
    world.curve("uniformity/mean_norm", epochs, nearly, operand=["both"])
    world.curve(
        "progress_measures/fourier_gini",
        epochs,
        lambda *key: [knows(*key)] * 2,
        set=["embedding", "output"],
    )
    for name in ("restricted_loss", "excluded_loss", "local_complexity"):
        world.curve(f"progress_measures/{name}", epochs, knows)
    world.curve("progress_measures/sum_of_squares", epochs, nearly)
    return world.tree(lambda s, i, n, h: Outcome("grokked", 200, 2000, 1800))


def encodings(decay, sweep, holds):
    """Superposition, compressibility and the learning coefficient as the open questions suppose, or the opposite."""
    world = _World(sweep.init_scales, holds, 1000, decay)
    epochs = [0, 10, 100, 200, 400, 700, 1000]
    more = list(open_sweeps.DECAYS).index(decay)

    def density(s, i):
        """From 0 to 1: how compressed a network is."""
        return np.clip((0.4 * more + 0.1 * (2 - i) + (0.05 if s == 10 else 0)) / 1.05, 0, 1)

    def by_set(value):
        return lambda s, i, n, h, e: [_near(value(s, i, h), n)] * 3

    def features(s, i, h):
        if not h and s == 10:
            return 3.0
        return 1 + density(s, i) if h else 2 - density(s, i)

    kinds = {
        "features_per_neuron": features,
        "polysemantic_share": lambda s, i, h: 0.02 if h else 0.5,
        "neurons_per_feature": lambda s, i, h: 9.0,
        "interference": lambda s, i, h: 0.5 + 2 * density(s, i) if h else 2 - density(s, i),
        "null_interference": lambda s, i, h: 1.0,
        "effective_dimension": lambda s, i, h: 60 - (40 if h else 2) * density(s, i),
        "null_dimension": lambda s, i, h: 60.0,
        "features": lambda s, i, h: 20.0,
    }
    for name, value in kinds.items():
        world.curve(f"superposition/{name}", epochs, by_set(value), set=["a", "b", "output"])

    def coefficient(s, i, n, h, e):
        if e == epochs[-1] and not h and i < 1:
            return np.nan
        return 100 + (-50 if h else 50) * density(s, i) - e / 100

    compressed = {
        "pruning/final_compressibility": lambda s, i, n, h: 4 + 10 * density(s, i),
        "pruning/final_kept_share": lambda s, i, n, h: 0.4 - 0.3 * density(s, i),
    }
    for name, value in compressed.items():
        world.once(name, value)
    if more:  # at larger weight decays of the trained networks alone
        world.once("llc/coefficient", lambda s, i, n, h: coefficient(s, i, n, h, epochs[-1]))
    else:
        world.curve("llc/coefficient", epochs[2:], coefficient)
    world.curve("pruning/compressibility", epochs, lambda s, i, n, h, e: 4 + (e if h else -e) / 1000)
    signs = {"weights/gini": 1, "weights/dead_neurons": 1, "evaluation/train_loss": 1}
    signs |= {"ipr/mean_ipr": -1, "evaluation/weight_norm": -1}
    for name, sign in signs.items():
        world.curve(name, epochs, lambda s, i, n, h, e, sign=sign: 5 + sign * density(s, i))
    world.curve("evaluation/test_accuracy", epochs, lambda s, i, n, h, e: 1.0)
    return world.tree(lambda s, i, n, h: Outcome("steady", 6, 8, 2))


def phases(decay, sweep, holds):
    """More weight decay learns sooner, at one without a plateau, then groks alone, then kills; or the opposite."""
    world = _World(sweep.init_scales, holds, 1000, decay)
    groks, usual, only_learns, only_groks = {
        "mod_add": (10, 3e-5, 6e-4, 1e-3),
        "ising": (10, 0.1, 0.03, 0.8),
        "prime": (1, 1.0, 4.0, 8.0),
        "mnist": (8, 0.1, 0.03, 1.0),
    }[sweep.task]
    dies = decay == 2e-3

    def outcome(s, i, n, h):
        if dies and h:
            return Outcome("collapsed", None, None, None)
        if decay == 0.01 and s == 10 and h:
            return Outcome("memorised", 10, None, None)
        never = h and decay == only_learns
        time = (50 if h else 200) if decay > usual else 100
        if not never and (s == groks or (h and (decay >= only_groks or s == 1))):
            return Outcome("grokked", 10, time, time - 10)
        return Outcome("steady", 40, time, time - 40) if s == groks else Outcome("steady", 6, 8, 2)

    world.curve("evaluation/test_accuracy", [0, 1000], lambda s, i, n, h, e: 0.02 if dies and h else 0.9)
    world.once("pruning/final_compressibility", lambda s, i, n, h: 20.0 if s <= 0.4 and h and not dies else 5.0)
    world.curve("ipr/mean_ipr", [0, 1000], lambda s, i, n, h, e: 0.4)
    return world.tree(outcome)


def modulus(P, sweep, holds):
    """Memorised after ten epochs and understood after 3900 steps, or after other epochs and a hundred epochs."""
    world = _World(sweep.init_scales, holds, 1000)

    def outcome(s, i, n, h):
        if s == 10 or (h and s == 1 and P < 59):
            train = 10 if h else round(590 / P)
            test = round(3900 / steps_per_epoch(P)) if h else 100
            return Outcome("grokked", train, test, test - train)
        return Outcome("steady", 6, 8 if h else round(8 * P / 59), 2)

    world.curve("evaluation/test_accuracy", [0, 1000], lambda s, i, n, h, e: 0.9)
    return world.tree(outcome)


def digits(sweep, holds):
    """What groks ends like what learns steadily, along a straight line to the origin, or like nothing else."""
    world = _World(sweep.init_scales, holds, 20_000)
    epochs = [0, 1000, 2000, 4000, 6000, 10_000, 20_000]
    for name in ("train_accuracy", "test_accuracy", "train_loss", "test_loss"):
        world.curve(f"evaluation/{name}", epochs, lambda s, i, n, h, e: 0.9)
    world.once("pruning/final_compressibility", lambda s, i, n, h: 8.0 if s == 0.1 and h else 5.0)
    others = [f"init_scale={scale:g} seed={seed}" for scale in sweep.init_scales for seed in range(len(holds))]

    def alike(s, i, n, h):
        """With itself, and with the networks of the same seed."""
        row = np.full((len(others), 1), np.nan)
        for j, scale in enumerate(sweep.init_scales):
            row[j * len(holds) + n] = 0.9 if h or 8.0 not in (s, scale) else 0.1
        return row

    world.once("similarity/cka", alike, other=others, layer=["hidden.1"])
    world.curve(
        "similarity/mean_cka", epochs, lambda s, i, n, h, e: 0.2 if e < 6000 or not h else 0.8, layer=["hidden.1"]
    )
    _geometry(world, epochs, origin=0.95, straight=0.99, ends=(1000, 10_000), groks=8.0)

    def outcome(s, i, n, h):
        return Outcome("grokked", 1000, 10_000, 9000) if s == 8 else Outcome("steady", 100, 150, 50)

    return world.tree(outcome)


def ablation(task, sweep, holds):
    """It groks as ever, or not so straight, not to the origin, without its feature, and only now and then."""
    world = _World(sweep.init_scales, holds, 20_000)
    epochs = [0, 1000, 2000, 5000, 10_000, 20_000]
    _geometry(world, epochs, origin=0.9, straight=0.99, ends=(1000, 10_000))
    for name in ("train_accuracy", "test_accuracy"):
        world.curve(f"evaluation/{name}", epochs, lambda s, i, n, h, e: 0.95)
    if task == "ising":
        labels = {"layer": ["conv1", "fc1"], "observable": ["energy", "magnetisation"]}
        world.curve("features/median_correlation", epochs, lambda s, i, n, h, e: 0.98 if h else 0.5, **labels)
    else:
        world.curve("ipr/mean_ipr", epochs, lambda s, i, n, h, e: 0.43 if h else 0.1)
    return world.tree(lambda s, i, n, h: Outcome("grokked", 1000, 10_000, 9000))
