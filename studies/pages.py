"""The tables of README.md and docs/verdicts.md, from the committed summaries: ``python -m studies.pages``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_grok.files import write
from studies.gallery import COLUMNS, EXPLANATION, cells, heading, summaries
from studies.study import RESULTS

ROOT = Path(__file__).parents[1]
_MARKS = "<!-- verdicts: python -m studies.pages -->", "<!-- end of verdicts -->"


def pages() -> dict[Path, str]:
    """Every page as it is to be, by its path."""
    readme = ROOT / "README.md"
    return {readme: between(readme.read_text(), main_verdicts()), ROOT / "docs" / "verdicts.md": all_verdicts()}


def main_verdicts(folder: Path = RESULTS) -> str:
    """A table of the paper's main claims."""
    rows = []
    for study, summary in summaries(folder):
        main = {claim.name for claim in study.claims if claim.main}
        rows += [_row(claim) for claim in summary["claims"] if claim["name"] in main]
    return "\n".join([*_HEADER, *rows])


def all_verdicts(folder: Path = RESULTS) -> str:
    """A page with every claim of every study, and the commands behind them."""
    parts = ["# Claims and verdicts", "", EXPLANATION, "", "Written by `python -m studies.pages`."]
    for study, summary in summaries(folder):
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


def between(page: str, table: str) -> str:
    """A page with what stands between its marks replaced.

    Raises:
        ValueError: Where it has no marks.
    """
    before, mark, rest = page.partition(_MARKS[0])
    _, end, after = rest.partition(_MARKS[1])
    if not (mark and end):
        raise ValueError(f"README.md lacks {_MARKS[0]} and {_MARKS[1]}")
    return f"{before}{mark}\n{table}\n{end}{after}"


_HEADER = f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"


def _row(claim: Mapping[str, Any]) -> str:
    *told, verdict = cells(claim)
    shown = verdict if verdict == "undecided" else f"**{verdict}**"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*told, shown)) + " |"


def _by_seed(claim: Mapping[str, Any]) -> str:
    return ", ".join(f"{seed}: {value:.3g}" for seed, value in claim["values"].items())


if __name__ == "__main__":
    for path, text in pages().items():
        write(path, text)
        sys.stdout.write(f"{path}\n")
