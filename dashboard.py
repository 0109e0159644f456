"""Compare runs in Weights & Biases: ``python dashboard.py ENTITY/PROJECT`` makes a workspace and a report there.

Every call makes new ones; with ``--offline`` it prints what would be sent, as JSON, and sends nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from lit_grok import cli, dashboards


def main(arguments: Sequence[str] | None = None) -> None:
    """Send the workspace and the report, or print them."""
    parser = argparse.ArgumentParser(description="Make a W&B workspace and a report of the runs of a project.")
    parser.add_argument(
        "project", metavar="ENTITY/PROJECT", help="account or team, and project, as in my_team/lit_grok"
    )
    parser.add_argument("--offline", action="store_true", help="send nothing: print what would be sent, as JSON")
    options = parser.parse_args(arguments)
    with cli.usage_errors():
        entity, project = dashboards.parse_project(options.project)
    boards = {name: make(entity, project) for name, make in dashboards.BOARDS.items()}
    if options.offline:
        sent = {name: dashboards.specification(board) for name, board in boards.items()}
        sys.stdout.write(json.dumps(sent, indent=2) + "\n")
        return
    for name, board in boards.items():
        try:
            board.save()  # and says its address
        except Exception as error:  # no key, no such entity, no network: W&B has an exception of its own for each
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            hint = "`wandb login` gives access, --offline prints what would be sent"
            cli.exit_with(f"{options.project}: W&B did not take the {name} ({reason}); {hint}", cli.EXIT_FAILED)


if __name__ == "__main__":
    main()
