"""The papers by figure number: ``python reproduce.py fig5`` trains what is missing, draws, and judges every claim."""

import argparse
import re
import sys
from pathlib import Path

import studies
from lit_grok.cli import exit_with
from lit_grok.files import ReadError, WriteError
from lit_grok.schema import UsageError, meant
from studies import gallery, reproduction


def seeds(text: str) -> range:
    """``5`` are the seeds 0 to 4, ``3:5`` are 3 and 4."""
    ends = re.fullmatch(r"(?:([0-9]{1,4}):)?([0-9]{1,4})", text)
    found = range(int(ends[1] or 0), int(ends[2])) if ends else range(0)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: how many there are, such as 5, or a range such as 3:5")
    return found


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text}: a whole number, 1 or more")
    return int(text)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python reproduce.py", description=__doc__.replace("``", ""), allow_abbrev=False
    )
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="STUDY",
        help="names or figures, such as fig5, or prime_fig4 of the second paper; all; none lists them",
    )
    parser.add_argument("--seeds", type=seeds, default="5", help="how many, or a range such as 3:5 (default: 5)")
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where they train")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, and how long they take")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="where runs are (default: runs/studies)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("runs/results"), help="where summaries go; those there are added to"
    )
    parser.add_argument("--gallery", type=Path, default=Path("runs/gallery"), help="where figures and their page go")
    given, unknown = parser.parse_known_args()
    if unknown:
        options = [f"--{name.replace('_', '-')}" for name in vars(given) if name != "studies"]
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant(unknown[0].partition('=')[0], options)}")
    return given


def main() -> int:
    """Do what the command line says; returns the exit code: 1 where a run failed."""
    given = arguments()
    if not given.studies:
        print(reproduction.listing(given.runs, given.seeds))
        return 0
    try:
        named = [studies.find(name) for name in given.studies if name != "all"]
        chosen = studies.all_studies() if "all" in given.studies else list({one.name: one for one in named}.values())
    except ValueError as error:
        exit_with(str(error))
    runs = reproduction.plan(chosen, given.seeds)
    if given.dry_run:
        print(reproduction.describe(runs, given.runs))
        return 0
    for folder in (given.results, given.gallery):  # that they cannot be written is not to be found out after hours
        folder.mkdir(parents=True, exist_ok=True)
    failures = reproduction.train(runs, given.runs, given.jobs, given.launcher)
    damaged = []
    for study in chosen:
        try:
            print(f"\n{reproduction.conclude(study, given.seeds, given.runs, given.results)}")
        except ReadError as error:
            damaged.append(str(error))
    print(f"\n{gallery.write_gallery(given.gallery, given.results)}")
    for command, reason in failures.items():
        print(f"failed: {command}\n    {reason}", file=sys.stderr)
    if damaged:
        exit_with("; ".join(damaged))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ReadError, UsageError) as error:
        exit_with(str(error))
    except WriteError as error:
        exit_with(str(error), code=1)
    except OSError as error:
        exit_with(f"{error.filename}: cannot be written ({error.strerror})", code=1)
    except KeyboardInterrupt:
        exit_with("stopped; what the runs have saved is kept, the same command goes on", code=130)
