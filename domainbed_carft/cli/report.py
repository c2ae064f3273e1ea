"""The command line of ``carft report``; what it does is loaded when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from domainbed_carft.cli import results as collecting


def add_to(commands: Any) -> None:
    """Add ``report`` to argparse's ``commands``."""
    report = commands.add_parser(
        "report", help="one page of a sweep's results: tables, figures, examples, how to repeat it"
    )
    report.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a sweep's --output_dir, ours or not"
    )
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report"), metavar="FOLDER",
        help="where index.html and figures/ are written: a new or empty folder, or that of an "
        "earlier report (default: report)",
    )  # fmt: skip
    report.add_argument(
        "--select", choices=collecting.METHODS, metavar="METHOD",
        help="the method of selection that figures and examples follow, of "
        f"{', '.join(collecting.METHODS)}; default: the first that the sweep declares, or that "
        "there are jobs for. Tables are of all of these",
    )  # fmt: skip
    report.add_argument(
        "--ignore", type=collecting.some_of(collecting.PARTS), action="extend", default=[],
        metavar="PART,...", help="do not keep apart runs that differ in this, as for carft collect",
    )  # fmt: skip
    report.add_argument(
        "--examples", nargs=2, metavar=("A", "B"),
        help="the two algorithms whose answers are compared picture by picture (default: CARFT and "
        "CLIPFineTune)",
    )  # fmt: skip
    report.add_argument(
        "--n_examples", type=int, default=4,
        help="pictures of each environment that A gets right and B wrong, and as many the other "
        "way round (default: 4)",
    )  # fmt: skip
    report.add_argument(
        "--no-examples", action="store_true", help="no pictures: neither data nor weights are read"
    )
    report.add_argument("--data_dir", help="where the data is now (default: as recorded)")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> None:
    from domainbed_carft.report import building

    building.run(arguments)
