"""Download datasets: `python -m domainbed.scripts.download --help`.

In upstream's script users uncomment calls; here they pass `--datasets`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed.lib.command_line import exit_status
from domainbed_carft import suggestions
from domainbed_carft.data import benchmarks
from domainbed_carft.data.downloads import download
from domainbed_carft.errors import CarftError, TransientError, raise_for
from domainbed_carft.flags import FlagParser

NAMES = [name for name, benchmark in benchmarks.BENCHMARKS.items() if benchmark.sources]


def run(args: argparse.Namespace) -> None:
    """Download the datasets one after another, and print the status of each."""
    raise_for(
        suggestions.unknown("download", name, NAMES) for name in args.datasets if name not in NAMES
    )
    for name in args.datasets:
        print(f"{name}:")
        try:
            report = download(name, Path(args.data_dir))
        except CarftError as error:  # the command line is valid, and a retry can succeed
            raise TransientError(*error.problems) from error
        print(f"{report.status}: {report.images:,} images in {report.root}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = FlagParser(prog="domainbed.scripts.download", description="Download data")
    parser.add_argument("--data_dir", required=True, help="folder for the datasets' folders")
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        default=["TerraIncognita"],  # the only call that upstream's script does not comment out
        help=f"datasets to download (default: TerraIncognita); available: {', '.join(NAMES)}",
    )
    args = parser.parse_args(argv)
    return exit_status("download", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
