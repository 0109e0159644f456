"""The runs behind what *Grokking vs. Learning* has left open."""

from studies.runs import Sweep

#: In the compressive regime, at its edge, in steady learning, and where it groks.
SCALES = (0.1, 0.4, 1.0, 10.0)
#: That of the paper, between, and that of its most compressed networks.
DECAYS = (3e-5, 1e-4, 3e-4)

#: Where digits are grokked.
DIGITS_GROK = 8.0

#: How the features are laid out, what can be pruned, and the local learning coefficient; at the paper's weight decay
#: that is estimated all along the training, which costs five times the training.
ENCODINGS = {
    decay: Sweep(
        f"encodings_{decay:g}",
        "mod_add",
        SCALES,
        (
            *(f"weight_decay={decay:g}", "~callbacks.fim_trajectory", "~callbacks.similarity"),
            *("callbacks.pruning.per_decade=10", "+callbacks/extra@callbacks.superposition=superposition"),
            *("+callbacks/extra@callbacks.llc=llc", "callbacks.llc.chains=2", "callbacks.llc.steps=1000"),
            *("callbacks.superposition.per_decade=10", *(("callbacks.llc.every=100",) if decay == DECAYS[0] else ())),
        ),
    )
    for decay in DECAYS
}

#: Phase diagrams, of modular addition at P = 59, where a replica costs a third of one at 113, and of the Ising task.
#: A cell is the end of a training, so nothing is measured on the way but the accuracies.
_MAPPED = tuple(f"callbacks.{name}.per_decade=null" for name in ("pruning", "weights"))
_MOD_ADD_MAPPED = ("~callbacks.fim_trajectory", "~callbacks.similarity", "callbacks.ipr.per_decade=null", *_MAPPED)
_MAP_SCALES = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 10.0)
PHASES = {
    decay: Sweep(f"phases_{decay:g}", "mod_add", _MAP_SCALES, ("P=59", f"weight_decay={decay:g}", *_MOD_ADD_MAPPED))
    for decay in (3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 2e-3)
}
ISING_PHASES = {
    decay: Sweep(
        f"ising_phases_{decay:g}",
        "ising",
        (0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
        (
            *("epochs=40000", f"weight_decay={decay:g}", "~callbacks.fim_trajectory", "~callbacks.similarity"),
            *("callbacks.features.per_decade=null", *_MAPPED),
        ),
    )
    for decay in (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)
}

#: Of addition in a transformer, modulo a P at which 6000 epochs take a minute.
PRIME_PHASES = {
    decay: Sweep(
        f"prime_phases_{decay:g}",
        "prime",
        (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        (
            *("P=31", "train_fraction=0.6", "epochs=6000", f"weight_decay={decay:g}"),
            *(f"~callbacks.{name}" for name in ("uniformity", "coverage", "progress_measures", "similarity")),
            *("callbacks.ipr.per_decade=null", *_MAPPED),
        ),
    )
    for decay in (0.5, 1.0, 2.0, 4.0, 8.0)
}
#: Of digits, for a fifth of Omnigrok's epochs, which do not suffice for its own weight decay and init_scale.
DIGIT_PHASES = {
    decay: Sweep(
        f"digit_phases_{decay:g}",
        "mnist",
        (0.3, 1.0, 3.0, 5.0, DIGITS_GROK),
        (
            *("epochs=4000", f"weight_decay={decay:g}", "~callbacks.features", "~callbacks.fim_trajectory"),
            *("~callbacks.similarity", *_MAPPED),
        ),
    )
    for decay in (0.01, 0.03, 0.1, 0.3, 1.0)
}

#: The same along the modulus, at the paper's weight decay.
MODULI = {
    P: Sweep(f"modulus_{P}", "mod_add", _MAP_SCALES, (f"P={P}", "weight_decay=3e-5", *_MOD_ADD_MAPPED))
    for P in (31, 43, 83, 113)
}
MODULI[59] = PHASES[3e-5]

#: Digits; what is in the way of a long training is measured at its end.
DIGITS = Sweep(
    "digits",
    "mnist",
    (0.1, 0.3, 1.0, 3.0, DIGITS_GROK),
    ("callbacks.features.per_decade=null", "callbacks.fim_trajectory.variants=[classif_logits]", *_MAPPED),
)
#: The same number of steps at other batch sizes.
DIGIT_BATCHES = {
    200: DIGITS,
    **{
        size: Sweep(
            f"digits_batch_{size}",
            "mnist",
            (0.1, 0.3, 1.0),
            (
                *(f"batch_size={size}", f"epochs={100 * size}", "~callbacks.features", "~callbacks.similarity"),
                *("~callbacks.fim_trajectory", *_MAPPED),
            ),
        )
        for size in (50, 500)
    },
}

#: What is changed, and how; other weight decays are such that weights shrink about as fast as they do with Adam.
ABLATED = {
    "ising": {
        "no_decay": ("without weight decay", ("weight_decay=0",)),
        "adamw": ("with decoupled weight decay", ("optimizer=adamw", "weight_decay=1")),
        "sgd": ("with plain SGD", ("optimizer=sgd", "learning_rate=0.01", "weight_decay=5e-3")),
        "noise": ("with a twentieth of the labels wrong", ("label_noise=0.05",)),
    },
    "mod_add": {
        "no_decay": ("without weight decay", ("weight_decay=0",)),
        "adamw": ("with decoupled weight decay", ("optimizer=adamw", "weight_decay=0.01")),
        "noise": ("with a twentieth of the labels wrong", ("label_noise=0.05",)),
    },
}
_PATHS = ("~callbacks.similarity", "callbacks.fim_trajectory.variants=[classif_logits]", *_MAPPED)
ABLATIONS = {
    (task, name): Sweep(f"{task}_{name}", task, (1.0, 10.0), (*overrides, *_PATHS))
    for task, kinds in ABLATED.items()
    for name, (_, overrides) in kinds.items()
}
