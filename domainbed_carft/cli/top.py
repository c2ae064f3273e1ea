"""The command ``carft top``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft.cli.results import add_common, print_errors
from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.text import print_lines, table

if TYPE_CHECKING:
    from domainbed_carft.results.top import BestHparams

_HEADER = (
    "Dataset",
    "Algorithm",
    "Target",
    "Trial",
    "Hyperparameters",
    "Step",
    "Validation",
    "Accuracy",
    "Folder",
)


def add_to(commands: Any) -> None:
    """Add ``top`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "top",
        help="print the chosen run of each cell and trial: hyperparameters, step, folder",
        description="Print the run that model selection chose for each cell and trial: the "
        "hyperparameters that were drawn or set, the step of the checkpoint, and the job's folder.",
    )
    add_common(parser, _top)
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="",
        help="print only jobs whose folder or description contains this text",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON with all hyperparameters, which you can pass to --hparams",
    )


def _top(arguments: argparse.Namespace) -> None:
    from domainbed_carft.results import formats
    from domainbed_carft.results.top import top

    best = top(
        arguments.folders,
        methods=arguments.select,
        ignored=arguments.ignore,
        only=arguments.only,
    )
    if arguments.json:
        sys.stdout.write(formats.as_json([entry.as_dict() for entry in best.entries]))
    else:
        _print_tables(best.entries)
    print_errors(describe_warnings(best.warnings))


def _print_tables(entries: Sequence[BestHparams]) -> None:
    """Print a table of each selection method and setting."""
    from domainbed_carft.data import benchmarks
    from domainbed_carft.results import selection

    titles = benchmarks.dataset_titles(entry.dataset for entry in entries)

    lines: list[str] = []
    for (method, setting), group in itertools.groupby(
        entries, key=lambda entry: (entry.selection, entry.setting)
    ):
        title = "; ".join(filter(None, [selection.METHODS[method].title, setting]))
        lines += ["", title, *_table_lines(list(group), titles)]
    print_lines(*lines[1:] or ["No run was selected."])


def _table_lines(entries: Sequence[BestHparams], dataset_titles: Mapping[str, str]) -> list[str]:
    """Return the table of one method and setting, below the hyperparameters that all rows share."""
    from domainbed_carft.sweep import chosen_runs

    runs, shared = chosen_runs.describe(entries)
    rows = [
        [
            dataset_titles[run.entry.dataset],
            run.entry.algorithm,
            run.entry.environment or "",
            str(run.entry.trial_seed),
            run.hparams,
            *run.measured,
            run.entry.folders[0],
        ]
        for run in runs
    ]
    lines = table(_HEADER, rows).splitlines()
    return [f"In all rows: {shared}", *lines] if shared else lines
