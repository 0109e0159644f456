"""Trees of results as a run leaves them, with numbers that a test knows."""

import numpy as np
import xarray as xr

from lit_grok.measures.grokking import Outcome
from lit_grok.recorder import EVALUATION, Recorder
from lit_grok.results import index_replicas

EPOCHS = [0, 1, 2, 5, 10, 20, 50, 100]
LAYERS, OBSERVABLES, SETS = ["conv1", "fc1"], ["energy", "abs_magnetisation"], ["a", "b", "output"]
PHASES = ["energy", "magnetisation", "abs_magnetisation"]


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


def residues(run, title="toy, P = 7"):
    """A run of `tree` as a transformer over residues leaves it, with nine layers and a hole in its table."""
    generator, count = np.random.default_rng(1), run.sizes["replica"]
    run.attrs["title"] = title

    def one(low=0.2, high=0.8, **labels):
        values = generator.uniform(low, high, (count, *map(len, labels.values())))
        return xr.DataArray(values, dims=("replica", *labels), coords=labels)

    def curve(**others):
        return one(epoch=EPOCHS, **others)

    def add(branch, **arrays):
        run[branch] = xr.DataTree(xr.Dataset(arrays))

    blocks = [f"blocks.0.{name}" for name in ("query", "key", "value", "attention.output", "mlp_in", "mlp_out")]
    layers = ["token_embedding", "position_embedding", *blocks, "unembedding"]
    add(
        "weights",
        **{name: curve() for name in ("gini", "negligible_share", "dead_neurons")},
        **{f"layer_{name}": curve(layer=layers) for name in ("norm", "gini", "negligible_share")},
    )
    pairs = ["transpose trained", "transpose not trained", "outside", "hole"]
    distances = {"distance": range(10)}
    add(
        "coverage",
        accuracy=curve(group=pairs),
        distance_accuracy=one(**distances),
        distance_pairs=one(1, 3000, **distances).round(),
    )
    measures = ("restricted_loss", "excluded_loss", "key_frequencies", "local_complexity", "sum_of_squares")
    spread = {name: one(1, 10 ** (i + 1), epoch=EPOCHS) for i, name in enumerate(measures)}
    add("progress", fourier_gini=curve(set=["embedding", "output"]), **spread)
    operands = {"operand": ["x", "y"]}
    developed = ("med", "relative_med", "smallest_relative_med", "mean_norm")
    add(
        "uniformity",
        **{name: curve(**operands) for name in developed},
        difference=one(**operands, step=[1, 2, 3]),
        plane=one(**operands, residue=range(7), axis=range(2)),
        plane_frequency=(3 * one(**operands)).round(),
    )
    sets = {"set": ["embedding"]}
    rows = ("features_per_neuron", "interference", "null_interference", "effective_dimension", "null_dimension")
    add(
        "superposition",
        **{name: curve(**sets) for name in rows},
        overlap=one(**sets, frequency=[1, 2, 3], other=[1, 2, 3]),
        frequency_neurons=one(**sets, frequency=[1, 2, 3]),
    )
    return run


def plausible(task="mod_add", scales=(0.1, 1.0, 10.0), seeds=3, decays=(3e-5,), diverged=()):
    """A run whose curves look like those of training: what a figure of it looks like can be judged.

    A larger init_scale generalises later, at t_test = 20 s for modular addition and 2000 s for Ising; from there on the
    feature grows. Weights, lengths of steps and compressibilities follow, each with a noise of its own.

    Args:
        task: ``mod_add`` or ``ising``.
        scales: Of the initial weights.
        seeds: How many there are of each.
        decays: Weight decays.
        diverged: Positions of the replicas that are lost half-way.
    """
    adds = task == "mod_add"
    keys = [(scale, seed, decay) for scale in scales for seed in range(seeds) for decay in decays]
    replicas = [
        {"init_scale": s, "seed": n, "weight_decay": d, "seed_init": n, "seed_data": n, "seed_order": n}
        for s, n, d in keys
    ]
    random, recorder, count = np.random.default_rng(1), Recorder(replicas), len(keys)
    title = "mod_add, P = 113" if adds else "ising, side = 16"
    recorder.attributes = {"": {"task": task, "title": title}, "pruning": {"scheme": "layerwise"}}
    recorder.attributes["fim_trajectory"] = {"stiff": "F ≥ 0.1"}
    last, unit = (1000, 1) if adds else (100_000, 100)
    scale = np.array([s for s, _, _ in keys])
    jitter = np.exp(random.normal(0, 0.1, count))
    t_train = unit * (5 + 7 * (scale > 1)) * jitter
    t_test = np.maximum(t_train * 1.2, 20 * scale**0.6 * unit * jitter * (1 if adds else 2))
    chance, top = (1 / 113, 1.0) if adds else (0.5, 0.95)
    layers = ["hidden.0", "output"] if adds else ["conv1", "conv2", "fc1"]

    def rise(epoch, time, width=0.25):
        return 1 / (1 + np.exp(-(np.log(epoch + 1e-9) - np.log(time)) / width))

    def add(name, values, epoch, dims=(), noise=0.01, **labels):
        values = np.asarray(values, float)
        values = values * np.exp(noise * random.normal(size=values.shape))
        if epoch is None or epoch > last / 2:
            values[list(diverged)] = np.nan
        recorder.add(name, values, epoch, dims, labels)

    def each(values, *factors):
        """One value per replica, times factors for the labels of further dimensions."""
        for factor in factors:
            values = np.multiply.outer(values, np.asarray(factor, float))
        return values

    epochs = np.unique(np.r_[np.arange(0, 12), np.geomspace(1, last / unit, 150).astype(int)]) * unit
    for epoch in epochs.tolist():
        train, test = rise(epoch, 0.7 * t_train, 0.15), rise(epoch, 0.85 * t_test, 0.12)
        add("evaluation/train_accuracy", np.minimum(chance + (1 - chance) * train, 1), epoch, noise=0)
        add("evaluation/test_accuracy", chance + (top - chance) * test, epoch, noise=0.002)
        add("evaluation/train_loss", 5 * (1 - train) + 1e-4, epoch, noise=0.1)
        add("evaluation/test_loss", 5 * scale * (1 - test) + 0.02, epoch, noise=0.1)
        norm = 2.1 + (20 * scale - 2.1) / (1 + epoch / t_test)
        add("evaluation/weight_norm", norm, epoch, noise=0)
        if adds:
            ratio = 0.02 + 0.41 * rise(epoch, t_test)
            add("ipr/mean_ipr", ratio, epoch)
            add("ipr/set_ipr", each(ratio, [1.1, 1.0, 0.9]), epoch, ["set"], set=SETS)
            dead = np.floor(each(20 * rise(epoch, 10 * t_test), [1, 1, 1]))
            add("ipr/dead_neurons", dead, epoch, ["set"], noise=0, set=SETS)
        else:
            shares = {"correlation": 0.97, "median_correlation": 0.98, "neuron_share": 0.9, "activation_share": 0.95}
            for name, height in shares.items():
                values = each(0.4 + (height - 0.4) * rise(epoch, 1.2 * t_test), [0.3, 0.6, 1], [1, 0.1, 0.55])
                labels = {"layer": layers, "observable": PHASES}
                add(f"features/{name}", values, epoch, list(labels), **labels)
        add("pruning/compressibility", 1 + 3 * test + 4 * rise(epoch, t_test) * np.exp(-epoch / t_test), epoch)
        add("pruning/area", 0.3 + 0.4 * test, epoch)
        add("pruning/kept_share", 0.9 - 0.5 * test, epoch)
        for name, values in {"gini": 0.3 + 0.4 * test, "zero_share": 0 * test, "negligible_share": 0.3 * test}.items():
            add(f"weights/{name}", values, epoch)
            add(
                f"weights/layer_{name}",
                each(values, np.linspace(0.8, 1.2, len(layers))),
                epoch,
                ["layer"],
                layer=layers,
            )
        add("weights/dead_neurons", np.floor(20 * rise(epoch, 10 * t_test)), epoch, noise=0)
        add("weights/layer_norm", each(norm, np.linspace(0.3, 0.8, len(layers))), epoch, ["layer"], layer=layers)
        similar = each(0.3 + 0.5 * rise(epoch, t_test), np.linspace(0.6, 1.2, len(layers)))
        add("similarity/mean_cka", similar, epoch, ["layer"], layer=layers)

    step = {"variant": ["classif_logits", "regression"], "metric": ["fisher", "euclidean"]}
    step |= {"subspace": ["all", "stiff", "sloppy"]}
    steps = np.arange(0, min(last, 500 * unit), unit)
    for epoch in steps.tolist():
        late = min(1.0, (epoch / steps[-1]) ** 2)
        shape = [1, 0.3], [1, 2], [1, 0.9, 0.4]
        bump = np.exp(-((np.log((epoch + unit) / np.sqrt(t_train * t_test))) ** 2)) + unit / (epoch + unit)
        add("fim_trajectory/step_magnitude", 0.05 * each(bump + 1e-3, *shape), epoch, list(step), 0.05 + late, **step)
        noisy = 0.6 * late * random.normal(size=(count, 2, 2, 3))
        cosine = np.clip(each(0.95 - 0.5 * late + 0 * scale, [1, 1], [1, 1], [1, 1, 0.8]) + noisy, -1, 1)
        add(
            "fim_trajectory/step_cosine",
            np.full_like(cosine, np.nan) if epoch == 0 else cosine,
            epoch,
            list(step),
            0,
            **step,
        )
        origin = each(0.8 * bump * np.where(scale > 1, 1, -0.5), [1, 0.8], [1, 1], [1, 1, 0.8])
        add("fim_trajectory/origin_cosine", np.clip(origin + noisy / 5, -1, 1), epoch, list(step), 0, **step)
    spectrum = np.sort(np.geomspace(1e-14, 10, 800) * np.exp(random.normal(0, 0.3, 800)))
    spectra = each(scale**0, [1, 0.1], spectrum)
    add("fim_trajectory/spectrum", spectra, None, ["variant", "rank"], variant=step["variant"], rank=range(1, 801))
    add("fim_trajectory/stiff_parameters", (spectra >= 0.1).sum(-1), None, ["variant"], 0, variant=step["variant"])
    add("fim_trajectory/gini", each(scale**0 * 0.9, [1, 1]), None, ["variant"], variant=step["variant"])
    for name, time in (("bump_start", t_train), ("bump_end", t_test)):
        labels = {"variant": step["variant"], "metric": step["metric"]}
        add(f"fim_trajectory/{name}", each(time, [1, 1.1], [1, 0.9]), None, list(labels), 0, **labels)

    fractions = np.linspace(0, 1, 101)
    edge = np.where(scale > 1, 0.65, 0.75) * jitter**0.3
    kept = 1 / (1 + np.exp((fractions - edge[:, None]) / 0.05))
    add("pruning/accuracy", chance + (top - chance) * kept, None, ["fraction"], 0, fraction=fractions.tolist())
    add("pruning/loss", 0.02 + 5 * (1 - kept), None, ["fraction"], 0, fraction=fractions.tolist())
    for name, values in (("compressibility", 1 / (1 - edge)), ("area", edge), ("kept_share", 1.1 - edge)):
        add(f"pruning/final_{name}", values, None)
    if adds:
        neurons, live = 200, random.uniform(size=(count, 3, 200)) < 0.9
        for name, values in {
            "neuron_ipr": random.beta(8, 10, (count, 3, neurons)),
            "neuron_activation": random.uniform(0.1, 2, (count, 3, neurons)),
        }.items():
            add(f"ipr/{name}", np.where(live, values, np.nan), None, ["set", "neuron"], set=SETS)
        found = random.choice([0, 4, 17, 21, 33, 48, 52], (count, 3, neurons), p=[0.3, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1])
        add("ipr/neuron_frequency", np.where(live, found, -1), None, ["set", "neuron"], 0, set=SETS)
    else:
        neurons, labels = 100, {"layer": layers, "observable": PHASES}
        temperature = random.uniform(-1, 1, (count, 200))
        energy, order = (
            -1.4 + 0.8 * temperature,
            np.where(temperature < 0, 0.9, 0.1) * random.choice([-1, 1], (count, 200)),
        )
        phases = np.stack([energy, order, np.abs(order)], 1)
        sign = random.choice([-1.0, 1.0], (count, neurons))
        noise = random.normal(0, 0.2, (count, 200, neurons))
        preactivation = sign[:, None] * (energy[..., None] + 1.4) * 3 + noise
        r = np.stack([0.97 * sign, 0.05 * sign, -0.9 * sign], 1)
        add("features/neuron_correlation", np.stack([0.2 * r, 0.5 * r, r], 1), None, [*labels, "neuron"], 0, **labels)
        add("features/sample_preactivation", preactivation, None, ["sample", "sample_neuron"], 0)
        add("features/sample_observable", phases, None, ["observable", "sample"], 0, observable=PHASES)
    if count > 1:
        alike = 0.4 + 0.5 * (scale[:, None] == scale) + 0.1 * np.eye(count)
        others = [f"init_scale={s:g} seed={n}" for s, n, _ in keys]
        values = np.clip(each(alike, np.linspace(0.7, 1, len(layers))) + random.normal(0, 0.02, 1), 0, 1)
        add("similarity/cka", values, None, ["other", "layer"], 0, other=others, layer=layers)
    excess = 30 * (1 - np.exp(-np.arange(-50, 200) / 40 - 1.3)) + random.normal(0, 6, (count, 4, 250))
    add("llc/trace", excess, None, ["chain", "chain_step"], 0, chain_step=list(range(-50, 200)))
    outcomes = [
        Outcome("diverged", None, None, None)
        if r in diverged
        else Outcome("grokked" if b > 2 * a else "steady", round(a), round(b), round(b - a))
        for r, (a, b) in enumerate(zip(t_train, t_test, strict=True))
    ]
    return index_replicas(recorder.tree(outcomes))
