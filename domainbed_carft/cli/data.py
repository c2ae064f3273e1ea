"""``carft data``: what is known of the benchmarks, whether a copy is right, how to get one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.errors import CarftError

NOT_THERE = 2  # nothing was judged; argparse ends with the same for wrong options


def add_to(commands: Any) -> None:
    """Add ``data`` and its own commands to argparse's ``commands``."""
    data = commands.add_parser(
        "data", help="list the benchmarks, verify a copy of one, or download one"
    )
    below = data.add_subparsers(required=True, metavar="COMMAND")
    known = below.add_parser("list", help="show the size and the folder of each benchmark")
    known.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")
    known.set_defaults(run=_list)
    check = below.add_parser(
        "verify", help="check the layout and the picture counts of a data set",
        description="Check the layout and the picture counts of a data set. Exit status: 1 if the "
        "data is broken, or with --strict not as published; 2 if there is none; 0 otherwise.",
    )  # fmt: skip
    check.add_argument(
        "data", metavar="NAME|PATH",
        help="a benchmark's name, or the path of your own folder environment/class/picture",
    )  # fmt: skip
    check.add_argument("--data_dir", type=Path, help="folder that contains the benchmark's folder")
    check.add_argument("--decode", action="store_true", help="decode all pictures, on all cores")
    check.add_argument(
        "--strict", action="store_true", help="exit with 1 for data that differs, too"
    )
    check.add_argument("--json", action="store_true", help="print JSON, for scripts")
    check.set_defaults(run=_verify)
    fetch = below.add_parser(
        "download", help="download a benchmark from its sources, verify it and install it"
    )
    fetch.add_argument("data", metavar="NAME", help="a benchmark's name (see carft data list)")
    fetch.add_argument("--data_dir", type=Path, required=True, help="folder to install it in")
    fetch.add_argument(
        "--accept_different", action="store_true",
        help="install usable data even if it differs from the known editions",
    )  # fmt: skip
    fetch.set_defaults(run=_download)


def _list(arguments: argparse.Namespace) -> None:
    from domainbed_carft.data import benchmarks, tasks
    from domainbed_carft.suites import imagenet

    known = benchmarks.BENCHMARKS.values()
    suite = {one.name: one for one in imagenet.suite().sets}
    if arguments.json:
        of_suite = [{**fact, "suite": "imagenet"} for fact in imagenet.facts().values()]
        of_tasks = map(asdict, tasks.TASKS.values())
        print(json.dumps([*map(asdict, known), *of_tasks, *of_suite], indent=2))
        return
    rows = []
    for one in known:
        labels = ", ".join(environment.label for environment in one.environments)
        pictures = " or ".join(f"{edition.total:,}" for edition in one.editions)
        place, classes = one.folder or "(in the package)", str(len(one.classes))
        rows.append((one.name, place, labels, classes, pictures, f"{one.steps['DomainBed']:,}"))
    for task in tasks.TASKS.values():
        labels, pictures = f"train, {task.split}; test set", "{:,} + {:,}".format(*task.pictures)
        rows.append((task.name, task.folder, labels, str(task.classes), pictures, "5,001"))
    print(text.table(("name", "folder", "environments", "classes", "pictures", "steps"), rows))
    sets = [
        (name, fact["folders"][0], str(len(suite[name].classes)), f"{fact['pictures']:,}")
        for name, fact in imagenet.facts().items()
    ]
    print("\nTest sets of the suite imagenet (carft evaluate --suite):")
    print(text.table(("name", "folder", "classes", "pictures"), sets))
    print("\nsteps: DomainBed's default, which --steps overrides.")
    print("Other steps, sources, licences, citations, counts by class: carft data list --json")


def _owner(name: str) -> Any:
    """What verifies and downloads the data set of this name, None for benchmarks and folders."""
    from domainbed_carft.data import benchmarks, tasks
    from domainbed_carft.suites import imagenet

    owners = {**dict.fromkeys(tasks.TASKS, tasks), **dict.fromkeys(imagenet.facts(), imagenet)}
    valid = [*benchmarks.BENCHMARKS, *owners]
    if name not in valid and not os.path.exists(name):
        raise CarftError(text.unknown("folder or data set", name, valid))
    return owners.get(name)


def _verify(arguments: argparse.Namespace) -> int:
    from domainbed_carft.data import verify

    try:
        judge = getattr(_owner(arguments.data), "verify", verify.verify)
        report = judge(arguments.data, arguments.data_dir, arguments.decode)
    except CarftError as error:
        print(f"carft: {text.shown(str(error))}", file=sys.stderr)
        if arguments.json:
            nothing = {"name": arguments.data, "verdict": None, "error": str(error)}
            print(json.dumps(nothing, indent=2))
        return NOT_THERE
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.as_text())
    refused = ("broken", "differs") if arguments.strict else ("broken",)
    return int(report.verdict in refused)


def _download(arguments: argparse.Namespace) -> None:
    from domainbed_carft.data import download

    where = arguments.data, arguments.data_dir
    if owner := _owner(arguments.data):
        report = owner.download(*where)
    else:
        report = download.download(*where, accept_different=arguments.accept_different)
    print(report.as_text())
