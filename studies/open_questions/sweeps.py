"""The runs behind what *Grokking vs. Learning* has left open."""

from studies.runs import Sweep

#: In the compressive regime, at its edge, in steady learning, and where it groks.
SCALES = (0.1, 0.4, 1.0, 10.0)
#: That of the paper, between, and that of its most compressed networks.
DECAYS = (3e-5, 1e-4, 3e-4)

#: How the features are laid out, what can be pruned, and the local learning coefficient, all along the training.
ENCODINGS = {
    decay: Sweep(
        f"encodings_{decay:g}",
        "mod_add",
        SCALES,
        (
            *(f"weight_decay={decay:g}", "~callbacks.fim_trajectory", "~callbacks.similarity"),
            *("callbacks.pruning.per_decade=10", "+callbacks/extra@callbacks.superposition=superposition"),
            *("+callbacks/extra@callbacks.llc=llc", "callbacks.llc.every=100", "callbacks.llc.chains=2"),
            *("callbacks.llc.steps=1000", "callbacks.superposition.per_decade=10"),
        ),
    )
    for decay in DECAYS
}
