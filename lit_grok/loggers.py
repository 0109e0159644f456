"""One logger per replica, so that a dashboard looks the same whether replicas were trained together or apart."""

import csv
import io
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger

from lit_grok.files import ReadError, reading, write

log = logging.getLogger("lit_grok")

#: Seconds to wait for the server at the start of a run, and for the upload of what is left at its end.
_PATIENCE, _PATIENCE_AT_THE_END = 10, 60


def no_loggers(labels: Sequence[str], **_: Any) -> list[Logger]:
    """No logger at all."""
    return []


def csv_loggers(labels: Sequence[str], run_dir: str | Path, **_: Any) -> list[Logger]:
    """One table per replica, ``csv/LABEL.csv``."""
    return [CSVLogger(Path(run_dir) / "csv" / f"{label.replace(' ', '_')}.csv") for label in labels]


def wandb_loggers(
    labels: Sequence[str],
    run_dir: str | Path,
    config: Mapping[str, Any],
    replicas: Sequence[Mapping[str, Any]],
    mode: Literal["offline", "online"] = "offline",
    project: str = "lit_grok",
    group: str | None = None,
    entity: str | None = None,
    tags: Sequence[str] = (),
) -> list[Logger]:
    """One W&B run per replica, in one group.

    A resumed run goes on under the same W&B ids. Started by the agent of a W&B sweep, the run is the one that the agent
    made: W&B then takes id, project and entity from the agent. Where the server cannot be reached the training goes on
    offline, and where W&B cannot start at all without it.

    Args:
        labels: A name for each replica.
        run_dir: Directory of the run; W&B writes below it.
        config: The resolved configuration, attached to every run with the replica's own values in it.
        replicas: What each replica is.
        mode: ``offline`` or ``online``.
        project: W&B project.
        group: W&B group of all replicas; the name of the run's directory where none is given.
        entity: W&B account or team.
        tags: W&B tags.

    Returns:
        The loggers, or none where W&B cannot start.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f"logger.mode={mode}: unknown; allowed: offline, online")
    run_dir = Path(run_dir)
    ids_file = run_dir / "wandb_ids.json"
    ids = _read_ids(ids_file, len(labels))
    runs: list[Any] = []
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else its report on a server that hangs takes 16 s more
    if mode == "online":
        log.info("connecting to W&B, for %d s at most", _PATIENCE)
    try:
        import wandb  # takes half a second, and other loggers do without

        for label, replica, run_id in zip(labels, replicas, ids, strict=True):
            run = wandb.init(
                reinit="create_new",
                id=run_id,
                resume="allow" if mode == "online" else None,
                group=group or run_dir.name,
                name=f"{config['task']} {label}",
                config={**config, **replica},
                dir=str(run_dir.resolve()),  # W&B's own process may have started in another folder
                mode=mode,
                project=project,
                entity=entity,
                tags=list(tags),
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=_PATIENCE, finish_timeout=_PATIENCE_AT_THE_END
                ),
            )
            run.define_metric("epoch", hidden=True)  # an axis, and no panel
            run.define_metric("*", step_metric="epoch")
            runs.append(run)
    except Exception as error:  # whatever ails W&B must not cost a training run
        for run in runs:
            run.finish(exit_code=1)
        reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        if mode == "online":
            log.warning("W&B cannot be reached, the run goes on offline (wandb sync uploads it later): %s", reason)
            return wandb_loggers(labels, run_dir, config, replicas, "offline", project, group, entity, tags)
        log.warning("W&B could not start, the run goes on without it: %s", reason)
        return []
    write(ids_file, json.dumps([run.id for run in runs]))
    return [WandbLogger(experiment=run) for run in runs]


def _read_ids(path: Path, count: int) -> list[str]:
    """The W&B ids of a run that goes on, or new ones."""
    try:
        with reading(path, f"{count} W&B ids"):
            ids = json.loads(path.read_text())
            if len(ids) != count or not all(re.fullmatch("[0-9a-z]{8}", run_id) for run_id in ids):
                raise ValueError("other values")
            return list(ids)
    except FileNotFoundError:
        pass
    except ReadError as error:
        log.warning("%s: the run goes on under new ones", error)
    return [secrets.token_hex(4) for _ in range(count)]


def finish(loggers: Sequence[Logger], records: Sequence[Mapping[str, Any]], exit_code: int) -> None:
    """Write the end-of-run facts where a logger keeps such, and close the W&B runs with this exit code."""
    online = [logger for logger in loggers if isinstance(logger, WandbLogger) and not logger.experiment.offline]
    if online:
        log.info("uploading to W&B, for %d s at most for each of %d runs", _PATIENCE_AT_THE_END, len(online))
    for r, logger in enumerate(loggers):
        if not isinstance(logger, WandbLogger):
            continue
        try:
            if records:
                logger.experiment.summary.update(dict(records[r]))
            logger.experiment.finish(exit_code=exit_code)
        except Exception as error:  # its own process has died, say: everything else is saved
            reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
            log.warning("W&B could not close run %s: %s", logger.experiment.id, reason)


class CSVLogger(Logger):
    """Curves of one replica as a table with a row per epoch; goes on with the rows of a resumed run.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with reading(path, "a table of epochs"), open(path, newline="") as file:
                table = csv.DictReader(file, strict=True)
                if "epoch" not in (table.fieldnames or ()):
                    raise ValueError("it has no column epoch")
                for row in table:
                    if None in row or None in row.values():  # more or fewer cells than names
                        raise ValueError(f"line {table.line_num} has not as many cells as there are columns")
                    self._rows[int(row["epoch"])] = {name: value for name, value in row.items() if value != ""}

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.path.stem

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in the run's directory already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of this epoch."""
        self._rows.setdefault(int(metrics["epoch"]), {}).update(metrics)

    def save(self) -> None:
        """Write the table."""
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["epoch", *(name for name in names if name != "epoch")])
        writer.writeheader()
        writer.writerows({**row, "epoch": epoch} for epoch, row in sorted(self._rows.items()))
        write(self.path, text.getvalue())

    def finalize(self, status: str) -> None:
        """Write the table a last time."""
        self.save()
