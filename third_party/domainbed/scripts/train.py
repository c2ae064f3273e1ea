"""Train one algorithm on one data set: `python -m domainbed.scripts.train --help`.

Flags, their defaults and the printed text are those of upstream file domainbed/scripts/train.py
at b93c22a; those from `--workers` on are ours, but for the two of saving models.
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
    checkpoints,
    checks,
    members,
    misc,
    picture_batches,
    preparation,
    resume,
    scalar_logs,
    stopping,
    training,
)
from domainbed.lib.image_folders import spelled
from domainbed.lib.usage import tell
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs import folder as job_folder
from domainbed_carft.jobs.folder import Held, JobFolder, Lock
from domainbed_carft.pictures import store

# How long the lock is waited for: a killed run's loaders keep it for some seconds.
PATIENCE_SECONDS = 15.0

# Flags that are no arguments of the run, hence in none of its records.
NO_ARGUMENTS = ("log", "picture_cache", "pictures", "processes", "restart")

# Where a launcher says how all jobs get their pictures, and that all are to evaluate less.
PICTURES_VARIABLE = "DOMAINBED_PICTURES"
CACHE_VARIABLE = "DOMAINBED_PICTURE_CACHE"
SKIP_VARIABLE = "DOMAINBED_SKIP_TRAINING_IN_SPLITS"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.train", description="Domain generalization"
    )
    add, told = parser.add_argument, os.environ.get
    add("--data_dir", help="folder that contains the data sets' folders")
    named = "a name, or a folder of your own"
    add("--dataset", default="RotatedMNIST", type=spelled, help=named)
    add("--algorithm", default="ERM", help="name (default: ERM)")
    add("--task", default=checks.TASKS[0], choices=checks.TASKS)
    add("--hparams", help="JSON object of hyperparameters to set")
    number = {"type": int, "default": 0}
    add("--test_envs", type=int, nargs="*", default=[0], help="without a number: train on all")
    add("--output_dir", default="train_output", help="folder for its files")
    add("--hparams_seed", **number, help="seed of the random hyperparameters (0: the defaults)")
    add("--trial_seed", **number, help="seed of the splits and of the random hyperparameters")
    add("--seed", **number, help="seed of everything else")
    own = "(0 or none: the data set's own)"
    add("--steps", type=int, help=f"steps to train {own}")
    add("--checkpoint_freq", type=int, help=f"steps between checkpoints {own}")
    add("--holdout_fraction", type=float, default=0.2, help="share in out-splits")
    share = "share to take out of a test environment's in-split, as upstream's domain adaptation"
    add("--uda_holdout_fraction", type=float, default=0, help=share)
    loaders = "processes that load data (default: the data set's own number, at most one per CPU)"
    add("--workers", type=int, help=loaders)
    add(
        "--processes",
        type=int,
        default=told(members.VARIABLE, "1"),
        help="processes to train with, each on its slice of every batch and, if there are any, its "
        f"own GPU (default: 1, for all jobs: ${members.VARIABLE}, under torchrun its number)",
    )
    add(
        "--pictures",
        choices=picture_batches.PATHS,
        default=told(PICTURES_VARIABLE, picture_batches.PATHS[0]),
        help="fast: decode, crop and resize bytes, and jitter a batch at once (default); pillow: "
        f"upstream's transforms, from which the fast pictures differ by rounding (for all jobs: "
        f"${PICTURES_VARIABLE})",
    )
    add(
        "--picture_cache",
        metavar="SIZE",
        default=told(CACHE_VARIABLE),
        help="how much of the decoded pictures to keep on a local disk for all jobs of this "
        "machine, such as 8G or 500M; 0 for nothing (default: a quarter of the memory, at most "
        f"8G; nothing under SLURM or on a network file system; for all jobs: ${CACHE_VARIABLE})",
    )
    add(
        "--skip_training_in_splits",
        action="store_true",
        default=told(SKIP_VARIABLE) == "1",
        help="skip accuracies on the training environments' in-splits, which take most of the "
        f"evaluation's time and which no selection uses (for all jobs: ${SKIP_VARIABLE}=1)",
    )
    add("--skip_model_save", action="store_true", help="keep no weights")
    add("--save_model_every_checkpoint", action="store_true")
    add(
        "--keep_weights",
        choices=checkpoints.KEEP,
        default=told(checkpoints.VARIABLE, checkpoints.KEEP[0]),
        help="last: model.pkl; best: model_best.pkl, selected by training-domain validation; "
        f"both (default); or none (for all jobs: ${checkpoints.VARIABLE})",
    )
    anew = "delete state and weights of an earlier run, move its records to results-1.jsonl"
    add("--restart", action="store_true", help=f"start over: {anew}")
    scalar_logs.add_flag(parser)
    return parser


def check(args: argparse.Namespace, own: argparse.Namespace) -> None:
    """Raise a CarftError that lists everything wrong with the command line."""
    unknown_dataset = checks.dataset_problems(args.dataset)
    problems = checks.algorithm_problems(args.algorithm) + unknown_dataset
    if not unknown_dataset:
        problems += checks.test_envs_problems(args.dataset, args.test_envs)
        problems += checks.data_problems(args.dataset, args.data_dir)
    problems += checks.task_problems(args.task)
    problems += checks.hparams_problems(args.hparams, args.algorithm, args.dataset)
    problems += checks.holdout_problems(args.holdout_fraction)
    problems += checks.range_problems("--uda_holdout_fraction", args.uda_holdout_fraction, 0, 1)
    variables = (  # flags that argparse has checked, or else these
        (checkpoints.VARIABLE, args.keep_weights, checkpoints.KEEP),
        (PICTURES_VARIABLE, own.pictures, picture_batches.PATHS),
        (SKIP_VARIABLE, os.environ.get(SKIP_VARIABLE) or "0", ("0", "1")),
    )
    problems += [
        f"{name} is {value!r}, expected {', '.join(valid)}"
        for name, value, valid in variables
        if value not in valid
    ]
    if own.picture_cache is not None:
        problems += checks.refusals(store.size, own.picture_cache)
    for flag in ("steps", "checkpoint_freq", "workers"):
        problems += checks.range_problems(f"--{flag}", getattr(args, flag), 0)
    problems += checks.range_problems("--processes", own.processes, 1)
    problems += checks.range_problems("--seed", args.seed, 0, 2**32)  # numpy's
    problems += scalar_logs.problems(own.log)
    raise_for(problems)


def run(
    args: argparse.Namespace, lock: Lock | None, own: argparse.Namespace, together: members.Members
) -> None:
    """Check, load, train; `own` has the flags of NO_ARGUMENTS."""
    with stopping.StopSignals(together) as stop:
        check(args, own)  # takes minutes where much data lies on a network
        stop.check()
        versions = {
            "Python": sys.version.split(" ")[0],
            "PyTorch": torch.__version__,
            "Torchvision": torchvision.__version__,
            "CUDA": torch.version.cuda,
            "CUDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "NumPy": np.__version__,
            "PIL": PIL.__version__,
        }
        _print("Environment:", versions.items())
        _print("Args:", sorted(vars(args).items()))
        state = None if own.restart else resume.load(args.output_dir)
        hparams = preparation.choose_hparams(args)
        _print("HParams:", sorted(hparams.items()))
        preparation.seed_everything(args.seed)
        dataset, environments = preparation.load_environments(args, hparams)
        wanted = getattr(algorithms.get_algorithm_class(args.algorithm), "wanted_pictures", None)
        ask = wanted and functools.partial(wanted, hparams)
        pictures = picture_batches.choose(own.pictures, own.picture_cache, dataset, ask)
        given = (args, hparams, dataset, environments, state, stop, lock, pictures, together)
        job = training.Run(*given)
        if own.restart and together.leads:  # now that the run can begin
            job.files.begin_anew()
        print(f"Workers: {job.n_workers}")
        with scalar_logs.Logs(own.log if together.leads else (), vars(args), hparams) as logs:
            job.files.log_to(logs)
            job.train()


def _print(title: str, values: Iterable[tuple[str, object]]) -> None:
    print(title)
    for name, value in values:
        print(f"\t{name}: {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 after a failure, 2 after a wrong argument, 73 if another process
    trains this job, 75 if stopped by a signal with its state saved, 130 if interrupted.
    """
    args = build_parser().parse_args(argv)
    own = argparse.Namespace(**{name: vars(args).pop(name) for name in NO_ARGUMENTS})
    folder = JobFolder(args.output_dir)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not members.is_first():
            with (
                open(os.devnull, "w") as silent,
                contextlib.redirect_stdout(silent),
                contextlib.redirect_stderr(silent),  # the first tells what is wrong
            ):
                return _run_and_tell(args, None, own, argv)
        claimed = folder.claim(PATIENCE_SECONDS, job_folder.inherited())
        with claimed as lock, misc.tee_output(args.output_dir):
            return _run_and_tell(args, lock, own, argv)
    except Held as error:  # not into the err.txt of the other
        tell("train", error)
        return job_folder.ELSEWHERE
    except CarftError as error:
        return tell("train", error)
    except OSError as error:
        print(f"train: --output_dir {args.output_dir} cannot be used: {error}", file=sys.stderr)
        return 1


def _run_and_tell(
    args: argparse.Namespace, lock: Lock | None, own: argparse.Namespace, argv: Sequence[str] | None
) -> int:
    """Run, and say what went wrong while err.txt is open: a sweep reports its last line."""
    try:
        words = sys.argv[1:] if argv is None else argv
        with members.joined(own.processes, words, args.output_dir) as together:
            run(args, lock, own, together)
    except CarftError as error:
        return tell("train", error)
    except stopping.Stopped as signal:
        print(f"train: stopped by {signal}; to resume, rerun the command", file=sys.stderr)
        return job_folder.STOPPED
    except KeyboardInterrupt:
        advice = "to resume from the last checkpoint, rerun the command"
        print(f"train: interrupted by Ctrl-C; {advice}", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
