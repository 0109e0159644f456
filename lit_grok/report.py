"""One page to read a run by: its replicas, its figures, its configuration and the command that repeats it.

``python -m lit_grok.report 'runs/mod_add/*'`` writes ``report.html`` into the directory of a single run, or one page
for many runs into the directory they share. Everything is inside the page, figures too: it can be sent and archived.
"""

import argparse
import base64
import glob
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lit_grok.cli import cell
from lit_grok.files import ReadError, WriteError, reading, write
from lit_grok.results import CONFIG, SUMMARY, leaves, open_run, read_config
from lit_grok.schema import spelled

log = logging.getLogger("lit_grok")

REPORT = "report.html"

_CONFIGS = Path(__file__).parents[1] / "configs"
_COLUMNS = {
    **{name: name for name in ("init_scale", "seed", "weight_decay", "status", "t_train", "t_test", "epochs")},
    "train_accuracy": "train accuracy",
    "test_accuracy": "test accuracy",
    "weight_norm": "weight norm",
}
#: Where a run was written and how it was watched: no difference between what two runs did.
_ELSEWHERE = ("run_dir", "resume", "dry_run", "threads", "replicas_at_once", "logger.", "trainer.default_root_dir")
_PNG = b"\x89PNG\r\n\x1a\n"
_STYLE = """
body { font: 15px/1.5 Georgia, serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { font-weight: normal; line-height: 1.2; } h2 { border-bottom: 1px solid #ccc; margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: right; }
th { border-bottom: 1px solid #222; font-weight: normal; vertical-align: bottom; }
td:first-child, th:first-child, .text { text-align: left; } .wide { overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption, .small { color: #666; font-size: 13px; }
pre, code { font: 13px/1.4 monospace; } pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; }
"""


def leave_report(run_dir: str | Path) -> None:
    """Write the report of a run that has just ended; what goes wrong is a warning, for everything else is saved."""
    try:
        write_report(run_dir)
    except Exception as error:
        log.warning("%s was not written (%s: %s)", REPORT, type(error).__name__, error)


def write_report(run_dir: str | Path, defaults: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` into a run's directory.

    Args:
        run_dir: The run's directory. One that has not ended has a page too, with the figures there are.
        defaults: What the configuration is compared with; the task's defaults where it is None.

    Returns:
        The page.

    Raises:
        FileNotFoundError: Where it is not a run's directory.
        lit_grok.files.ReadError: Where a file of the run is damaged.
        lit_grok.files.WriteError: Where the page cannot be written.

    Example:
        ``write_report("runs/mod_add/2026-01-31_12-00-00")``
    """
    run_dir = Path(run_dir)
    title, body = _run(run_dir, "", defaults)
    page = run_dir / REPORT
    write(page, html_page(title, f"<h1>{escape(title)}</h1>\n{body}"))
    return page


def write_overview(run_dirs: Sequence[str | Path], page: str | Path) -> Path:
    """Write one page for many runs: a table of all replicas, and what the page of each run says.

    Args:
        run_dirs: The directories of the runs.
        page: Where to.

    Returns:
        The page.

    Raises:
        FileNotFoundError: Where one is not a run's directory.
        lit_grok.files.ReadError: Where a file of a run is damaged.
        lit_grok.files.WriteError: Where the page cannot be written.
    """
    directories = [Path(run_dir) for run_dir in run_dirs]
    rows, bodies = [], []
    for i, directory in enumerate(directories):
        anchor = f"run{i}"
        title, body = _run(directory, anchor, None)
        link = f'<a href="#{anchor}">{escape(directory.name)}</a>'
        rows += [(link, record) for record in _records(directory)] or [(link, {"status": "not ended"})]
        bodies.append(f'<h2 id="{anchor}">{escape(directory.name)}: {escape(title)}</h2>\n{body}')
    title = f"{len(directories)} runs"
    write(page, html_page(title, "\n".join([f"<h1>{title}</h1>", _table(rows), *bodies])))
    return Path(page)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of one run or of many, and say where it is; returns the exit code.

    Args:
        argv: Directories of runs, or patterns that match some; those of the command line where it is None.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_grok.report", description="One page to read runs by.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or a pattern such as 'runs/ising/*'")
    try:
        directories = _matching(parser.parse_args(argv).runs)
        if len(directories) == 1:
            page = write_report(directories[0])
        else:
            page = write_overview(
                directories, Path(os.path.commonpath([path.absolute() for path in directories])) / REPORT
            )
    except (FileNotFoundError, NotADirectoryError, ReadError) as error:
        return _refuse(error, 2)
    except WriteError as error:
        return _refuse(error, 1)
    sys.stdout.write(f"{page}\n")
    return 0


def _refuse(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return code


def _matching(patterns: Sequence[str]) -> list[Path]:
    """The run directories that patterns match; each pattern has to match one."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).exists() else [Path(path) for path in sorted(glob.glob(pattern))]
        runs = [path for path in paths if (path / CONFIG).exists()]
        if not runs:
            raise FileNotFoundError(f"{pattern}: no run directory matches (one that holds {CONFIG})")
        found |= dict.fromkeys(runs)
    return list(found)


def _run(run_dir: Path, anchor: str, defaults: Mapping[str, Any] | None) -> tuple[str, str]:
    """The title of a run, and what is to be said of it."""
    config, records = read_config(run_dir), _records(run_dir)
    try:
        attributes = open_run(run_dir, "evaluation").attrs
    except FileNotFoundError:  # it has not come so far
        attributes = {}
    title = str(attributes.get("title", config.get("task", run_dir.name)))
    parts = [_table([("", record) for record in records]) if records else "<p>This run has not ended.</p>"]
    callbacks = config.get("callbacks")
    branches = [str(name) for name in callbacks] if isinstance(callbacks, Mapping) else []
    for branch, pictures in _figures(run_dir, branches).items():
        parts.append(f"<h3>{escape(branch)}</h3>")
        parts += [_figure(picture) for picture in pictures]
    parts.append("<h3>Configuration</h3>")
    parts += _configuration(config, _defaults(config) if defaults is None else defaults)
    if attributes.get("command"):
        parts.append(f"<h3>To repeat it</h3>\n<pre>{escape(str(attributes['command']))}</pre>")
    if attributes.get("versions"):
        parts.append(f'<p class="small">{escape(str(attributes["versions"]))}</p>')
    return title, "\n".join(parts)


def _records(run_dir: Path) -> list[Mapping[str, Any]]:
    """The summary of a run, nothing where it has not ended."""
    path = run_dir / SUMMARY
    if not path.exists():
        return []
    with reading(path, "the summary of a run"):
        records = json.loads(path.read_text())
        if not (isinstance(records, list) and all(isinstance(record, Mapping) for record in records)):
            raise ValueError("it is no list of records")
        return records


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A line for each replica, behind what is to stand before it, which is HTML."""
    names = [name for name in _COLUMNS if any(name in record for _, record in rows)]
    before = any(first for first, _ in rows)
    header = "<th>run</th>" * before + "".join(f"<th>{escape(_COLUMNS[name])}</th>" for name in names)
    lines = []
    for first, record in rows:
        cells = "".join(f"<td>{escape(cell(name, record.get(name)))}</td>" for name in names)
        lines.append(f"<tr>{f'<td>{first}</td>' * before}{cells}</tr>")
    return f'<div class="wide"><table>\n<tr>{header}</tr>\n{chr(10).join(lines)}\n</table></div>'


def _figures(run_dir: Path, branches: Sequence[str]) -> dict[str, list[Path]]:
    """The figures of a run by the branch they are named after, in the order of the configuration."""
    found: dict[str, list[Path]] = {branch: [] for branch in branches}
    for path in sorted((run_dir / "figures").glob("*.png")):
        own = [branch for branch in branches if path.stem == branch or path.stem.startswith(f"{branch}_")]
        found.setdefault(max(own, key=len, default=path.stem), []).append(path)
    return {branch: pictures for branch, pictures in found.items() if pictures}


def _figure(path: Path) -> str:
    """The picture of a file, if it is one."""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        return f'<p class="small">{escape(path.stem)}: {escape(path.name)} is damaged, or no PNG.</p>'
    return picture(path.stem, content)


def picture(name: str, png: bytes) -> str:
    """A picture inside a page.

    Args:
        name: What is written below it.
        png: The content of a PNG file.
    """
    data = base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(name)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{escape(name)}</figcaption></figure>"


def _configuration(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> Iterator[str]:
    """What differs from the defaults, key by key; everything at the top where there are no defaults."""
    if defaults is None:
        yield f"<p>The task {escape(str(config.get('task')))} has no defaults here; these are the keys at the top.</p>"
        shown = {key: (value, None) for key, value in config.items() if not isinstance(value, Mapping)}
    else:
        shown = differences(config, defaults)
        if not shown:
            yield "<p>As the task's defaults say.</p>"
            return
    header = "<tr><th>key</th><th>here</th>" + "<th>default</th>" * (defaults is not None) + "</tr>"
    lines = []
    for key, values in shown.items():
        cells = values if defaults is not None else values[:1]
        lines.append(
            "".join(f'<td class="text"><code>{escape(each)}</code></td>' for each in (key, *map(_typed, cells)))
        )
    yield f"<table>{header}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def differences(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where a configuration differs from another one, but for directories, threads and loggers.

    Args:
        config: Nested mappings.
        defaults: What it is compared with.

    Returns:
        Dotted key to the two values, ``...`` where there is none. A nested key that only repeats one at the top, such
        as ``optimizer.lr`` beside ``learning_rate``, is left out.

    Example:
        >>> defaults = {"P": 113, "network": {"P": 113, "hidden": [512]}}
        >>> differences({"P": 97, "network": {"P": 97, "hidden": [64]}}, defaults)
        {'P': (97, 113), 'network.hidden': ([64], [512])}
    """
    here, there = dict(leaves(config)), dict(leaves(defaults))
    both = {key: (here.get(key, ...), there.get(key, ...)) for key in {**here, **there}}
    differ = {key: pair for key, pair in both.items() if pair[0] != pair[1] and not key.startswith(_ELSEWHERE)}
    top = [pair for key, pair in differ.items() if "." not in key]
    return {key: pair for key, pair in differ.items() if "." not in key or pair not in top}


def _typed(value: Any) -> str:
    return "–" if value is ... else spelled(value)


def _defaults(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The defaults of a run's task, None for a task that has no file here."""
    if config.get("task") not in [path.stem for path in (_CONFIGS / "task").glob("*.yaml")]:
        return None
    from omegaconf import OmegaConf

    from lit_grok.choices import composed

    return OmegaConf.to_container(composed([f"task={config['task']}", "run_dir=."]), resolve=True)  # type: ignore[return-value]


def html_page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: Of the window.
        body: HTML.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
