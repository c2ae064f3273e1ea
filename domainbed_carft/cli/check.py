"""The command ``carft check``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.text import print_lines

WRONG_ARGUMENTS = 2


def add_to(commands: Any) -> None:
    """Add ``check`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "check",
        help="check the properties that every method must have: gradients, resuming, devices",
        description="Check the properties that every method must have, with the small CLIP model "
        "and random images: gradients, micro-batches, resuming, devices, hyperparameters. Each "
        "check prints one line: ok, the reason why it does not apply, or the value found and the "
        "value expected. The exit status is 0 if all checks pass, 1 if any fails, and 2 for wrong "
        "arguments.",
    )
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
        ("--without", "skip these checks; the check called processes takes the longest"),
    ):
        parser.add_argument(flag, metavar="CHECK", nargs="+", default=[], help=help_text)
    parser.set_defaults(run=_check, status_of_errors=WRONG_ARGUMENTS)


def _check(arguments: argparse.Namespace) -> int:
    from domainbed_carft.checks.check import FAILED, CheckResult, run_checks, summary

    hparams = _parse_hparams(arguments.hparams)
    results: list[CheckResult] = []
    for result in run_checks(arguments.method, hparams, arguments.only, arguments.without):
        if not results or result.algorithm != results[-1].algorithm:
            print_lines(result.algorithm)
        results.append(result)
        print_lines(str(result))
    print(f"\n{summary(results)}")
    return 1 if any(result.state == FAILED for result in results) else 0


def _parse_hparams(text: str) -> dict[str, Any]:
    try:
        hparams = json.loads(text)
    except ValueError:
        hparams = None
    if not isinstance(hparams, dict):
        raise CarftError(invalid("--hparams", text, 'a JSON object, such as {"average": "ema"}'))
    return hparams
