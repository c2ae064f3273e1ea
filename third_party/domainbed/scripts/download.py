"""Get data sets: `python -m domainbed.scripts.download --help`.

Upstream's command of this name has one flag and its calls in comments; one has to edit the file.
`--datasets` is ours. How a data set is downloaded is up to a plugin (`datasets.DOWNLOADERS`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from domainbed import datasets
from domainbed.lib import errors, names


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.download", description="Download datasets"
    )
    parser.add_argument("--data_dir", required=True, help="folder for the data sets' folders")
    # The one call that is not in a comment upstream.
    default = ["TerraIncognita"]
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        default=default,
        help=f"what to download (default: {', '.join(default)}, as upstream's script does; begins "
        f"without asking); there are: {', '.join(datasets.DOWNLOADERS) or 'none'}",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Download one after another.

    Raises:
        UsageError: nobody knows how to download one of them; nothing is downloaded then.
    """
    problems = [
        names.unknown_name("Way to download the data set", name, datasets.DOWNLOADERS)
        + " MNIST is downloaded by train when it is missing."
        for name in args.datasets
        if name not in datasets.DOWNLOADERS
    ]
    if problems:
        raise errors.UsageError(problems)
    for name in args.datasets:
        print(f"{name}:")
        datasets.DOWNLOADERS[name](args.data_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 after a failure, 2 after a wrong argument."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except errors.UsageError as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    except ValueError as error:  # what a plugin says to a user
        print(f"download: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
