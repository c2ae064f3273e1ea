"""The options of the commands on saved runs, without importing torch."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.cli.help_pages import comma_separated
from domainbed_carft.errors import CarftError, is_out_of_memory
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.results.method_names import METHOD_NAMES
from domainbed_carft.runs import BATCH_SIZE, EXPORT_FORMATS

PATH_HELP = "folder of a finished job, or a weights file in it"


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
        help="measure a saved run, or all chosen runs of a sweep: accuracy by class, calibration",
    )
    parser.set_defaults(run=functools.partial(_run, "evaluate"))

    _add_which(parser)
    _add_loading(parser)
    _add_data(parser)
    _add_output_file(parser)
    _add_sweep_flags(parser)

    parser.add_argument(
        "path",
        type=Path,
        metavar="RUN",
        nargs="?",
        help=f"{PATH_HELP}; or output folder of a sweep",
    )
    parser.add_argument(
        "--clip",
        metavar="NAME",
        help="evaluate this CLIP model zero-shot instead of a run; needs --suite. NAME is a model "
        "of OpenAI such as ViT-B/16, open_clip:MODEL/TAG, or a weights file",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for scripts")


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("only for the output folder of a sweep")
    _add_original(group)
    group.add_argument(
        "--select",
        type=comma_separated(METHOD_NAMES),
        action="extend",
        metavar="METHOD,...",
        help="evaluate the runs that these selection methods choose, separated by commas: "
        f"{', '.join(METHOD_NAMES)} (default: the methods that carft collect shows)",
    )
    group.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="number of runs to evaluate at the same time (default: one per GPU, or one per core "
        "without a GPU)",
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
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, or folders with images"
    )
    parser.add_argument(
        "--top",
        type=at_least(1),
        metavar="K",
        help="show the K most likely classes and contexts (default: 3 as text, all as jsonl)",
    )
    parser.add_argument(
        "--format",
        choices=("text", "jsonl"),
        default="text",
        help="print a line of text or of JSON for each image (default: text)",
    )


def _add_wise_ft(commands: Any) -> None:
    parser = commands.add_parser(
        "wise-ft",
        help="interpolate between the weights of the original CLIP model and a saved run; evaluate "
        "the mixtures, and optionally save them",
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
        help="weights of the run in the mixtures, from 0 (the original CLIP model) to 1 (the run) "
        "(default: 0 0.1 ... 1)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        default=["none"],
        metavar="ALPHA",
        help="save the mixed weights of these alphas: all, none, or some of --alphas (default: "
        "none)",
    )


def _add_soup(commands: Any) -> None:
    parser = commands.add_parser(
        "soup", help="average the weights of several saved runs; evaluate and save the averages"
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
        help="folders of finished jobs, or weights files in them; all runs must have the same "
        "dataset, initial CLIP model, prompts, test environments and trial seed",
    )


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="save a run as a CLIP model for clip, open_clip or transformers, with its class head "
        "and a model card",
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
        help="weights file to write, such as NAME.pt. The class head (NAME.head.pt) and the model "
        "card (NAME.json, NAME.md) are written next to it. For a run that started from "
        "open_clip:..., and for transformers, FILE is a folder to write",
    )
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        default="original",
        help="original: the format of the CLIP model that the run started from, for clip or "
        "open_clip (default); transformers: a folder for Hugging Face's CLIPModel",
    )
    parser.add_argument(
        "--half", action="store_true", help="write half precision, like OpenAI's weights"
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN", help=PATH_HELP)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--which",
        choices=tuple(WEIGHTS),
        help="weights to use if RUN is a folder: last is the last step (model.pkl), best is the "
        "checkpoint with the best validation accuracy (model_best.pkl). The default is best if the "
        "job held out environments and has that file, otherwise last",
    )


def _add_original(parser: Any) -> None:
    parser.add_argument(
        "--original",
        metavar="FILE",
        help="CLIP model from which the run started: its weights file or open_clip:MODEL/TAG (not "
        "needed for the embedded model and OpenAI's models)",
    )


def _add_loading(parser: argparse.ArgumentParser) -> None:
    loading = parser.add_argument_group("loading")
    loading.add_argument(
        "--batch-size",
        type=at_least(1),
        default=BATCH_SIZE,
        metavar="N",
        help=f"images per batch (default: {BATCH_SIZE})",
    )
    loading.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="number of processes that load images (default: one per core, or 0 for few images)",
    )
    loading.add_argument(
        "--device", help="cpu, cuda, or a GPU such as cuda:1 (default: the GPU if there is one)"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--suite",
        metavar="NAME",
        help="evaluate on all test sets of this suite, such as imagenet, instead of the splits of "
        "the run's dataset; the test sets are folders in --data_dir",
    )
    data.add_argument(
        "--data_dir",
        help="folder that contains the dataset's folder, or the folder or list of your own dataset "
        "(default: the folder in the run's records)",
    )


def _add_output_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write to this file instead of printing"
    )


def _add_output_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="folder to write the results and the weights to",
    )


def _run(name: str, arguments: argparse.Namespace) -> int | None:
    """Run a command; raise CarftError with a hint if it runs out of memory."""
    from domainbed_carft.cli import runs_output  # torch takes seconds to import

    try:
        return runs_output.COMMANDS[name](arguments)
    except (RuntimeError, MemoryError) as error:
        if not (is_out_of_memory(error) and hasattr(arguments, "batch_size")):
            raise
        raise CarftError(
            f"out of memory with --batch-size {arguments.batch_size}; choose a smaller one or "
            "another --device"
        ) from error


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least ``minimum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {minimum}"
            )
        return int(text)

    return parse
