"""The command lines of what is done with saved runs; they load what they need when run."""

from __future__ import annotations

import argparse
import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import WEIGHTS

# As in train, which a test compares: the last bits of a logit depend on the batch around it.
BATCH_SIZE = 64


def add_to(commands: Any) -> None:
    """Add the commands to argparse's ``commands``."""
    file = "a job's folder, or a weights file in one"
    which = _shared()
    which.add_argument(
        "--which", choices=tuple(WEIGHTS),
        help="in a folder: model.pkl (last) or model_best.pkl (best in validation); default: best "
        "if the job left environments out and has it, else last",
    )  # fmt: skip
    run, original = _shared(which), _shared()
    run.add_argument("path", type=Path, metavar="RUN", help=file)
    original.add_argument(
        "--original", metavar="FILE",
        help="the CLIP that the run started from, its file or open_clip:... (not needed for tiny "
        "or OpenAI's)",
    )  # fmt: skip
    loading = _shared()
    loading.add_argument(
        "--batch_size", type=_at_least(1), default=BATCH_SIZE, metavar="N",
        help=f"pictures per batch (default: {BATCH_SIZE})",
    )  # fmt: skip
    loading.add_argument(
        "--workers", type=_at_least(0), metavar="N",
        help="processes that load pictures (default: one per core, or none for few pictures)",
    )  # fmt: skip
    loading.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    data = _shared(loading)
    data.add_argument(
        "--suite", metavar="NAME",
        help="on the whole test sets of a suite, such as imagenet, below --data_dir, instead of "
        "on the splits of the run's data set",
    )  # fmt: skip
    data.add_argument(
        "--data_dir",
        help="folder above the data set's, or your own data folder itself (default: as recorded)",
    )
    output, folder = _shared(), _shared()
    written = "write here instead of printing"
    output.add_argument("-o", "--output", type=Path, metavar="FILE", help=written)
    written = "folder for the results and the weights"
    folder.add_argument("-o", "--output", type=Path, metavar="FOLDER", required=True, help=written)

    def command(name: str, module: str, about: str, *parents: argparse.ArgumentParser) -> Any:
        parser = commands.add_parser(name, parents=parents, help=about)
        parser.set_defaults(run=functools.partial(_run, module))
        return parser.add_argument

    about = "measure a saved run: accuracy by split and class, calibration"
    add = command("evaluate", "suite_evaluation", about, which, data, output)
    add("path", type=Path, metavar="RUN", nargs="?", help=file)
    add("--clip", metavar="NAME",
        help="with --suite: a CLIP without a run, zero-shot: ViT-B/16, open_clip:..., a file",
    )  # fmt: skip
    add("--json", action="store_true", help="print everything as JSON, for scripts")

    about = "predict the class and the context of pictures with a saved run"
    add = command("predict", "predict", about, run, loading, output)
    add("pictures", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them")
    add("--top", type=_at_least(1), metavar="K",
        help="show the K most likely classes and contexts (default: 3 as text, all as jsonl)",
    )  # fmt: skip
    add("--format", choices=("text", "jsonl"), default="text", help="default: text")

    about = "interpolate between the original CLIP and a saved run; evaluate and save"
    add = command("wise-ft", "wise_ft", about, run, data, original, folder)
    add("--alphas", nargs="+", type=float, default=[n / 10 for n in range(11)], metavar="ALPHA",
        help="values from 0 (the original CLIP) to 1 (the saved run) (default: 0 0.1 ... 1)",
    )  # fmt: skip
    add("--save", nargs="+", default=["none"], metavar="ALPHA",
        help="alphas to save weights for: none (default), all, or some of --alphas",
    )  # fmt: skip

    about = "average the weights of several saved runs; evaluate and save"
    add = command("soup", "soup", about, which, data, folder)
    add("paths", nargs="+", type=Path, metavar="RUN",
        help="jobs' folders, or weights files in them: of one data set, start, words, test "
        "environments and trial seed",
    )  # fmt: skip

    about = "save a run as a CLIP that clip and open_clip load, with head and card"
    add = command("export", "export", about, run, original)
    add("-o", "--output", type=Path, metavar="FILE", required=True,
        help="weights file NAME.pt; NAME.head.pt, NAME.json and NAME.md are written beside it; "
        "of a run that started from open_clip:..., a folder",
    )  # fmt: skip
    add("--half", action="store_true", help="use half precision, as OpenAI's own weights do")
    add("--force", action="store_true", help="overwrite existing files")


def _shared(*above: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Arguments of several commands, with those of ``above``."""
    return argparse.ArgumentParser(add_help=False, parents=above)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            told = f"{text!r}; expected a whole number of at least {least}"
            raise argparse.ArgumentTypeError(told)
        return int(text)

    return parse


def _run(module: str, arguments: argparse.Namespace) -> int | None:
    command: Any = importlib.import_module(f"domainbed_carft.runs.{module}")
    try:
        return command.run(arguments)
    except RuntimeError as error:  # torch's, of a GPU's memory or of the machine's
        too_little = re.search("out of memory|allocate memory", str(error))
        if not (too_little and hasattr(arguments, "batch_size")):
            raise
        raise CarftError(
            f"out of memory with --batch_size {arguments.batch_size}; choose a smaller one or "
            "another --device"
        ) from error
