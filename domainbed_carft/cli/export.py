"""The command line of ``carft export``; it loads what it needs when run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any


def add_to(commands: Any) -> None:
    """Add ``export`` to argparse's ``commands``."""
    export = commands.add_parser(
        "export", help="a run as a CLIP that clip and open_clip load, with its head and a card"
    )
    export.add_argument("path", metavar="RUN", type=Path, help="a job's folder, or its weights")
    export.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True,
        help="the weights, NAME.pt; NAME.head.pt, NAME.json and NAME.md are written beside",
    )  # fmt: skip
    export.add_argument(
        "--which", choices=["last", "best"], help="which weights of a folder; default: last"
    )
    export.add_argument(
        "--class_names", type=Path, metavar="FILE",
        help="a name a line, in label order, for a run that does not say its own",
    )  # fmt: skip
    export.add_argument(
        "--original", metavar="FILE",
        help="the CLIP that the run started from, unless it is tiny or one of OpenAI's",
    )  # fmt: skip
    export.add_argument(
        "--half", action="store_true", help="half precision, as OpenAI publishes its own weights"
    )
    export.add_argument("--force", action="store_true", help="overwrite what is there")
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from domainbed_carft.runs import export, saved

    export.require_free(export.Files.of(arguments.output), arguments.force)  # before it takes time
    run = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    files = export.export(
        run,
        arguments.output,
        original=arguments.original,
        half=arguments.half,
        force=arguments.force,
        command=_command(arguments),
    )
    precision = "half precision" if arguments.half else "float32"
    print(f"{files.weights}: {run.name} as a CLIP in OpenAI's format, {precision}, QuickGELU")
    print(f"{files.head}: its class head, which has no place in that format")
    print(f"{files.card}, {files.readme}: what it is, for programs and for people; how to load it")


def _command(arguments: argparse.Namespace) -> str:
    words = ["carft", "export", str(arguments.path), "-o", str(arguments.output)]
    for name in ("which", "class_names", "original"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words + (["--half"] if arguments.half else []))
