"""The gallery: one page with every figure, claim, number and verdict, and the commands behind them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import studies
from lit_grok.figures.common import save
from lit_grok.files import ReadError, write
from lit_grok.report import html_page, picture
from studies.claims import FEWEST
from studies.study import RESULTS, Study, read_summary, results_of

PAGE = "index.html"


def draw_study(study: Study, summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw a study from its summary into a folder, as PNG and PDF; returns the PNG files.

    Args:
        study: The study.
        summary: What `read_summary` gives.
        folder: Where to.
    """
    return [save(figure, folder, name) for name, figure in study.draw(results_of(summary)).items()]


def write_gallery(folder: Path, results: Path = RESULTS) -> Path:
    """Draw every study that has a summary, and write the page that shows them, and says which cannot be read.

    Args:
        folder: Where to; the figures lie beside the page as well.
        results: Where the summaries are.

    Returns:
        The page.
    """
    parts, contents = [], []
    for study in studies.all_studies():
        try:
            summary = read_summary(study.name, results)
        except FileNotFoundError:
            continue
        except ReadError as error:  # the others are shown all the same
            parts.append(f"<h2>{escape(heading(study))}</h2><p>{escape(str(error))}</p>")
            continue
        pictures = [picture(file.stem, file.read_bytes()) for file in draw_study(study, summary, folder)]
        contents.append(f'<li><a href="#{study.name}">{escape(heading(study))}</a></li>')
        parts.append(f'<h2 id="{study.name}">{escape(heading(study))}</h2>')
        parts += [claims_html(summary["claims"]), *pictures, _commands(summary)]
    title = "Claims and figures"
    body = [f"<h1>{title}</h1>", f"<p>{escape(EXPLANATION)}</p>", f"<ul>{''.join(contents)}</ul>", *parts]
    page = folder / PAGE
    write(page, html_page(title, "\n".join(body)))
    return page


def summaries(results: Path, among: Iterable[Study]) -> Iterator[tuple[Study, dict[str, Any]]]:
    """Those studies that have a summary, with it.

    Args:
        results: Where the summaries are.
        among: Of which studies.
    """
    for study in among:
        with suppress(FileNotFoundError):
            yield study, read_summary(study.name, results)


def heading(study: Study) -> str:
    """What a study is about, and which figures it draws."""
    return f"{study.title} ({', '.join(study.figures)})" if study.figures else study.title


EXPLANATION = (
    "Each claim is a statistic with one value per seed, and a side that it is said to lie on. Brackets hold the 95 % "
    "interval over three seeds or more: Student's for means (which knows no bounds, such as 1 of a correlation), "
    "Wilson's for shares of seeds. Reproduced: it lies on that side. Not reproduced: it lies on the other. Undecided: "
    "it holds the threshold. Too few seeds: fewer than three, or than five where the statistic is yes or no; more of "
    "them are trained by what stands below each heading with, say, --seeds 5. n counts the seeds that have a value: "
    "where a claim is about grokking, those that grokked, which may be none."
)


def claims_html(claims: Iterable[Mapping[str, Any]]) -> str:
    """Claims with their numbers as a table of a page."""
    header = "".join(f"<th>{name}</th>" for name in COLUMNS)
    lines = ["".join(f'<td class="text">{escape(text)}</td>' for text in cells(claim)) for claim in claims]
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


COLUMNS = ("claim", "statistic, one value per seed", "asked", "n", "found", "paper", "verdict")


def cells(claim: Mapping[str, Any]) -> tuple[str, ...]:
    """A claim of a summary under `COLUMNS`."""
    says = f"{claim['says']} ({claim['source']})"
    numbers = str(claim["n"]), found(claim), claim["paper"] or "–"
    return says, claim["statistic"], claim["asks"], *numbers, claim["verdict"]


def found(claim: Mapping[str, Any]) -> str:
    """Estimate and interval of a claim of a summary; of fewer seeds than say anything the estimate alone.

    Example:
        >>> found({"n": 5, "estimate": 0.4251, "low": 0.41, "high": 0.44}), found({"n": 0, "estimate": None})
        ('0.425 [0.41, 0.44]', '–')
        >>> found({"n": 2, "estimate": 0.352, "low": -0.153, "high": 0.857})
        '0.352'
    """
    if claim["estimate"] is None:
        return "–"
    interval = f" [{claim['low']:.3g}, {claim['high']:.3g}]" if claim["n"] >= FEWEST["mean"] else ""
    return f"{claim['estimate']:.3g}{interval}"


def _commands(summary: Mapping[str, Any]) -> str:
    commands = "\n".join(run["command"] for run in summary["runs"])
    versions = "; ".join(summary["versions"])
    shown = f"<pre>{escape(commands)}</pre>" if commands else ""
    return f'{shown}<p class="small">{escape(versions)}</p>' if versions else shown
