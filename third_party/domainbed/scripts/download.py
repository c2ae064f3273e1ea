"""Download datasets: `python -m domainbed.scripts.download --help`.

Upstream's script has its calls in comments, so users edit the file; `--datasets` is ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed.lib.command_line import exit_status
from domainbed_carft import text
from domainbed_carft.data import benchmarks
from domainbed_carft.data.download import download
from domainbed_carft.errors import CarftError, TransientError, raise_for

NAMES = [name for name, benchmark in benchmarks.BENCHMARKS.items() if benchmark.sources]


def run(args: argparse.Namespace) -> None:
    """Download the datasets one after another, and print the verdict on each."""
    raise_for(text.unknown("download", name, NAMES) for name in args.datasets if name not in NAMES)
    for name in args.datasets:
        print(f"{name}:")
        try:
            report = download(name, Path(args.data_dir))
        except CarftError as error:  # rightly asked for
            raise TransientError(*error.problems) from error
        print(f"{report.status}: {report.images:,} images in {report.root}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="domainbed.scripts.download", description="Download data")
    parser.add_argument("--data_dir", required=True, help="folder for the datasets' folders")
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        default=["TerraIncognita"],  # the one call that is not in a comment upstream
        help=f"datasets to download (default: TerraIncognita); available: {', '.join(NAMES)}",
    )
    args = parser.parse_args(argv)
    return exit_status("download", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
