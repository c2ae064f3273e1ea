"""The command ``carft data``: list the known datasets, verify a copy, or download one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from domainbed_carft import text
from domainbed_carft.errors import CarftError

NOT_CHECKED = 2  # exit status if there is no data; argparse uses it for wrong options


def add_to(commands: Any) -> None:
    """Add ``data`` and its subcommands to argparse's ``commands``."""
    data = commands.add_parser(
        "data", help="list the known datasets, verify your copy of one, or download one"
    )
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    _add_list(data_commands)
    _add_verify(data_commands)
    _add_download(data_commands)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="show the folder and the size of each known dataset")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")
    parser.set_defaults(run=_list)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check the layout and the image counts of a dataset",
        description="Check the layout and the image counts of a dataset. The exit status is 0 if "
        "the data can be used, 1 if it is broken, and 2 if there is no data. The key status of "
        "--json has more detail.",
    )
    parser.add_argument(
        "data",
        metavar="NAME|PATH",
        help="name of a known dataset, or path of a folder with your images as "
        "environment/class/image",
    )
    parser.add_argument("--data_dir", type=Path, help="folder that contains the dataset's folder")
    parser.add_argument(
        "--decode", action="store_true", help="also decode every image, on all cores"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=_verify)


def _add_download(commands: Any) -> None:
    parser = commands.add_parser(
        "download", help="download a dataset from its sources, verify it and install it"
    )
    parser.add_argument("data", metavar="NAME", help="name of a dataset (see carft data list)")
    parser.add_argument("--data_dir", type=Path, required=True, help="folder to install it in")
    parser.add_argument(
        "--accept_different",
        action="store_true",
        help="install data that can be used, but differs from all known editions",
    )
    parser.set_defaults(run=_download)


def _list(arguments: argparse.Namespace) -> None:
    from domainbed_carft.suites.known_data import list_known_data

    if arguments.json:
        print(json.dumps(list_known_data(), indent=2))
    else:
        print(_make_training_table())
        print("\nTest sets of the suite imagenet (carft evaluate --suite imagenet):")
        print(_make_test_set_table())
        print("\nsteps: DomainBed's default, which --steps overrides.")
        print("Other steps, sources, licences, citations, counts by class: carft data list --json")


def _make_training_table() -> str:
    """Return a table with a row for each benchmark and task."""
    from domainbed_carft.data.benchmarks import BENCHMARKS
    from domainbed_carft.data.tasks import TASKS
    from domainbed_carft.suites.known_data import TASK_STEPS

    rows = []
    for benchmark in BENCHMARKS.values():
        rows.append(
            (
                benchmark.name,
                benchmark.folder or "(in the package)",
                ", ".join(environment.label for environment in benchmark.environments),
                str(len(benchmark.classes)),
                " or ".join(f"{edition.total:,}" for edition in benchmark.editions),
                f"{benchmark.steps['DomainBed']:,}",
            )
        )

    for task in TASKS.values():
        training_images, test_images = task.images
        rows.append(
            (
                task.name,
                task.folder,
                f"train, {task.split}; test set",
                str(task.classes),
                f"{training_images:,} + {test_images:,}",
                f"{TASK_STEPS:,}",
            )
        )
    return text.table(("name", "folder", "environments", "classes", "images", "steps"), rows)


def _make_test_set_table() -> str:
    from domainbed_carft.suites import imagenet

    facts = imagenet.facts()
    rows = []
    for test_set in imagenet.suite().sets:
        known = facts[test_set.name]
        classes = str(len(test_set.classes))
        rows.append((test_set.name, known["folders"][0], classes, f"{known['images']:,}"))
    return text.table(("name", "folder", "classes", "images"), rows)


def _verify(arguments: argparse.Namespace) -> int:
    from domainbed_carft.suites.known_data import verify_data

    try:
        report = verify_data(arguments.data, arguments.data_dir, arguments.decode)
    except CarftError as error:
        print(f"carft: {error}", file=sys.stderr)
        if arguments.json:
            failure = {"name": arguments.data, "status": None, "error": str(error)}
            print(json.dumps(failure, indent=2))
        return NOT_CHECKED

    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.as_text())
    return int(report.status == "broken")


def _download(arguments: argparse.Namespace) -> None:
    from domainbed_carft.suites.known_data import download_data

    report = download_data(arguments.data, arguments.data_dir, arguments.accept_different)
    print(report.as_text())
