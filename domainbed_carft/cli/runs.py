"""The options of the commands on saved runs, without importing torch."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.arguments import MAX_BATCH_SIZE, MAX_WORKERS
from domainbed_carft.cli.help_pages import comma_separated
from domainbed_carft.errors import CarftError, is_out_of_memory
from domainbed_carft.flags import FlagParser
from domainbed_carft.jobs.job_folder import RECORDS, WEIGHTS
from domainbed_carft.jobs.manifest import SWEEP_FILE
from domainbed_carft.jobs.records import DEPTH
from domainbed_carft.results.rule_names import RULE_NAMES
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
    """Add the command, whose modes have parsers with only the flags that they use."""
    path, which, loading, clip, original, selection, jobs = (
        argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(7)
    )
    path.add_argument(
        "path",
        type=Path,
        metavar="RUN",
        nargs="?",
        help=f"{PATH_HELP}; or output folder of a sweep",
    )
    _add_which(which)
    _add_loading(loading)
    _add_data(loading)
    _add_output_file(loading)
    loading.add_argument(
        "--json", action="store_true", help="print everything as JSON, for scripts"
    )
    clip.add_argument(
        "--clip",
        metavar="NAME",
        help="evaluate this CLIP model zero-shot instead of a run; needs --suite. NAME is a model "
        "of OpenAI such as ViT-B/16, open_clip:MODEL/TAG, or a weights file",
    )
    _add_original(original.add_argument_group("only for a sweep's output folder, or with --suite"))
    _add_sweep_flags(selection, jobs)

    help_line = "measure a saved run, or all chosen runs of a sweep: accuracy by class, calibration"
    everything = [which, loading, original, selection, jobs, path, clip]
    parser = commands.add_parser("evaluate", help=help_line, parents=everything)
    parser.set_defaults(run=functools.partial(_run, "evaluate-run"))  # reports a missing path
    modes: dict[str, argparse.ArgumentParser] = {}
    for name, title, parents in (
        ("run", "a run", [path, which, loading]),
        ("run-on-suite", "a run with --suite", [path, which, original, loading]),
        ("clip", "a CLIP model", [clip, loading]),
        ("sweep", "a sweep's output folder", [path, original, selection, jobs, loading]),
        ("sweep-on-suite", "a sweep's output folder with --suite", [path, original, jobs, loading]),
    ):
        mode = FlagParser(prog=parser.prog, description=title, parents=parents)
        mode.set_defaults(run=functools.partial(_run, f"evaluate-{name}"))
        modes[name] = mode
    parser.choose_mode = lambda arguments: modes.get(_choose_mode(arguments))


def _choose_mode(arguments: argparse.Namespace) -> str:
    """Return the kind of weights that `carft evaluate` is to measure, or "" if it is unknown."""
    if arguments.clip is not None:
        return "clip"
    if arguments.path is None or not os.path.exists(arguments.path):
        return ""
    kind = "sweep" if _is_sweep_folder(arguments.path) else "run"
    return f"{kind}-on-suite" if arguments.suite else kind


def _is_sweep_folder(path: Path) -> bool:
    """Return True if a path is the output folder of a sweep, not the folder of a job."""
    patterns = ["*/" * levels + RECORDS for levels in range(1, DEPTH + 1)]
    with contextlib.suppress(OSError):  # the command reports an unreadable folder
        if any((path / name).exists() for name in (RECORDS, *WEIGHTS.values())):
            return False
        return (path / SWEEP_FILE).exists() or any(any(path.glob(pattern)) for pattern in patterns)
    return False


def _add_sweep_flags(selection: argparse.ArgumentParser, jobs: argparse.ArgumentParser) -> None:
    title = "only for the output folder of a sweep"
    selection.add_argument_group(title).add_argument(
        "--select",
        type=comma_separated(RULE_NAMES),
        action="extend",
        metavar="RULE,...",
        help="evaluate the runs that these selection rules choose, separated by commas: "
        f"{', '.join(RULE_NAMES)} (default: the rules that carft collect shows)",
    )
    jobs.add_argument_group(title).add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="number of runs to evaluate at the same time (default: one per GPU, or one per core "
        "without a GPU)",
    )


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", run=_run, help="predict the class and the context of images with a saved run"
    )

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
        run=_run,
        help="interpolate between the weights of the original CLIP model and a saved run; evaluate "
        "the mixtures, and optionally save them",
    )

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
        "soup",
        run=_run,
        help="average the weights of several saved runs; evaluate and save the averages",
    )
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
        run=_run,
        help="save a run as a CLIP model for clip, open_clip or transformers, with its class head "
        "and a model card",
    )

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
        type=at_least(1, MAX_BATCH_SIZE),
        default=BATCH_SIZE,
        metavar="N",
        help=f"images per batch (default: {BATCH_SIZE})",
    )
    loading.add_argument(
        "--workers",
        type=at_least(0, MAX_WORKERS),
        metavar="N",
        help="number of processes that load images (default: one per core, or 0 for few images)",
    )
    loading.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, or a GPU such as cuda:1 (default: the GPU if there is one)",
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
        metavar="DIR",
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


def at_least(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least ``minimum``, up to a ``maximum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= maximum:
            limit = f" and at most {maximum}" if maximum < math.inf else ""
            raise argparse.ArgumentTypeError(
                f"{text!r}; expected a whole number of at least {minimum}{limit}"
            )
        return int(text)

    return parse
