"""``carft top``: its command line, and what it prints."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from domainbed_carft.cli.results import add_common, print_errors
from domainbed_carft.jobs.record_lines import describe_warnings
from domainbed_carft.text import printable, table

if TYPE_CHECKING:
    from domainbed_carft.results.top import BestHparams

_HEADER = (
    "Data set",
    "Algorithm",
    "Left out",
    "Trial",
    "Hyperparameters",
    "Step",
    "Validation",
    "Accuracy",
    "Folder",
)
_LONGEST_VALUE = 40  # of a hyperparameter, such as a list of contexts


def add_to(commands: Any) -> None:
    """Add ``top`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "top",
        help="print the hyperparameters that selection chose in each trial, with step and folder",
        description="Print which run selection chose for each cell and trial: the hyperparameters "
        "that differ from the defaults, the step of the checkpoint, and the job's folder.",
    )
    add_common(parser, _top)
    parser.add_argument("--dataset", help="show only this data set")
    parser.add_argument("--algorithm", help="show only this algorithm")
    parser.add_argument("--test_env", type=int, help="show only the environment with this index")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON, with all hyperparameters, ready for --hparams",
    )


def _top(arguments: argparse.Namespace) -> None:
    from domainbed_carft.results import formats
    from domainbed_carft.results.top import top

    best = top(
        arguments.folders,
        methods=arguments.select,
        ignored=arguments.ignore,
        single_source=arguments.single_source,
        dataset=arguments.dataset,
        algorithm=arguments.algorithm,
        test_env=arguments.test_env,
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

    tables = []
    for (method, setting), group in itertools.groupby(
        entries, key=lambda entry: (entry.selection, entry.setting)
    ):
        title = "; ".join(filter(None, [selection.METHODS[method].title, setting]))
        tables.append(f"{printable(title)}\n{_table_text(list(group), titles)}")
    print("\n\n".join(tables) or "No run was selected.")


def _table_text(entries: Sequence[BestHparams], dataset_titles: Mapping[str, str]) -> str:
    """The table of one method and setting; what all rows share stands above it, once.

    The chosen values of a search are in each row, whether or not they are the default.
    """
    changed = [_changed_hparams(entry) for entry in entries]
    searched = {name for entry in entries for name in entry.values}
    shared = {
        name: value
        for name, value in changed[0].items()
        if name not in searched
        and all(name in hparams and hparams[name] == value for hparams in changed)
    }

    rows = []
    for entry, hparams in zip(entries, changed, strict=True):
        own_hparams = {name: value for name, value in hparams.items() if name not in shared}
        rows.append([dataset_titles[entry.dataset], *_cells(entry, entry.values | own_hparams)])

    text = table(_HEADER, rows)
    return f"In all rows: {_hparams_text(shared)}\n{text}" if shared else text


def _changed_hparams(entry: BestHparams) -> dict[str, Any]:
    """The hyperparameters of the run that differ from the defaults."""
    from domainbed_carft.sweep import hparam_defaults

    return hparam_defaults.changed_hparams(
        algorithm=entry.algorithm,
        dataset=entry.dataset,
        recorded=entry.hparams,
        hparams_set=entry.hparams_set,
        is_drawn=entry.hparams_seed != 0,
    )


def _cells(entry: BestHparams, hparams: Mapping[str, Any]) -> list[str]:
    """The cells of a row after the data set; ``hparams``: those that not all rows share."""
    from domainbed_carft.results.document import format_accuracy

    accuracy = None if entry.accuracy is None else 100 * entry.accuracy
    return [
        entry.algorithm,
        entry.environment or "",
        str(entry.trial_seed),
        _hparams_text(hparams),
        str(entry.step),
        format_accuracy(100 * entry.validation_accuracy),
        format_accuracy(accuracy),
        entry.folders[0],
    ]


def _hparams_text(hparams: Mapping[str, Any]) -> str:
    """Names and values, as ``lr 0.0003, kl_weight 3``; a long value is cut."""
    parts = []
    for name, value in hparams.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _LONGEST_VALUE:
            text = f"{text[:_LONGEST_VALUE]}..."
        parts.append(f"{name} {text}")
    return printable(", ".join(parts))
