"""``carft data``: what is known of the benchmarks, whether a copy is right, how to get one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft import text
from domainbed_carft.errors import CarftError

if TYPE_CHECKING:  # the other commands need not wait for what these import
    from domainbed_carft.data.benchmarks import Benchmark
    from domainbed_carft.data.verify import Report


NOT_THERE = 2  # nothing was judged; argparse ends so, too, where it was asked amiss


def add_to(commands: Any) -> None:
    """Add ``data`` and its own commands to argparse's ``commands``."""
    data = commands.add_parser(
        "data", help="list the benchmarks, check a copy of one, download one"
    )
    below = data.add_subparsers(required=True, metavar="COMMAND")
    known = below.add_parser("list", help="what is known of each benchmark")
    known.add_argument("--json", action="store_true", help="all of it, for scripts")
    known.set_defaults(run=_list)
    check = below.add_parser(
        "verify", help="compare a data set with what is known of it",
        description="Compare a data set with what is known of it. Exit status: 1 if it is broken, "
        "2 if there is none to look at, 0 else.",
    )  # fmt: skip
    check.add_argument(
        "data",
        metavar="NAME|PATH",
        help="a benchmark, or a folder environment/class/picture of your own: its path, or its "
        "name in datasets.txt",
    )
    check.add_argument("--data_dir", type=Path, help="the folder that has the benchmark's folder")
    check.add_argument("--decode", action="store_true", help="decode every picture, on all cores")
    check.add_argument("--json", action="store_true", help="print JSON, for scripts")
    check.set_defaults(run=_verify)
    fetch = below.add_parser(
        "download", help="fetch a benchmark from its sources, verify it, and put it in its place"
    )
    fetch.add_argument("data", metavar="NAME")
    fetch.add_argument("--data_dir", type=Path, required=True, help="where its folder will be")
    fetch.add_argument(
        "--accept_different", action="store_true",
        help="take what is usable though it is not as known, such as another edition",
    )  # fmt: skip
    fetch.set_defaults(run=_download)


def _list(arguments: argparse.Namespace) -> None:
    from domainbed_carft.data import benchmarks

    known = list(benchmarks.BENCHMARKS.values())
    if arguments.json:
        print(json.dumps([_facts(benchmark) for benchmark in known], indent=2))
        return
    head = ("name", "folder", "environments", "classes", "pictures", "steps")
    print(_table([head, *(_row(benchmark) for benchmark in known)]))
    print(
        "\nsteps: DomainBed's default, which --steps overrides.\n"
        f"{_longer(known)}"
        "Sources, licences, citations and counts by class: carft data list --json"
    )


def _verify(arguments: argparse.Namespace) -> int:
    from domainbed_carft.data import verify

    try:
        report = verify.verify(arguments.data, arguments.data_dir, arguments.decode)
    except CarftError as error:
        print(f"carft: {error}", file=sys.stderr)
        if arguments.json:
            nothing = {"name": arguments.data, "verdict": None, "error": str(error)}
            print(json.dumps(nothing, indent=2))
        return NOT_THERE
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else _text(report))
    return 1 if report.verdict == "broken" else 0


def download(name: str, data_dir: str, accept_different: bool = False) -> None:
    """Download the benchmark ``name`` into ``data_dir`` and print what came."""
    from domainbed_carft.data import download as downloads

    report = downloads.download(name, Path(data_dir), accept_different=accept_different)
    print(_text(report))


def _download(arguments: argparse.Namespace) -> None:
    download(arguments.data, arguments.data_dir, arguments.accept_different)


def _row(benchmark: Benchmark) -> tuple[str, ...]:
    return (
        benchmark.name,
        benchmark.folder or "(in the package)",
        ", ".join(environment.label for environment in benchmark.environments),
        str(len(benchmark.classes)),
        " or ".join(f"{edition.total:,}" for edition in benchmark.editions),
        f"{benchmark.steps['DomainBed']:,}",
    )


def _longer(known: Sequence[Benchmark]) -> str:
    """A line for each benchmark on which SWAD and MIRO train longer than DomainBed."""
    return "".join(
        f"SWAD and MIRO train on {one.name} for {one.steps['SWAD']:,}.\n"
        for one in known
        if one.steps.get("SWAD", 0) > one.steps["DomainBed"]
    )


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "folder": benchmark.folder,
        "environments": [{"label": e.label, "folder": e.folder} for e in benchmark.environments],
        "classes": list(benchmark.classes),
        "editions": [
            {"name": e.name, "pictures": e.total, "environments": e.counts, "classes": e.by_class}
            for e in benchmark.editions
        ],
        "counts_from": benchmark.certainty,
        "sources": [{"url": s.url, "file": s.file} for s in benchmark.sources],
        "licence": benchmark.licence,
        "citation": benchmark.citation,
        "steps": dict(benchmark.steps),
    }


def _text(report: Report) -> str:
    """A line an environment, then everything found, a line each, and the verdict last."""
    rows = [
        (text.shown(name), f"{sum(classes.values()):,} pictures", f"{len(classes)} classes")
        for name, classes in report.counts.items()
    ]
    lines = [f"{report.name} in {text.shown(str(report.root))}"]
    lines += [_table(rows)] if rows else []
    for kind, sentences in (
        ("problem", report.problems),
        ("difference", report.differences),
        ("note", report.notes),
    ):
        lines += [f"{kind}: {sentence}" for sentence in sentences]
    for one in report.damaged:
        state = "cut off" if one.truncated else "not decodable"
        lines.append(f"{state}: {text.shown(one.path)} ({text.shown(one.reason)})")
    if report.verdict in ("differs", "consistent"):
        lines.append(f"as jobs record it (data_edition): {report.data_edition}")
    lines.append(_verdict(report))
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    pictures = f"{report.pictures:,} pictures"
    decoded = ", each decoded" if report.decoded else ""
    meaning = {
        "verified": f"the {pictures} {report.edition}{decoded}",
        "consistent": f"{pictures}{decoded}, and nothing is known to compare them with",
        "differs": f"{pictures}{decoded}; usable, but results may not compare with published ones",
        "broken": "results would be wrong, or there would be none",
    }
    return f"{report.verdict}: {meaning[report.verdict]}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths)
        ).rstrip()
        for row in rows
    )
