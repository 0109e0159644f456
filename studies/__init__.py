"""Studies: one file for each figure, table or open question, with the runs it needs, its claims and its drawing.

``all_studies`` lists them in the order of their papers, ``find`` takes a study's name or the number of a figure.
"""

import difflib
from importlib import import_module

from studies.study import Study

#: The files, in the order in which they are listed.
_MODULES = {
    "grokking_vs_learning": (
        "grokking",
        "ising_features",
        "fourier",
        "compressibility",
        "modular_development",
        "ising_development",
        "path",
        "parameters",
        "domain_walls",
        "batch_size",
        "correlates",
        "weight_decay",
        "spectrum",
        "fisher_pruning",
        "pruning_schemes",
        "step_length",
        "batch_order",
    ),
    "beyond_progress_measures": (
        *("commutativity", "holes", "depth", "operations", "initial_embedding"),
        *("embedding_difference", "forecast", "polygons"),
    ),
    "open_questions": ("phases", "moduli", "superposition", "learning_coefficient", "ablations", "digits"),
}


def all_studies() -> list[Study]:
    """Every study."""
    return [study for paper in _MODULES for study in of_paper(paper)]


def of_paper(paper: str) -> list[Study]:
    """The studies of one paper.

    Args:
        paper: The name of its package.

    Example:
        >>> [study.name for study in of_paper("beyond_progress_measures")][:2]
        ['commutativity', 'holes']
    """
    return [import_module(f"studies.{paper}.{name}").STUDY for name in _MODULES[paper]]


def find(name: str) -> Study:
    """A study by its name or by a figure that it draws.

    Raises:
        ValueError: Where there is none; the message suggests one.

    Example:
        >>> find("fig9").name, find("path").figures
        ('grokking', ('fig8', 'fig34'))
    """
    known = {key: study for study in all_studies() for key in (study.name, *study.figures)}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"{name}: no such study or figure{meant}; python reproduce.py lists them, all is every one")
    return known[name.lower()]
