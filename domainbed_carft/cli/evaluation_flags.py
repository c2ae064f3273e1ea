"""The flags by which `carft evaluate` takes a whole sweep."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from domainbed_carft.results.alignment_scores import THRESHOLD


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a whole sweep's evaluation, and of one under the original text head."""
    parser.add_argument(
        "--retained",
        metavar="SUITE",
        help="how much zero-shot ability is left: the run's image encoder under the original text "
        "head on the test sets of a suite, beside the original CLIP",
    )
    group = parser.add_argument_group("of a sweep")
    group.add_argument(
        "--select",
        nargs="+",
        metavar="METHOD",
        help="selection methods whose runs are evaluated (default: those of the tables)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="SCORE",
        help="the alignment score that divides pictures in and out of pre-training "
        f"(default: {THRESHOLD})",
    )
    group.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="runs at a time (default: jobs_per_gpu on each GPU, else one per core)",
    )
    group.add_argument(
        "--jobs_per_gpu", type=at_least(1), metavar="N", help="runs on each GPU (default: 1)"
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """A parser of whole numbers that are not below ``minimum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {minimum}"
            )
        return int(text)

    return parse
