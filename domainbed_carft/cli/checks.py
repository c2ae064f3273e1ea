"""Flags of the commands that check before a sweep: ``doctor``, ``check`` and ``data``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WRONG_ARGUMENTS = 2  # exit status of check, whose 1 means a failed check


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    _add_doctor(commands)
    _add_check(commands)

    data = commands.add_parser(
        "data", help="list the known datasets, verify your copy of one, or download one"
    )
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    _add_list(data_commands)
    _add_verify(data_commands)
    _add_download(data_commands)


def _run(name: str, arguments: argparse.Namespace) -> int | None:
    from domainbed_carft.cli import checks_output  # imports what only these commands need

    return checks_output.COMMANDS[name](arguments)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        run=_run,
        help="check whether a training job can start here, and show how to fix problems",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.add_argument(
        "--train",
        action="store_true",
        help="also run two training steps on EmojiStyles with the domainbed in use",
    )
    parser.add_argument(
        "--algorithm",
        metavar="NAME",
        default="CARFT",
        help="the algorithm of these steps (default: CARFT); an algorithm of your checkout trains "
        "the embedded CLIP model as well",
    )


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        run=_run,
        help="check the properties that every method must have: gradients, resuming, predictions",
        description="Check the properties that every method must have, with the small CLIP model "
        "and random images: gradients, micro-batches, resuming, predictions, hyperparameters. Each "
        "check prints one line: ok, the reason why it does not apply, or the value found and the "
        "value expected. Only the check called device needs a GPU, and is skipped without one. The "
        "exit status is 0 if all checks pass, 1 if any fails, and 2 for wrong arguments.",
    )
    parser.set_defaults(status_of_errors=WRONG_ARGUMENTS)
    parser.add_argument(
        "method", metavar="METHOD", help="name of an algorithm, or path of your Python file"
    )
    parser.add_argument(
        "--hparams",
        metavar="JSON",
        default="{}",
        help='hyperparameters that differ from the defaults, such as \'{"average": "ema"}\'',
    )
    for flag, help_text in (
        ("--only", "run only these checks, named as in the output"),
        ("--without", "skip these checks"),
    ):
        parser.add_argument(flag, metavar="CHECK", nargs="+", default=[], help=help_text)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list", run=_run, help="show the folder and the size of each known dataset"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        run=_run,
        help="verify the layout and the image counts of a dataset",
        description="Verify the layout and the image counts of a dataset. The exit status is 0 if "
        "the data can be used, 1 if it is broken, and 2 if there is no data. The key status of "
        "--json has more detail.",
    )
    parser.add_argument(
        "data",
        metavar="NAME|PATH",
        help="name of a known dataset, or path of a folder with your images as "
        "environment/class/image, or of a CSV file with the columns path, environment and class",
    )
    parser.add_argument(
        "--data_dir", type=Path, metavar="DIR", help="folder that contains the dataset's folder"
    )
    parser.add_argument(
        "--decode", action="store_true", help="also decode every image, on all cores"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_download(commands: Any) -> None:
    parser = commands.add_parser(
        "download", run=_run, help="download a dataset from its sources, verify it and install it"
    )
    parser.add_argument("data", metavar="NAME", help="name of a dataset (see carft data list)")
    parser.add_argument(
        "--data_dir", type=Path, metavar="DIR", required=True, help="folder to install it in"
    )
    parser.add_argument(
        "--accept-different",
        action="store_true",
        help="install data that can be used, but differs from all known editions",
    )
    parser.add_argument(
        "--from",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        dest="given_files",
        help="use this file instead of downloading it, or all files in a folder; can be repeated",
    )
