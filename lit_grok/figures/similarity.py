"""How alike the hidden layers of the replicas are."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from lit_grok.figures.common import beside, blocks, curve, development, heading, legend, measured, styles, title

_LABELS = 10  # so many init_scales can be written along a panel


def cka_matrix(run: xr.DataTree, branch: str) -> Figure:
    """Linear CKA between every two trained replicas, in the order of init_scale and seed.

    Args:
        run: What ``open_run`` gives.
        branch: That of the similarity.

    Returns:
        The figure, with a panel for each layer, and a line between different init_scales.
    """
    cka = measured(run, branch).cka
    order, edges, centres, names = blocks(run, _LABELS)
    layers = [str(layer) for layer in cka.layer.values]
    figure = Figure(figsize=(3.0 * len(layers) + 1.2, 3.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for layer, axes in zip(layers, panels, strict=True):
        values = cka.sel(layer=layer).transpose("replica", "other").values[np.ix_(order, order)]
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
        for edge in edges:
            axes.axhline(edge, color="white", linewidth=1 if len(edges) < 2 * _LABELS else 0.3)
            axes.axvline(edge, color="white", linewidth=1 if len(edges) < 2 * _LABELS else 0.3)
        axes.set(title=layer, xticks=centres, xticklabels=names, xlabel="init_scale")
        axes.set(yticks=centres, yticklabels=names)
        axes.tick_params(length=0)
    panels[0].set_ylabel("init_scale")
    figure.colorbar(image, ax=list(panels), label="linear CKA", shrink=0.8)
    title(figure, heading(run, ""))
    return figure


def cka_development(run: xr.DataTree, branch: str) -> Figure:
    """Linear CKA of each replica with all others, a line for each layer, against the epoch, with the accuracy.

    Args:
        run: What ``open_run`` gives.
        branch: That of the similarity.
    """
    figure, (axes,), handles = development(run, branch, panels=1, height=2.2)
    results = measured(run, branch)
    layers = []
    for layer, style, handle in styles(run, [str(layer) for layer in results.layer.values]):
        curve(axes, run, results.mean_cka.sel(layer=layer), **style)
        layers.append(handle)
    beside(axes, layers)
    axes.set(ylabel="linear CKA with\nthe other replicas", ylim=(0, 1.03))
    legend(figure, handles)
    return figure
