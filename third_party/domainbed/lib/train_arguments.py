"""The command line of `train`: its flags, their defaults, and what is checked before it loads.

Flags and defaults are those of upstream file domainbed/scripts/train.py at b93c22a; those from
`--workers` on are ours, but for the two of saving models.
"""

from __future__ import annotations

import argparse
from typing import Any

from domainbed.lib import checkpoints, checks, image_memory, scalar_logs
from domainbed_carft import process_variables
from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.errors import CarftError, raise_for

# Flags that do not change what is trained, hence in no record.
UNRECORDED_FLAGS = ("log", "image_memory", "processes")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.train", description="Domain generalization"
    )
    add = parser.add_argument

    add("--data_dir", help="folder that contains the datasets' folders")
    add(
        "--dataset",
        default="RotatedMNIST",
        type=shortest_path,
        help="a name, or a folder of your own",
    )
    add("--algorithm", default="ERM", help="name (default: ERM)")
    add("--task", default=checks.TASKS[0], choices=checks.TASKS)
    add("--hparams", help="JSON object of hyperparameters to set")
    add("--test_envs", type=int, nargs="*", default=[0], help="without a number: train on all")
    add("--output_dir", default="train_output", help="folder for its files")
    add(
        "--hparams_seed",
        type=int,
        default=0,
        help="seed of the random hyperparameters (0: the defaults)",
    )
    add(
        "--trial_seed",
        type=int,
        default=0,
        help="seed of the splits and of the random hyperparameters",
    )
    add("--seed", type=int, default=0, help="seed of everything else")
    add("--steps", type=int, help="steps to train (0 or none: the dataset's own)")
    add(
        "--checkpoint_freq",
        type=int,
        help="steps between checkpoints (0 or none: the dataset's own)",
    )
    add("--holdout_fraction", type=float, default=0.2, help="share in out-splits")
    add(
        "--uda_holdout_fraction",
        type=float,
        default=0,
        help="share to take out of a test environment's in-split, as upstream's domain adaptation",
    )

    add(
        "--workers",
        type=int,
        help="processes that load data (default: the dataset's own number, at most one per CPU)",
    )
    add(
        "--processes",
        type=int,
        default=process_variables.PROCESSES.read("1"),
        help="processes to train with, each on its slice of every batch and, if there are any, its "
        f"own GPU (default: 1, for all jobs: ${process_variables.PROCESSES.name}, under torchrun "
        "its number)",
    )
    add(
        "--image_memory",
        metavar="SIZE",
        default=process_variables.IMAGE_MEMORY.read() or None,
        help="how much memory evaluation images may stay in, those of which nothing is drawn, "
        "such as 8G or 500M; 0 for none (default: a quarter of what the job may use; for all "
        f"jobs: ${process_variables.IMAGE_MEMORY.name})",
    )
    add(
        "--skip_training_in_splits",
        action="store_true",
        default=process_variables.SKIP_TRAINING_IN_SPLITS.read() == "1",
        help="skip accuracies on the training environments' in-splits, which take most of the "
        "evaluation's time and which no selection uses (for all jobs: "
        f"${process_variables.SKIP_TRAINING_IN_SPLITS.name}=1)",
    )
    add("--skip_model_save", action="store_true", help="keep no weights")
    add("--save_model_every_checkpoint", action="store_true")
    add(
        "--keep_weights",
        choices=checkpoints.KEEP,
        default=process_variables.KEEP_WEIGHTS.read(checkpoints.KEEP[0]),
        help="last: model.pkl; best: model_best.pkl, selected by training-domain validation; "
        f"both (default); or none (for all jobs: ${process_variables.KEEP_WEIGHTS.name})",
    )
    scalar_logs.add_flag(parser)
    return parser


def check(args: argparse.Namespace, flags: argparse.Namespace) -> dict[str, Any]:
    """Return what --hparams sets; raise a CarftError of everything wrong with the command line.

    ``flags`` are UNRECORDED_FLAGS, ``args`` all others.
    """
    overrides: dict[str, Any] = {}
    unknown_dataset = checks.dataset_problems(args.dataset)
    problems = [*checks.algorithm_problems(args.algorithm), *unknown_dataset]
    if not unknown_dataset:
        problems += checks.test_envs_problems(args.dataset, args.test_envs)
        problems += checks.data_problems(args.dataset, args.data_dir)
    problems += checks.task_problems(args.task)
    try:
        overrides = checks.parse_hparams(args.hparams)
        problems += checks.hparams_problems(overrides, args.algorithm, args.dataset, args.steps)
    except CarftError as error:
        problems += error.problems
    problems += checks.holdout_problems(args.holdout_fraction)
    problems += checks.range_problems("--uda_holdout_fraction", args.uda_holdout_fraction, 0, 1)

    skip = process_variables.SKIP_TRAINING_IN_SPLITS
    defaults = (  # of flags whose values argparse has checked
        (process_variables.KEEP_WEIGHTS, args.keep_weights, checkpoints.KEEP),
        (skip, skip.read() or "0", ("0", "1")),
    )
    problems += [
        f"{variable.name} is {value!r}, expected {', '.join(valid)}"
        for variable, value, valid in defaults
        if value not in valid
    ]

    problems += checks.collect_problems(image_memory.memory_limit, flags.image_memory)
    for flag in ("steps", "checkpoint_freq", "workers"):
        problems += checks.range_problems(f"--{flag}", getattr(args, flag), 0)
    problems += checks.range_problems("--processes", flags.processes, 1)
    problems += checks.range_problems("--seed", args.seed, 0, 2**32)  # numpy's
    problems += scalar_logs.problems(flags.log)
    raise_for(problems)
    return overrides
