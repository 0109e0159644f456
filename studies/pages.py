"""The tables of README.md and of pages in docs/, from the committed summaries: ``python -m studies.pages``."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import studies
from lit_grok.files import write
from studies.gallery import COLUMNS, EXPLANATION, cells, heading, summaries
from studies.study import RESULTS, Study, known_seconds
from studies.tables import encoding_table, grokking_table

ROOT = Path(__file__).parents[1]
#: Of each paper, the page of its verdicts, and what it is called.
_PAGES = {
    "grokking_vs_learning": ("verdicts.md", "*Grokking vs. Learning* (arXiv 2502.01739)"),
    "beyond_progress_measures": ("verdicts_prime.md", "*Beyond Progress Measures* (arXiv 2504.03162)"),
    "open_questions": ("verdicts_open.md", "what *Grokking vs. Learning* has left open"),
}


def pages() -> dict[Path, str]:
    """Every page as it is to be, by its path."""
    readme, findings = ROOT / "README.md", ROOT / "docs" / "findings.md"
    found = {
        readme: between(readme.read_text(), "verdicts", main_verdicts()),
        findings: between(between(findings.read_text(), "grokking", grokking_table()), "encodings", encoding_table()),
    }
    for paper, (page, title) in _PAGES.items():
        found[ROOT / "docs" / page] = all_verdicts(paper, title)
    return found


def main_verdicts(folder: Path = RESULTS) -> str:
    """A table of the first paper's main claims."""
    rows = []
    for study, summary in summaries(folder, studies.of_paper("grokking_vs_learning")):
        main = {claim.name for claim in study.claims if claim.main}
        rows += [_row(claim) for claim in summary["claims"] if claim["name"] in main]
    return "\n".join([*_HEADER, *rows])


def all_verdicts(paper: str, title: str, folder: Path = RESULTS) -> str:
    """A page with every claim of every study of a paper, and the commands behind them.

    Args:
        paper: The name of its package.
        title: What it is called.
        folder: Where the summaries are.
    """
    parts = [f"# Claims and verdicts: {title}", "", EXPLANATION, "", "Written by `python -m studies.pages`.", ""]
    known = list(summaries(folder, studies.of_paper(paper)))
    parts += _contents(studies.of_paper(paper), {study.name: summary for study, summary in known}, folder)
    for study, summary in known:
        parts += ["", f"## {heading(study)}", "", f"`python reproduce.py {study.name}`", "", *_HEADER]
        parts += [_row(claim) for claim in summary["claims"]]
        each = [claim for claim in summary["claims"] if claim["values"]]
        parts += ["", "Seed by seed:", ""] if each else []
        parts += [f"- {claim['name']}: {_by_seed(claim)}" for claim in each]
        if summary["runs"]:
            parts += ["", "```text", *(run["command"] for run in summary["runs"]), "```"]
        if summary["versions"]:
            parts += ["", "; ".join(summary["versions"])]
    return "\n".join(parts) + "\n"


def _contents(asked: Iterable[Study], known: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    """A table of all studies: how many seeds each has, what a further one takes, and what became of its claims."""
    lines = ["| study | question | claims | seeds | hours a seed |", "|---|---|---|---|---|"]
    seconds = known_seconds(folder)
    for study in asked:
        names = [sweep.name for sweep in study.sweeps]
        summary = known.get(study.name, {"runs": [], "claims": []})
        seeds = {run["sweep"]: len(run["seeds"]) for run in summary["runs"]}
        counts = sorted({seeds.get(name, 0) for name in names})
        shown = "–".join(map(str, (counts[0], counts[-1])[: len(counts)])) if counts else "none needed"
        hours = f"{sum(seconds[name] for name in names) / 3600:.2g}" if {*names} <= {*seconds} else "not timed"
        verdicts = Counter(claim["verdict"] for claim in summary["claims"])
        counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        where = f"[{study.name}](#{_anchor(heading(study))})" if study.name in known else study.name
        lines.append(f"| {where} | {study.title} | {counted or 'not run yet'} | {shown} | {hours if names else '–'} |")
    told = (
        "Seeds are the fewest and the most of the study's sweeps. Hours are of one core, beside another training; of "
        "sweeps that were trained elsewhere a dry run's estimate, and with each study what several of them share."
    )
    return [*lines, "", told]


def _anchor(title: str) -> str:
    """What a heading is linked by, where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def between(page: str, name: str, table: str) -> str:
    r"""A page with what stands between two marks replaced.

    Args:
        page: The page.
        name: Of the marks.
        table: What is to stand there.

    Raises:
        ValueError: Where it has no such marks.

    Example:
        >>> page = "<!-- x: python -m studies.pages -->\nold\n<!-- end of x -->\n"
        >>> between(page, "x", "new").splitlines()[1]
        'new'
    """
    marks = f"<!-- {name}: python -m studies.pages -->", f"<!-- end of {name} -->"
    before, mark, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (mark and end):
        raise ValueError(f"a page lacks {marks[0]} and {marks[1]}")
    return f"{before}{mark}\n{table}\n{end}{after}"


_HEADER = f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"


def _row(claim: Mapping[str, Any]) -> str:
    *told, verdict = cells(claim)
    shown = f"**{verdict}**" if "reproduced" in verdict else verdict
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*told, shown)) + " |"


def _by_seed(claim: Mapping[str, Any]) -> str:
    return ", ".join(f"{seed}: {value:.3g}" for seed, value in claim["values"].items())


if __name__ == "__main__":
    for path, text in pages().items():
        write(path, text)
        sys.stdout.write(f"{path}\n")
