"""Get the data sets: `python -m domainbed.scripts.download --help`.

Upstream's command of this name, with its one flag. Nothing is downloaded here yet: it says which
command does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.download", description="Download datasets"
    )
    parser.add_argument("--data_dir", required=True, help="folder for the data sets' folders")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Say where downloading is done; return exit status 1, because nothing was."""
    args = build_parser().parse_args(argv)
    print(
        "download: nothing was downloaded: this script does not do it. Use the command "
        f"`carft data download`, or put the data sets' folders into {args.data_dir} yourself. "
        "MNIST is downloaded by train when it is missing.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
