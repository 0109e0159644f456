"""The tables of README.md and docs/verdicts.md, from the committed summaries: ``python -m studies.pages``."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import studies
from lit_grok.files import write
from studies.gallery import EXPLANATION, found
from studies.study import RESULTS, read_summary

ROOT = Path(__file__).parents[1]
_MARKS = "<!-- verdicts: python -m studies.pages -->", "<!-- end of verdicts -->"


def pages() -> dict[Path, str]:
    """Every page as it is to be, by its path."""
    readme = ROOT / "README.md"
    return {readme: between(readme.read_text(), main_verdicts()), ROOT / "docs" / "verdicts.md": all_verdicts()}


def main_verdicts(folder: Path = RESULTS) -> str:
    """A table of the paper's main claims."""
    rows = []
    for study, summary in _summaries(folder):
        main = {claim.name for claim in study.claims if claim.main}
        rows += [_row(claim) for claim in summary["claims"] if claim["name"] in main]
    return "\n".join([*_HEADER, *rows])


def all_verdicts(folder: Path = RESULTS) -> str:
    """A page with every claim of every study, and the commands behind them."""
    parts = ["# Claims and verdicts", "", EXPLANATION, "", "Written by `python -m studies.pages`."]
    for study, summary in _summaries(folder):
        figures = f" ({', '.join(study.figures)})" if study.figures else ""
        parts += ["", f"## {study.title}{figures}", "", f"`python reproduce.py {study.name}`", "", *_HEADER]
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


def _summaries(folder: Path) -> Iterator[tuple[studies.Study, dict[str, Any]]]:
    for study in studies.all_studies():
        if (folder / f"{study.name}.json").exists():
            yield study, read_summary(study.name, folder)


_HEADER = (
    "| claim | statistic, one value per seed | asked | n | found | paper | verdict |",
    "|---|---|---|---|---|---|---|",
)


def _row(claim: Mapping[str, Any]) -> str:
    verdict = claim["verdict"] if claim["verdict"] == "undecided" else f"**{claim['verdict']}**"
    cells: Iterable[str] = (
        f"{claim['says']} ({claim['source']})",
        claim["statistic"],
        claim["asks"],
        str(claim["n"]),
        found(claim),
        claim["paper"] or "–",
        verdict,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _by_seed(claim: Mapping[str, Any]) -> str:
    return ", ".join(f"{seed}: {value:.3g}" for seed, value in claim["values"].items())


if __name__ == "__main__":
    for path, text in pages().items():
        write(path, text)
        sys.stdout.write(f"{path}\n")
