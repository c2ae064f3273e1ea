"""The command line of `train`: flags, defaults, and checks before anything is loaded.

Flags and defaults up to `--uda_holdout_fraction`, and the flags `--skip_model_save` and
`--save_model_every_checkpoint`, equal those of upstream file domainbed/scripts/train.py at b93c22a.
The others are additions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from domainbed import algorithms, datasets
from domainbed.lib import checkpoints, checks, scalar_logs
from domainbed_carft import process_variables
from domainbed_carft.arguments import MAX_WORKERS, parse_memory_limit
from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.errors import CarftError, collect_problems, raise_for
from domainbed_carft.flags import FlagParser
from domainbed_carft.jobs.hparams import ResolvedHparams, get_draw_seed

# Flags that do not change the results, so they are not recorded.
UNRECORDED_FLAGS = ("log", "image_memory", "processes")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = FlagParser(prog="domainbed.scripts.train", description="Domain generalization")
    add = parser.add_argument

    add("--data_dir", metavar="DIR", help="folder that contains the datasets' folders")
    add(
        "--dataset",
        metavar="NAME|PATH",
        default="RotatedMNIST",
        type=shortest_path,
        help="name of a dataset, or path of your own folder environment/class/image, or of a CSV "
        "file with the columns path, environment and class",
    )
    add("--algorithm", metavar="NAME", default="ERM", help="name of the algorithm (default: ERM)")
    add(
        "--task",
        default=checks.TASKS[0],
        choices=checks.TASKS,
        help="only domain_generalization is included",
    )
    add("--hparams", metavar="JSON", help="JSON object of hyperparameters to set")
    add(
        "--test_envs",
        metavar="ENV",
        nargs="*",
        default=[0],
        help="numbers or names of the environments to hold out (default: 0); without any, train on "
        "all",
    )
    add("--output_dir", metavar="DIR", default="train_output", help="folder for the job's files")
    add(
        "--hparams_seed",
        metavar="N",
        type=int,
        default=0,
        help="seed of random hyperparameters (default: 0, which uses the default hyperparameters)",
    )
    add(
        "--trial_seed",
        metavar="N",
        type=int,
        default=0,
        help="seed of the splits and of random hyperparameters (default: 0)",
    )
    add(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="seed of all other random numbers (default: 0)",
    )
    add(
        "--steps",
        metavar="N",
        type=int,
        help="number of training steps (default: the dataset's number)",
    )
    add(
        "--checkpoint_freq",
        metavar="N",
        type=int,
        help="steps between checkpoints (default: the dataset's number)",
    )
    add(
        "--holdout_fraction",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of each environment in its out-split (default: 0.2)",
    )
    add(
        "--uda_holdout_fraction",
        metavar="SHARE",
        type=float,
        default=0,
        help="share to take out of a test environment's in-split, as in upstream's domain "
        "adaptation (default: 0)",
    )

    add(
        "--workers",
        metavar="N",
        type=int,
        help="number of loader processes (default: the dataset's number, at most one per CPU)",
    )
    add(
        "--processes",
        metavar="N",
        type=int,
        default=process_variables.PROCESSES.read("1"),
        help="number of processes that train together, each on its slice of every batch and, if "
        "the machine has GPUs, on its own GPU (default: 1, or torchrun's number; to set it for all "
        f"jobs: ${process_variables.PROCESSES.name})",
    )
    add(
        "--image_memory",
        metavar="SIZE",
        default=process_variables.IMAGE_MEMORY.read() or None,
        help="memory for evaluation images that are not augmented, so that they are read only "
        "once, such as 8G or 500M, or 0 to read them each time (default: a quarter of the job's "
        f"memory; to set it for all jobs: ${process_variables.IMAGE_MEMORY.name})",
    )
    add(
        "--skip_training_in_splits",
        action="store_true",
        default=process_variables.SKIP_TRAINING_IN_SPLITS.read() == "1",
        help="skip accuracies on the training environments' in-splits, which take most of the "
        "evaluation time and are not used for selection (to set it for all jobs: "
        f"${process_variables.SKIP_TRAINING_IN_SPLITS.name}=1)",
    )
    add("--skip_model_save", action="store_true", help="do not save any weights")
    add(
        "--save_model_every_checkpoint",
        action="store_true",
        help="also save the weights of each checkpoint, as model_stepN.pkl",
    )
    add(
        "--keep_weights",
        choices=checkpoints.KEEP,
        default=process_variables.KEEP_WEIGHTS.read(checkpoints.KEEP[0]),
        help="weights to save: last (model.pkl), best (model_best.pkl, selected by training-domain "
        "validation), both (default), or none (to set it for all jobs: "
        f"${process_variables.KEEP_WEIGHTS.name})",
    )
    scalar_logs.add_flag(parser)
    return parser


def parse(command_line: Sequence[str]) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Parse a command line into the recorded arguments and UNRECORDED_FLAGS.

    Names of test environments become numbers. Unknown names stay, and `check` reports them.
    """
    args = build_parser().parse_args(command_line)
    args.test_envs = checks.find_test_envs(args.dataset, args.test_envs)
    flags = argparse.Namespace()
    for name in UNRECORDED_FLAGS:
        setattr(flags, name, vars(args).pop(name))
    return args, flags


def check(args: argparse.Namespace, flags: argparse.Namespace) -> ResolvedHparams:
    """Check a command line.

    Args:
        args: values of the recorded flags.
        flags: values of UNRECORDED_FLAGS.

    Returns:
        The job's hyperparameters.

    Raises:
        CarftError: the command line has mistakes; the message lists all of them.
    """
    unknown_algorithm = checks.algorithm_problems(args.algorithm)
    unknown_dataset = checks.dataset_problems(args.dataset)
    problems = [*unknown_algorithm, *unknown_dataset]
    if not unknown_dataset:
        problems += checks.test_envs_problems(args.dataset, args.test_envs)
        problems += checks.data_problems(args.dataset, args.data_dir)
    problems += checks.task_problems(args.task)
    try:
        given = checks.parse_hparams(args.hparams)
        if not unknown_algorithm:
            algorithm_class = algorithms.get_algorithm_class(args.algorithm)
            dataset_steps = datasets.MultipleDomainDataset.N_STEPS
            if not unknown_dataset:
                dataset_steps = datasets.get_dataset_class(args.dataset).N_STEPS
            hparams: ResolvedHparams = algorithm_class.resolve_hparams(
                args.dataset, given, get_draw_seed(vars(args)), args.steps or dataset_steps
            )
            # Values that follow from an unknown dataset are no further mistakes.
            problems += [
                str(problem)
                for problem in hparams.problems
                if not unknown_dataset or problem.name in given
            ]
    except CarftError as error:
        problems += error.problems
    problems += checks.holdout_problems(args.holdout_fraction)
    problems += checks.range_problems("--uda_holdout_fraction", args.uda_holdout_fraction, 0, 1)

    problems += _variable_problems(args)
    problems += collect_problems(parse_memory_limit, flags.image_memory)
    for flag in ("steps", "checkpoint_freq"):
        problems += checks.range_problems(f"--{flag}", getattr(args, flag), 1)
    problems += checks.range_problems("--workers", args.workers, 0, MAX_WORKERS + 1)
    problems += checks.range_problems("--seed", args.seed, 0, 2**32)  # numpy's range
    problems += scalar_logs.problems(flags.log)
    raise_for(problems)
    return hparams


def _variable_problems(args: argparse.Namespace) -> list[str]:
    """Return the problems of defaults from variables; argparse checks only values of flags."""
    skip = process_variables.SKIP_TRAINING_IN_SPLITS
    defaults = (
        (process_variables.KEEP_WEIGHTS, args.keep_weights, checkpoints.KEEP),
        (skip, skip.read() or "0", ("0", "1")),
    )
    return [
        f"{variable.name} is {value!r}, expected {', '.join(valid)}"
        for variable, value, valid in defaults
        if value not in valid
    ]


def describe_memory_limit(limit: int) -> str:
    """Describe the limit in words."""
    if not limit:
        return "evaluation images are read each time"
    size = f"{limit / 2**30:.1f}G" if limit >= 2**30 else f"{limit / 2**20:.0f}M"
    return f"evaluation images are kept in memory, at most {size}"
