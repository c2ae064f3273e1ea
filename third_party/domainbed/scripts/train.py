"""Train one algorithm on one data set: `python -m domainbed.scripts.train --help`.

Its printed text is that of upstream file domainbed/scripts/train.py at b93c22a.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

import numpy as np
import PIL
import torch
import torchvision

from domainbed import algorithms
from domainbed.lib import (
    misc,
    picture_batches,
    preparation,
    resume,
    scalar_logs,
    stopping,
    training,
)
from domainbed.lib.command_line import print_error
from domainbed.lib.process_group import ProcessGroup
from domainbed.lib.process_start import is_first, join_process_group
from domainbed.lib.train_arguments import UNRECORDED_FLAGS, build_parser, check
from domainbed_carft import text
from domainbed_carft.errors import CarftError, is_no_space
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs.folder import Held, JobFolder, Lock

# How long the lock is waited for: a killed run's loaders keep it for some seconds.
PATIENCE_SECONDS = 15.0


def run(
    args: argparse.Namespace,
    lock: Lock | None,
    flags: argparse.Namespace,
    process_group: ProcessGroup,
) -> None:
    """Check, load, train; ``flags`` are UNRECORDED_FLAGS."""
    with stopping.StopSignals(process_group) as stop:
        overrides = check(args, flags)  # takes minutes where much data lies on a network
        stop.check()
        _print("Environment:", _versions().items())
        _print("Args:", sorted(vars(args).items()))
        state = None if flags.restart else resume.load(args.output_dir)
        stored = state["hyperparameters"] if state else None
        hparams = preparation.choose_hparams(args, overrides, stored)
        changed_hparams = preparation.changed_hparams(args, overrides, hparams)
        _print("HParams:", sorted(changed_hparams.items()))
        print(f"\t{len(hparams) - len(changed_hparams)} others have their defaults")

        preparation.seed_everything(args.seed)
        dataset, environments = preparation.load_environments(args, hparams)
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        pictures = picture_batches.choose(
            flags.pictures,
            flags.picture_cache,
            dataset,
            ask_model=functools.partial(algorithm_class.wanted_pictures, hparams),
        )
        preparation.resolve_hparams(args, dataset, hparams)
        job = training.Run(
            args=args,
            hparams=hparams,
            dataset=dataset,
            environments=environments,
            state=state,
            stop=stop,
            lock=lock,
            pictures=pictures,
            process_group=process_group,
        )

        if flags.restart and process_group.is_leader:  # now that the run can begin
            job.files.begin_anew()
        print(f"Workers: {job.n_workers}")
        log_kinds = flags.log if process_group.is_leader else ()
        with scalar_logs.Logs(log_kinds, vars(args), hparams) as logs:
            job.files.log_to(logs)
            job.train()


def _versions() -> dict[str, object]:
    return {
        "Python": sys.version.split(" ")[0],
        "PyTorch": torch.__version__,
        "Torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "CUDNN": torch.backends.cudnn.version(),
        "NumPy": np.__version__,
        "PIL": PIL.__version__,
    }


def _print(title: str, values: Iterable[tuple[str, object]]) -> None:
    print(title)
    for name, value in values:
        print("\t" + text.printable(f"{name}: {value}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 after a failure, 2 after a wrong argument, 73 if another process
    trains this job, 74 if the disk is full, 75 if stopped by a signal with its state saved, 130 if
    interrupted.
    """
    args = build_parser().parse_args(argv)
    flags = argparse.Namespace()
    for name in UNRECORDED_FLAGS:
        setattr(flags, name, vars(args).pop(name))

    folder = JobFolder(args.output_dir)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not is_first():
            with (
                open(os.devnull, "w") as silent,
                contextlib.redirect_stdout(silent),
                contextlib.redirect_stderr(silent),  # the first tells what is wrong
            ):
                return _run_and_report(args, None, flags, argv)

        with (
            folder.claim(PATIENCE_SECONDS, job_folder.inherited()) as lock,
            misc.tee_output(args.output_dir),
        ):
            return _run_and_report(args, lock, flags, argv)
    except Held as error:  # not into the err.txt of the other
        print_error("train", error)
        return job_folder.HELD_ELSEWHERE
    except CarftError as error:
        return print_error("train", error)
    except OSError as error:
        print(f"train: --output_dir {args.output_dir} cannot be used: {error}", file=sys.stderr)
        return job_folder.NO_SPACE if is_no_space(error) else 1


def _run_and_report(
    args: argparse.Namespace,
    lock: Lock | None,
    flags: argparse.Namespace,
    argv: Sequence[str] | None,
) -> int:
    """Run, and say what went wrong while err.txt is open: a sweep reports its last line."""
    try:
        command_line = sys.argv[1:] if argv is None else argv
        with join_process_group(flags.processes, command_line, args.output_dir) as process_group:
            run(args, lock, flags, process_group)
    except CarftError as error:
        status = print_error("train", error)
        return job_folder.NO_SPACE if is_no_space(error) else status
    except stopping.Stopped as signal:
        print(f"train: stopped by {signal}; to resume, rerun the command", file=sys.stderr)
        return job_folder.STOPPED
    except KeyboardInterrupt:
        print(
            "train: interrupted by Ctrl-C; to resume from the last checkpoint, rerun the command",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        if is_no_space(error):
            print(f"train: {error}; free some space, then rerun the command", file=sys.stderr)
            return job_folder.NO_SPACE
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
