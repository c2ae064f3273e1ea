"""The command lines of what is done with saved runs; they load what they need when run."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.cli.table_options import some_of
from domainbed_carft.errors import CarftError, is_out_of_memory
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.results.method_names import METHOD_NAMES
from domainbed_carft.runs import BATCH_SIZE

PATH_HELP = "a job's folder, or a weights file in one"


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    _add_evaluate(commands)
    _add_predict(commands)
    _add_wise_ft(commands)
    _add_soup(commands)
    _add_export(commands)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a saved run, or all selected runs of a sweep: accuracy by class, calibration",
    )
    parser.set_defaults(run=functools.partial(_run, "evaluate"))

    _add_which(parser)
    _add_loading(parser)
    _add_data(parser)
    _add_original(parser)
    _add_output_file(parser)
    _add_sweep_flags(parser)

    parser.add_argument(
        "path",
        type=Path,
        metavar="RUN",
        nargs="?",
        help=f"{PATH_HELP}; or the output folder of a sweep",
    )
    parser.add_argument(
        "--clip",
        metavar="NAME",
        help="with --suite: a CLIP without a run, zero-shot: ViT-B/16, open_clip:..., a file",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of a sweep")
    group.add_argument(
        "--select",
        type=some_of(METHOD_NAMES),
        action="extend",
        metavar="METHOD,...",
        help=f"selection methods, separated by commas: {', '.join(METHOD_NAMES)} (default: those "
        "of the tables)",
    )
    group.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="runs at a time (default: one on each GPU, else one per core)",
    )


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", help="predict the class and the context of images with a saved run"
    )
    parser.set_defaults(run=functools.partial(_run, "predict"))

    _add_which(parser)
    _add_path(parser)
    _add_loading(parser)
    _add_output_file(parser)

    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders of them"
    )
    parser.add_argument(
        "--top",
        type=at_least(1),
        metavar="K",
        help="show the K most likely classes and contexts (default: 3 as text, all as jsonl)",
    )
    parser.add_argument("--format", choices=("text", "jsonl"), default="text", help="default: text")


def _add_wise_ft(commands: Any) -> None:
    parser = commands.add_parser(
        "wise-ft", help="interpolate between the original CLIP and a saved run; evaluate and save"
    )
    parser.set_defaults(run=functools.partial(_run, "wise-ft"))

    _add_which(parser)
    _add_path(parser)
    _add_loading(parser)
    _add_data(parser)
    _add_original(parser)
    _add_output_folder(parser)

    parser.add_argument(
        "--alphas",
        nargs="+",
        type=float,
        default=[n / 10 for n in range(11)],
        metavar="ALPHA",
        help="values from 0 (the original CLIP) to 1 (the saved run) (default: 0 0.1 ... 1)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        default=["none"],
        metavar="ALPHA",
        help="alphas to save weights for: none (default), all, or some of --alphas",
    )


def _add_soup(commands: Any) -> None:
    parser = commands.add_parser(
        "soup", help="average the weights of several saved runs; evaluate and save"
    )
    parser.set_defaults(run=functools.partial(_run, "soup"))
    _add_which(parser)
    _add_loading(parser)
    _add_data(parser)
    _add_output_folder(parser)

    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="jobs' folders, or weights files in them; all must share dataset, initial CLIP, "
        "prompts, test environments and trial seed",
    )


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="save a run as a CLIP that clip and open_clip load, with head and card"
    )
    parser.set_defaults(run=functools.partial(_run, "export"))

    _add_which(parser)
    _add_path(parser)
    _add_original(parser)

    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        required=True,
        help="weights file NAME.pt; NAME.head.pt, NAME.json and NAME.md are written beside it; "
        "of a run that started from open_clip:..., a folder",
    )
    parser.add_argument(
        "--half", action="store_true", help="use half precision, as OpenAI's own weights do"
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN", help=PATH_HELP)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--which",
        choices=tuple(WEIGHTS),
        help="in a folder: model.pkl (last) or model_best.pkl (best in validation); default: best "
        "if the job left environments out and has it, else last",
    )


def _add_original(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--original",
        metavar="FILE",
        help="the CLIP that the run started from, its file or open_clip:... (not needed for tiny "
        "or OpenAI's)",
    )


def _add_loading(parser: argparse.ArgumentParser) -> None:
    loading = parser.add_argument_group("loading")
    loading.add_argument(
        "--batch_size",
        type=at_least(1),
        default=BATCH_SIZE,
        metavar="N",
        help=f"images per batch (default: {BATCH_SIZE})",
    )
    loading.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="processes that load images (default: one per core, or none for few images)",
    )
    loading.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--suite",
        metavar="NAME",
        help="on the whole test sets of a suite, such as imagenet, below --data_dir, instead of "
        "on the splits of the run's dataset",
    )
    data.add_argument(
        "--data_dir",
        help="folder above the dataset's, or your own data folder itself (default: as recorded)",
    )


def _add_output_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write here instead of printing"
    )


def _add_output_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="folder for the results and the weights",
    )


def _run(name: str, arguments: argparse.Namespace) -> int | None:
    """Run a command; raises CarftError with a hint where the memory is too small."""
    from domainbed_carft.cli import run_printing  # torch takes seconds to import

    try:
        return run_printing.COMMANDS[name](arguments)
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) and hasattr(arguments, "batch_size")):
            raise
        raise CarftError(
            f"out of memory with --batch_size {arguments.batch_size}; choose a smaller one or "
            "another --device"
        ) from error


def at_least(minimum: int) -> Callable[[str], int]:
    """A parser of whole numbers that are not below ``minimum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {minimum}"
            )
        return int(text)

    return parse
