"""``carft collect``, ``top`` and ``report``: their command lines, and what the first two print."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.setting import KINDS
from domainbed_carft.text import counted, shown

INCOMPLETE = 3  # exit status of --strict

# As modules that take a while to load have them, which a test compares.
METHODS = ("training-domain", "leave-one-domain-out", "oracle", "in-domain")
FORMATS = ("text", "markdown", "csv", "json", "latex")


def add_to(commands: Any) -> None:
    """Add the three to argparse's ``commands``."""
    collect = commands.add_parser(
        "collect", help="print result tables of sweeps, with standard errors and what is missing"
    )
    add = _adding(collect, _collect)
    add("--format", choices=FORMATS, default="text", help="output format (default: text)")
    add("-o", "--output", type=Path, metavar="FILE", help="write here instead of printing")
    add(
        "--strict", action="store_true",
        help="exit with status 3 if a cell is incomplete, a run diverged, or a file is unusable",
    )  # fmt: skip
    add("--compare", choices=["published"], help="show published figures beside your own")
    add(
        "--paired", nargs=2, metavar=("A", "B"),
        help="show algorithm A minus B, paired over data set, environment and trial",
    )  # fmt: skip

    top = commands.add_parser(
        "top", help="print the best hyperparameters of each trial as JSON, ready for --hparams"
    )
    add = _adding(top, _top)
    add("--dataset", help="show only this data set")
    add("--algorithm", help="show only this algorithm")
    add("--test_env", type=int, help="show only the environment with this index")

    report = commands.add_parser(
        "report", help="write a web page of a sweep's results: tables, figures, example pictures"
    )
    add = _adding(report, _report)
    add(
        "-o", "--output", type=Path, default=Path("report"), metavar="FOLDER",
        help="folder for index.html and figures/: new, empty, or an earlier report's "
        "(default: report)",
    )  # fmt: skip
    add(
        "--examples", nargs=2, metavar=("A", "B"),
        help="compare these two algorithms picture by picture (default: CARFT CLIPFineTune)",
    )  # fmt: skip
    add(
        "--n_examples", type=int, default=4,
        help="pictures per environment that A gets right and B wrong, and vice versa (default: 4)",
    )  # fmt: skip
    add(
        "--no_examples", "--no-examples", action="store_true",
        help="show no pictures, and read neither data nor weights",
    )  # fmt: skip
    add("--data_dir", help="folder that contains the data now (default: as recorded)")


def _adding(parser: argparse.ArgumentParser, run: Callable[..., Any]) -> Callable[..., Any]:
    """The method that adds arguments, after those of all three were added."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folder of a sweep, ours or DomainBed's",
    )
    add(
        "--ignore", type=some_of(KINDS), action="extend", default=[], metavar="PART,...",
        help="merge runs that differ in these parts, separated by commas: " + ", ".join(KINDS),
    )  # fmt: skip
    add(
        "--select", type=some_of(METHODS), action="extend", metavar="METHOD,...",
        help=f"selection methods, separated by commas: {', '.join(METHODS)} (default: those that "
        "the sweep declares, else all that have jobs); of a report, the first counts for figures",
    )  # fmt: skip
    return add


def some_of(choices: Collection[str]) -> Callable[[str], list[str]]:
    """A type for argparse: names with commas between. A list of words would swallow DIR."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not {*names} <= {*choices}:
            expected = f"one or more of {', '.join(choices)}, separated by commas"
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return names

    return parse


def _collect(arguments: argparse.Namespace) -> int:
    from domainbed_carft.jobs import records
    from domainbed_carft.results import collection as collecting
    from domainbed_carft.results import formats

    if arguments.format == "csv" and arguments.compare and arguments.paired:
        raise CarftError("--format csv holds one table; use either --compare or --paired")
    files.require_output(arguments.output)
    collection = collecting.gather(arguments.folders, arguments.select, arguments.ignore)
    built = collecting.build(collection, arguments.paired, bool(arguments.compare))
    text = formats.FORMATS[arguments.format](built)
    if arguments.output:
        files.save_text(arguments.output, text)
    else:
        sys.stdout.write(text)
    # CSV has no room for notes.
    lines = list(built.sections["notes"]) if arguments.format == "csv" else []
    lines += records.describe_warnings(collection.warnings)
    counts = built.sections["summary"]
    summary = f"{counted(counts['records'], 'record')} of {counted(counts['jobs'], 'job')}"
    if incomplete := counts["incomplete_cells"]:
        summary += f"; incomplete: {incomplete:,} of {counted(counts['cells'], 'cell')} (see notes)"
    for line in [*lines, f"{summary}."]:
        print(shown(line), file=sys.stderr)
    kinds = Counter(warning.kind for warning in collection.warnings)
    kinds["incomplete cells"] = incomplete
    counting = ("incomplete cells", "no records", "no accuracies", "unreadable", "diverged")
    wrong = [f"{kind} ({kinds[kind]:,})" for kind in counting if kinds[kind]]
    if not (arguments.strict and wrong):
        return 0
    print(f"carft: --strict: {', '.join(wrong)}", file=sys.stderr)
    return INCOMPLETE


def _top(arguments: argparse.Namespace) -> None:
    from domainbed_carft.jobs import records
    from domainbed_carft.results import collection as collecting
    from domainbed_carft.results import formats

    collection = collecting.gather(arguments.folders, arguments.select, arguments.ignore)
    chosen = list(collecting.best(collection))
    asked = [(name, getattr(arguments, name)) for name in ("dataset", "algorithm", "test_env")]
    asked += [("selection", method) for method in arguments.select or ()]
    for name, value in asked:
        there = sorted({entry[name] for entry in chosen} - {None})
        if value not in (None, *there):
            listed = ", ".join(map(str, there)) or "none"
            raise CarftError(f"no run was selected with {name} {value}; available: {listed}")
        if value is not None and name != "selection":
            chosen = [entry for entry in chosen if entry[name] == value]
    sys.stdout.write(formats.as_json(chosen))
    for line in records.describe_warnings(collection.warnings):
        print(line, file=sys.stderr)


def _report(arguments: argparse.Namespace) -> None:
    from domainbed_carft.report import page

    page.run(arguments)
