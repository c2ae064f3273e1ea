"""The command lines of what is done with saved runs; they load what they need when run."""

from __future__ import annotations

import argparse
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
    which = _shared()
    which.add_argument(
        "--which", choices=tuple(WEIGHTS),
        help="in a folder: model.pkl (last, the default) or model_best.pkl (best in validation)",
    )  # fmt: skip
    run, original = _shared(which), _shared()
    run.add_argument(
        "path", type=Path, metavar="RUN", help="a job's folder, or a weights file in one"
    )
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
        "--data_dir",
        help="folder above the data set's, or your own data folder itself (default: as recorded)",
    )
    output = _shared()
    output.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write here instead of printing"
    )

    suite = _shared()
    suite.add_argument(
        "--suite", metavar="NAME",
        help="on the whole test sets of a suite, such as imagenet, below --data_dir, instead of "
        "on the splits of the run's data set",
    )  # fmt: skip

    evaluate = commands.add_parser(
        "evaluate", parents=[which, suite, data, output],
        help="measure a saved run: accuracy by split and class, calibration",
    )  # fmt: skip
    evaluate.add_argument(
        "path", type=Path, metavar="RUN", nargs="?",
        help="a job's folder, or a weights file in one",
    )  # fmt: skip
    evaluate.add_argument(
        "--clip", metavar="NAME",
        help="with --suite: a CLIP without a run, zero-shot: ViT-B/16, open_clip:..., a file",
    )  # fmt: skip
    evaluate.add_argument(
        "--json", action="store_true", help="print everything as JSON, for scripts"
    )
    evaluate.set_defaults(run=_runner("on_suites"))

    predict = commands.add_parser(
        "predict", parents=[run, loading, output],
        help="predict the class and the context of pictures with a saved run",
    )  # fmt: skip
    predict.add_argument(
        "pictures", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them"
    )
    predict.add_argument(
        "--top", type=_at_least(1), metavar="K",
        help="show the K most likely classes and contexts (default: 3 as text, all as jsonl)",
    )  # fmt: skip
    predict.add_argument(
        "--format", choices=("text", "jsonl"), default="text", help="default: text"
    )
    predict.set_defaults(run=_runner("predict"))

    wise_ft = commands.add_parser(
        "wise-ft", parents=[run, suite, data, original],
        help="interpolate between the original CLIP and a saved run; evaluate and save",
    )  # fmt: skip
    wise_ft.add_argument(
        "--alphas", nargs="+", type=float, default=[n / 10 for n in range(11)], metavar="ALPHA",
        help="values from 0 (the original CLIP) to 1 (the saved run) (default: 0 0.1 ... 1)",
    )  # fmt: skip
    wise_ft.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True,
        help="folder for the results and the weights",
    )  # fmt: skip
    wise_ft.add_argument(
        "--save", nargs="+", default=["all"], metavar="ALPHA",
        help="alphas to save weights for: all (default), none, or some of --alphas",
    )  # fmt: skip
    wise_ft.set_defaults(run=_runner("wise_ft"))

    soup = commands.add_parser(
        "soup", parents=[which, suite, data],
        help="average the weights of several saved runs; evaluate and save",
    )  # fmt: skip
    soup.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN",
        help="jobs' folders, or weights files in them: of one data set, start, words, test "
        "environments and trial seed",
    )  # fmt: skip
    soup.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True,
        help="folder for the results and the weights",
    )  # fmt: skip
    soup.set_defaults(run=_runner("soup"))

    export = commands.add_parser(
        "export", parents=[run, original],
        help="save a run as a CLIP that clip and open_clip load, with head and card",
    )  # fmt: skip
    export.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True,
        help="weights file NAME.pt; NAME.head.pt, NAME.json and NAME.md are written beside it; "
        "of a run that started from open_clip:..., a folder",
    )  # fmt: skip
    export.add_argument(
        "--half", action="store_true", help="use half precision, as OpenAI's own weights do"
    )
    export.add_argument("--force", action="store_true", help="overwrite existing files")
    export.set_defaults(run=_runner("export"))


def _shared(*above: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Arguments of several commands, with those of ``above``."""
    return argparse.ArgumentParser(add_help=False, parents=above)


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
        try:
            return command.run(arguments)
        except RuntimeError as error:  # torch's, of a GPU's memory or of the machine's
            too_little = re.search("out of memory|allocate memory", str(error))
            if not (too_little and hasattr(arguments, "batch_size")):
                raise
            raise CarftError(
                f"out of memory with --batch_size {arguments.batch_size}; "
                "choose a smaller one or another --device"
            ) from error

    return run
