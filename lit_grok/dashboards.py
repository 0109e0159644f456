"""Many runs side by side in Weights & Biases: a workspace to explore them and a report to send around.

One W&B run is one replica. Runs are grouped by task and init_scale, so that a line is the mean over seeds and a band
their range. Tasks share the sections: a panel whose metrics no run has stays empty.

The library is imported when a panel is asked for: who only opens results does without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lit_grok.schema import UsageError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, Report, ScatterPlot
    from wandb_workspaces.reports.v2.interface import PanelTypes
    from wandb_workspaces.workspaces import Workspace

TITLE = "Grokking and learning"
#: Most lines in a panel; W&B shows 10 unless told otherwise.
_MOST_LINES = 100
#: Runs with equal values of these are drawn as one line.
_GROUPED_BY = ("task", "init_scale")
#: Small init_scales are blue, large ones red.
_GRADIENT = ("#3b6fb6", "#d9d9d9", "#c23b3b")

_SECTIONS = {
    "Accuracy and loss": "Fitting the training set, and generalising.",
    "Outcome": "A point is a run. C = 1/(1 − A), with A the area of the pruning curve; t_grok = t_test − t_train.",
    "Pruning": "Compressibility while training, on fewer fractions than at the end.",
    "Fourier modes": "Modular addition: inverse participation ratio of the neurons' Fourier modes.",
    "Features": "Ising: correlation of the neurons with energy and magnetisation.",
    "Trajectory": "Steps under the Fisher information; pure weight decay has a cosine of 1 with the way to the origin.",
    "Weights": "Gini coefficient, dead neurons, similarity (CKA) to the other replicas of the same training.",
}


def curve(title: str, *metrics: str, log_y: bool = False) -> LinePlot:
    """Metrics against the epoch, on a logarithmic axis: mean and range over the runs of a group.

    Example:
        >>> curve("Weight norm", "evaluation/weight_norm").x
        'epoch'
    """
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x="epoch",
        y=list(metrics),
        log_x=True,
        log_y=log_y,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=_MOST_LINES,
    )


def scatter(title: str, x: Any, y: str) -> ScatterPlot:
    """What runs ended with, a point each, coloured by init_scale.

    Args:
        title: Title of the panel.
        x: Name in the summary of a run, or a `wandb_workspaces.reports.v2.Config`; on a logarithmic axis.
        y: Name in the summary of a run.
    """
    import wandb_workspaces.reports.v2 as wr

    gradient = [wr.GradientPoint(color, 50 * i) for i, color in enumerate(_GRADIENT)]
    scale = wr.Config("init_scale")
    return wr.ScatterPlot(title=title, x=x, y=y, z=scale, log_x=True, log_z=True, gradient=gradient)


def sections() -> dict[str, list[PanelTypes]]:
    """The panels of every section, by its name.

    Returns:
        Curves are named BRANCH/QUANTITY as in the results, what a run ended with as in its ``summary.json``.
    """
    import wandb_workspaces.reports.v2 as wr

    scale = wr.Config("init_scale")
    trajectory: list[PanelTypes] = [
        curve(f"{title}, {variant}", f"fim_trajectory/{quantity}/{variant}/fisher/all", log_y=log_y)
        for quantity, title, log_y in (
            ("step_magnitude", "Length of a step", True),
            ("step_cosine", "Cosine of consecutive steps", False),
            ("origin_cosine", "Cosine with the way to the origin", False),
        )
        for variant in ("classif_logits", "regression")
    ]
    panels: dict[str, list[PanelTypes]] = {
        "Accuracy and loss": [
            curve("Test accuracy", "evaluation/test_accuracy"),
            curve("Train accuracy", "evaluation/train_accuracy"),
            curve("Test loss", "evaluation/test_loss", log_y=True),
            curve("Train loss", "evaluation/train_loss", log_y=True),
            curve("Weight norm", "evaluation/weight_norm", log_y=True),
        ],
        "Outcome": [
            scatter("C against train loss", "train_loss", "pruning/final_compressibility"),
            scatter("C against init_scale", scale, "pruning/final_compressibility"),
            scatter("Delay t_grok in epochs", scale, "t_grok"),
        ],
        "Pruning": [
            curve("Compressibility", "pruning/compressibility"),
            curve("Share of weights that keeps 95 % of the accuracy", "pruning/kept_share"),
        ],
        "Fourier modes": [
            curve("Mean IPR", "ipr/mean_ipr"),
            *(curve(f"IPR of {name}", f"ipr/set_ipr/{name}") for name in ("a", "b", "output")),
        ],
        "Features": [
            curve(f"{layer} and {observable.replace('_', ' ')}", f"features/correlation/{layer}/{observable}")
            for observable in ("energy", "abs_magnetisation")
            for layer in ("fc1", "conv2", "conv1")
        ],
        "Trajectory": trajectory,
        "Weights": [
            curve("Gini coefficient", "weights/gini"),
            curve("Dead neurons", "weights/dead_neurons"),
            curve("CKA between replicas", "similarity/mean_cka/fc1", "similarity/mean_cka/hidden.0"),
        ],
    }
    return {name: panels[name] for name in _SECTIONS}


def workspace(entity: str, project: str) -> Workspace:
    """All sections above the runs of a project."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections().items()],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=_MOST_LINES),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(name) for name in _GROUPED_BY],
            pinned_columns=["config:init_scale.value", "summary:status", "summary:t_grok", "summary:test_accuracy"],
        ),
        auto_generate_panels=False,
    )


def report(entity: str, project: str) -> Report:
    """The same panels as a page, with a sentence on each section."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P("A line is the mean over seeds and a band their range, for each task and init_scale.")]
    for name, panels in sections().items():
        grouped = [] if name == "Outcome" else [f"config.{key}" for key in _GROUPED_BY]
        runs = wr.Runset(name="runs", groupby=grouped)  # of the report's own project
        blocks += [wr.H2(name), wr.P(_SECTIONS[name]), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project, entity, TITLE, "Accuracy, encoding and trajectory by init_scale", blocks=blocks, width="fluid"
    )


#: What there is, by what it is called.
BOARDS: dict[str, Callable[[str, str], Any]] = {"workspace": workspace, "report": report}


def specification(board: Workspace | Report) -> dict[str, Any]:
    """What is sent to the server to save this, in W&B's own names."""
    model = board._to_model()  # what the library's own save() sends; it has no public name
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def parse_project(path: str) -> tuple[str, str]:
    """Entity and project of ENTITY/PROJECT.

    Raises:
        UsageError: Where it is something else.

    Example:
        >>> parse_project("my_team/lit_grok")
        ('my_team', 'lit_grok')
    """
    if not (names := re.fullmatch(r"([\w.-]+)/([^/\\#?%:]{1,128})", path)):
        raise UsageError(
            f"{path}: not ENTITY/PROJECT, the account or team and the project as in my_team/lit_grok, "
            "where a project's name has 128 characters at most and none of / \\ # ? % :"
        )
    return names[1], names[2]
