"""Trees of results as a run leaves them, with numbers that a test knows."""

import numpy as np

from lit_grok.measures.grokking import Outcome
from lit_grok.results import EVALUATION, Recorder, index_replicas

EPOCHS = [0, 1, 2, 5, 10, 20, 50, 100]
LAYERS, OBSERVABLES, SETS = ["conv1", "fc1"], ["energy", "abs_magnetisation"], ["a", "b", "output"]


def tree(scales=(1.0, 10.0), seeds=2, epochs=EPOCHS, decays=(3e-5,), diverged=()):
    """A run with every branch; the test accuracy is 1 from epoch 5 on, and from epoch 50 on at init_scale 10."""
    keys = [(scale, seed, decay) for scale in scales for seed in range(seeds) for decay in decays]
    replicas = [
        {"init_scale": s, "seed": n, "weight_decay": d, "seed_init": n, "seed_data": n, "seed_order": n}
        for s, n, d in keys
    ]
    generator, recorder, count = np.random.default_rng(0), Recorder(replicas), len(replicas)
    recorder.attributes = {"": {"task": "toy", "title": "toy, P = 7"}, "pruning": {"scheme": "layerwise"}}
    recorder.attributes["fim_trajectory"] = {"stiff": "F ≥ 0.1"}

    def add(name, shape, epoch, dims=(), **labels):
        values = generator.uniform(0.2, 0.8, (count, *shape))
        values[list(diverged)] = np.nan
        recorder.add(name, values, epoch, dims, labels)

    step = {"variant": ["classif_logits"], "metric": ["fisher", "euclidean"], "subspace": ["all", "stiff", "sloppy"]}
    for epoch in epochs:
        for name in EVALUATION:
            add(f"evaluation/{name}", (), epoch)
        late = np.array([50 if scale == 10 else 5 for scale, _, _ in keys])
        recorder.add("evaluation/test_accuracy", (epoch >= late) * 0.9 + 0.1, epoch)
        add("ipr/mean_ipr", (), epoch)
        add("ipr/set_ipr", (3,), epoch, ["set"], set=SETS)
        add("ipr/dead_neurons", (3,), epoch, ["set"], set=SETS)
        for name in ("correlation", "median_correlation", "neuron_share", "activation_share"):
            add(f"features/{name}", (2, 2), epoch, ["layer", "observable"], layer=LAYERS, observable=OBSERVABLES)
        for name in ("compressibility", "area", "kept_share"):
            add(f"pruning/{name}", (), epoch)
        for name in ("gini", "zero_share", "negligible_share", "dead_neurons"):
            add(f"weights/{name}", (), epoch)
            add(f"weights/layer_{name}", (2,), epoch, ["layer"], layer=LAYERS)
        add("weights/layer_norm", (2,), epoch, ["layer"], layer=LAYERS)
        add("similarity/mean_cka", (2,), epoch, ["layer"], layer=LAYERS)
        for name in ("step_magnitude", "step_cosine", "origin_cosine"):
            add(f"fim_trajectory/{name}", (1, 2, 3), epoch, list(step), **step)
    for name in ("neuron_ipr", "neuron_frequency", "neuron_activation"):
        add(f"ipr/{name}", (3, 6), None, ["set", "neuron"], set=SETS)
    frequencies = np.tile([1.0, 1.0, 3.0, -1.0, 0.0, 3.0], (count, 3, 1))
    recorder.add("ipr/neuron_frequency", frequencies, None, ["set", "neuron"])
    labels = {"layer": LAYERS, "observable": OBSERVABLES}
    add("features/neuron_correlation", (2, 2, 5), None, ["layer", "observable", "neuron"], **labels)
    add("features/sample_preactivation", (30, 5), None, ["sample", "sample_neuron"])
    add("features/sample_observable", (2, 30), None, ["observable", "sample"], observable=OBSERVABLES)
    for name in ("final_compressibility", "final_area", "final_kept_share"):
        add(f"pruning/{name}", (), None)
    for name in ("accuracy", "loss"):
        add(f"pruning/{name}", (11,), None, ["fraction"], fraction=np.linspace(0, 1, 11).tolist())
    others = [f"init_scale={s:g} seed={n}" for s, n, _ in keys]
    add("similarity/cka", (count, 2), None, ["other", "layer"], other=others, layer=LAYERS)
    for name in ("gini", "stiff_parameters"):
        add(f"fim_trajectory/{name}", (1,), None, ["variant"], variant=["classif_logits"])
    for name in ("bump_start", "bump_end", "degenerate_steps"):
        two = {"variant": step["variant"], "metric": step["metric"]}
        add(f"fim_trajectory/{name}", (1, 2), None, list(two), **two)
    recorder.add("fim_trajectory/stiff_parameters", np.full((count, 1), 3.0), None, ["variant"])
    add("fim_trajectory/spectrum", (1, 20), None, ["variant", "rank"], rank=list(range(1, 21)))
    for name in ("coefficient", "error"):
        add(f"llc/{name}", (), None)
    add("llc/trace", (2, 6), None, ["chain", "chain_step"], chain_step=[-2, -1, 0, 1, 2, 3])
    outcomes = [Outcome("grokked", 2, 50, 48) if s == 10 else Outcome("steady", 2, 5, 3) for s, _, _ in keys]
    return index_replicas(recorder.tree(outcomes))
