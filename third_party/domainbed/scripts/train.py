"""Train one algorithm on one dataset: `python -m domainbed.scripts.train --help`.

The printed text follows upstream file domainbed/scripts/train.py at b93c22a.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import PIL
import torch
import torchvision

from domainbed.lib import (
    misc,
    preparation,
    resume,
    scalar_logs,
    stopping,
    training,
)
from domainbed.lib.command_line import print_error
from domainbed.lib.process_group import ProcessGroup
from domainbed.lib.process_start import is_first, join_process_group
from domainbed.lib.train_arguments import check, describe_memory_limit, parse
from domainbed_carft import escaping
from domainbed_carft.arguments import parse_memory_limit
from domainbed_carft.errors import CarftError, is_disk_full
from domainbed_carft.jobs import job_folder
from domainbed_carft.jobs.job_folder import HeldError, JobFolder, Lock

# Time to wait for the lock, which loader processes of a killed job hold until they end.
PATIENCE_SECONDS = 5.0


def _run(
    args: argparse.Namespace,
    flags: argparse.Namespace,
    lock: Lock | None,
    process_group: ProcessGroup,
) -> None:
    """Check the command line, load the data, and train; `flags` are UNRECORDED_FLAGS."""
    with stopping.StopSignals(process_group) as stop:
        hparams = check(args, flags)  # can take minutes for data on a network
        stop.check()
        _print("Environment:", _versions().items())
        _print("Args:", sorted(vars(args).items()))
        state = resume.load(args.output_dir)
        _print("HParams:", sorted(hparams.changed.items()))
        n_defaults = len(hparams.values) - len(hparams.changed)
        if hparams.changed:
            print(f"\tthe other {n_defaults} have their defaults")
        else:
            print(f"\tall {n_defaults} have their defaults")
        for name in hparams.unread:
            print("\t" + escaping.printable(f"{name} has no effect on {args.algorithm}"))

        memory_limit = parse_memory_limit(flags.image_memory)
        job = preparation.prepare(args, hparams.values, memory_limit)
        if job.plan:
            print(f"Images: {job.plan.describe()}; {describe_memory_limit(memory_limit)}")
        if job.lacks_numba:
            print(
                "Warning: without numba, images load at a third of the speed; to install it, run "
                "pip install numba"
            )
        trainer = training.Trainer(
            job=job, state=state, stop=stop, lock=lock, process_group=process_group
        )

        print(f"Workers: {trainer.n_workers}")
        log_kinds = flags.log if process_group.is_leader else ()
        with scalar_logs.Logs(log_kinds, vars(args), hparams.values) as logs:
            trainer.files.log_to(logs)
            trainer.train()


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
        print("\t" + escaping.printable(f"{name}: {value}"))


@escaping.escaped_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 after a failure, 2 after an invalid argument, 73 if another process trains this job, 74
        if the disk is full, 75 after a signal with the state saved, 130 after Ctrl-C before the
        start or twice.
    """
    command_line = sys.argv[1:] if argv is None else argv
    args, flags = parse(command_line)

    try:
        with _open_folder(args) as lock:
            try:
                with join_process_group(flags.processes, command_line) as process_group:
                    _run(args, flags, lock, process_group)
            except BaseException as error:
                return _report(error)  # while err.txt is open: a sweep reports its last line
    except HeldError as error:  # err.txt belongs to the other process
        print_error("train", error)
        return job_folder.HELD_ELSEWHERE
    except CarftError as error:
        return print_error("train", error)
    except OSError as error:
        print(f"train: {_unusable_folder(args, error)}", file=sys.stderr)
        return job_folder.NO_SPACE if is_disk_full(error) else 1
    return 0


@contextlib.contextmanager
def _open_folder(args: argparse.Namespace) -> Iterator[Lock | None]:
    """Create and lock the job's folder, and copy the block's output to its out.txt and err.txt.

    Only the first process of a job locks and prints; the others print nothing.

    Raises:
        HeldError: another process holds the lock.
        CarftError: the lock cannot be used.
        OSError: the folder cannot be used.
    """
    folder = JobFolder(args.output_dir)
    folder.path.mkdir(parents=True, exist_ok=True)
    if not is_first():
        with (
            open(os.devnull, "w") as silent,
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),  # the first process prints the error
        ):
            yield None
        return

    with (
        folder.claim(PATIENCE_SECONDS, job_folder.get_inherited_descriptor()) as lock,
        misc.tee_output(args.output_dir),
    ):
        yield lock


def _report(error: BaseException) -> int:
    """Print an error on standard error, and return the command's exit status."""
    if isinstance(error, CarftError):
        status = print_error("train", error)
        return job_folder.NO_SPACE if is_disk_full(error) else status

    if isinstance(error, stopping.Stopped):
        print(f"train: stopped by {error}; to resume, rerun the command", file=sys.stderr)
        return job_folder.STOPPED
    if isinstance(error, KeyboardInterrupt):
        print(
            "train: interrupted by Ctrl-C; to resume from the last checkpoint, rerun the command",
            file=sys.stderr,
        )
        return 130

    if not isinstance(error, Exception):
        raise error
    if is_disk_full(error):
        print(f"train: {_full_disk(error)}", file=sys.stderr)
        return job_folder.NO_SPACE
    traceback.print_exception(error)
    return 1


def _full_disk(error: Exception) -> str:
    return f"{error}; free some space, then rerun the command"


def _unusable_folder(args: argparse.Namespace, error: OSError) -> str:
    return f"--output_dir {args.output_dir} cannot be used: {error}"


if __name__ == "__main__":
    sys.exit(main())
