"""The command lines of what is done with saved runs; they load what they need when run."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.text import shown

# As in train, which a test compares: the last bits of a logit depend on the batch around it.
BATCH_SIZE = 64
ALPHAS = tuple(tenths / 10 for tenths in range(11))


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    _add_evaluate(commands)
    _add_predict(commands)
    _add_wise_ft(commands)
    _add_export(commands)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate", help="measure a saved run: accuracy by split and class, calibration"
    )
    _common(parser)
    _of_data(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write here instead of printing"
    )
    parser.set_defaults(run=_runner("evaluate"))


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", help="classify pictures and their contexts with a saved run"
    )
    _common(parser)
    parser.add_argument(
        "pictures", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them"
    )
    parser.add_argument(
        "--top", type=_at_least(1), metavar="K",
        help="show the K most likely classes and contexts (default: 3 as text, all as jsonl)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("text", "jsonl"), default="text", help="default: text")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write here instead of printing"
    )
    parser.set_defaults(run=_runner("predict"))


def _add_wise_ft(commands: Any) -> None:
    parser = commands.add_parser(
        "wise-ft", help="interpolate between the original CLIP and a saved run; evaluate and save"
    )
    _common(parser)
    _of_data(parser)
    parser.add_argument(
        "--alphas", nargs="+", type=float, default=list(ALPHAS), metavar="ALPHA",
        help="share of the run: 0 is the original CLIP, 1 the run (default: 0 0.1 ... 1)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True,
        help="folder for the results and the weights",
    )  # fmt: skip
    _original(parser)
    parser.add_argument(
        "--save", nargs="+", default=["all"], metavar="ALPHA",
        help="alphas to save weights for: all (default), none, or some of --alphas",
    )  # fmt: skip
    parser.set_defaults(run=_runner("wise_ft"))


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="save a run as a CLIP that clip and open_clip load, with head and card"
    )
    _of_run(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True,
        help="weights file NAME.pt; NAME.head.pt, NAME.json and NAME.md are written beside it",
    )  # fmt: skip
    _original(parser)
    parser.add_argument(
        "--half", action="store_true", help="use half precision, as OpenAI's own weights do"
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.set_defaults(run=_export)


def _of_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="RUN", help="a job's folder, or a weights file in one"
    )
    parser.add_argument(
        "--which", choices=tuple(WEIGHTS),
        help="in a folder: model.pkl (last, the default) or model_best.pkl (best in validation)",
    )  # fmt: skip


def _common(parser: argparse.ArgumentParser) -> None:
    _of_run(parser)
    parser.add_argument(
        "--batch_size",
        type=_at_least(1),
        default=BATCH_SIZE,
        metavar="N",
        help=f"pictures per batch (default: {BATCH_SIZE})",
    )
    parser.add_argument(
        "--workers", type=_at_least(0), metavar="N",
        help="processes that load pictures (default: one per core, or none for few pictures)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")


def _of_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir",
        help="folder that contains the data, or your own moved data folder (default: as recorded)",
    )


def _original(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--original", metavar="FILE",
        help="the CLIP that the run started from, if neither tiny nor one of OpenAI's",
    )  # fmt: skip


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {least}"
            )
        return int(text)

    return parse


def _runner(module: str) -> Callable[[argparse.Namespace], int | None]:
    def run(arguments: argparse.Namespace) -> int | None:
        command: Any = importlib.import_module(f"domainbed_carft.runs.{module}")
        import torch

        try:
            status: int | None = command.run(arguments)
        except torch.cuda.OutOfMemoryError as error:
            raise CarftError(
                f"the GPU has too little memory for batches of {arguments.batch_size} pictures; "
                "give a smaller --batch_size, or --device cpu"
            ) from error
        return status

    return run


def _export(arguments: argparse.Namespace) -> None:
    from domainbed_carft.runs import export, saved

    export.require_free(export.Files.of(arguments.output), arguments.force)  # before it takes time
    run = saved.open_run(arguments.path, arguments.which)
    files = export.export(
        run,
        arguments.output,
        original=arguments.original,
        half=arguments.half,
        force=arguments.force,
    )
    precision = "half precision" if arguments.half else "float32"
    what = f"{run.args['algorithm']} on {run.args['dataset']}, {run.path.name}"
    print(shown(f"{files.weights}: {what} as a CLIP in OpenAI's format, {precision}, QuickGELU"))
    print(shown(f"{files.head}: its class head, which has no place in that format"))
    print(shown(f"{files.card}, {files.readme}: the card, with how to load the file"))
