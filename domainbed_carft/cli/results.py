"""The command lines of ``carft collect`` and ``carft top``; they load what they need when run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# As the modules that know them have them, which a test compares: those load pandas.
METHODS = ("training-domain", "leave-one-domain-out", "oracle", "in-domain")
FORMATS = ("text", "markdown", "csv", "json", "html", "latex")
PARTS = (
    "steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task", "hparams",
    "protocol", "data_edition", "versions",
)  # fmt: skip


def add_to(commands: Any) -> None:
    """Add ``collect`` and ``top`` to argparse's ``commands``."""
    collect = commands.add_parser(
        "collect", help="tables of sweeps' results, with errors and with what is missing"
    )
    _common(collect)
    collect.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    collect.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: print it")
    collect.add_argument(
        "--strict",
        action="store_true",
        help="exit status 3 if a cell lacks anything, or a job's records cannot be used",
    )
    collect.add_argument(
        "--compare", choices=["published"], help="our figures beside the published ones"
    )
    collect.add_argument(
        "--paired", nargs=2, metavar=("A", "B"),
        help="algorithm A minus algorithm B, paired over data set, target and trial",
    )  # fmt: skip
    collect.set_defaults(run=_collect)
    top = commands.add_parser(
        "top", help="the best hyperparameters of each trial, as JSON and ready for --hparams"
    )
    _common(top)
    top.add_argument("--dataset", help="only this data set")
    top.add_argument("--algorithm", help="only this algorithm")
    top.add_argument("--test_env", type=int, help="only this environment, by its index")
    top.set_defaults(run=_top)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a sweep's --output_dir, ours or not"
    )
    parser.add_argument(
        "--select", type=some_of(METHODS), action="extend", metavar="METHOD,...",
        help=f"methods of selection, separated by commas, of {', '.join(METHODS)}; default: those "
        "that the sweep declares, else all that there are jobs for, and leave-one-domain-out with "
        "what it needs",
    )  # fmt: skip
    parser.add_argument(
        "--ignore", type=some_of(PARTS), action="extend", default=[], metavar="PART,...",
        help="do not keep apart runs that differ in this, separated by commas, of "
        + ", ".join(PARTS),
    )  # fmt: skip


def some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: names with commas between. A list of words would swallow DIR."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{', '.join(map(repr, unknown))}; expected one or more of {', '.join(choices)}, "
                "with commas between"
            )
        return names

    return parse


def _collect(arguments: argparse.Namespace) -> int:
    from domainbed_carft.results import collection

    return collection.run(arguments)


def _top(arguments: argparse.Namespace) -> None:
    from domainbed_carft.results import collection

    collection.run_top(arguments)
