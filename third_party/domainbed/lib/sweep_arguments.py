"""The command line of `sweep`: flags, defaults, and checks before anything starts.

Flags and defaults equal those of upstream file domainbed/scripts/sweep.py at b93c22a.
"""

from __future__ import annotations

import argparse
import itertools

from domainbed import algorithms, command_launchers, datasets
from domainbed.lib import checks, scalar_logs
from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.flags import FlagParser

DATASETS = [name for name in datasets.DATASETS if "Debug" not in name]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = FlagParser(prog="domainbed.scripts.sweep", description="Run a sweep")
    add = parser.add_argument

    add(
        "command",
        choices=["launch", "delete_incomplete"],
        help="launch the jobs that have no folder, or delete the folders of incomplete jobs",
    )
    add(
        "--datasets",
        metavar="NAME|PATH",
        nargs="+",
        default=DATASETS,
        type=shortest_path,
        help="names, folders environment/class/image, or CSV files that list images (default: all, "
        "except the debug datasets)",
    )
    add(
        "--algorithms",
        metavar="NAME",
        nargs="+",
        default=algorithms.ALGORITHMS,
        help="names (default: all algorithms)",
    )
    add(
        "--task",
        default=checks.TASKS[0],
        choices=checks.TASKS,
        help="only domain_generalization is included",
    )
    add(
        "--n_hparams_from", metavar="N", type=int, default=0, help="first hparams_seed (default: 0)"
    )
    add(
        "--n_hparams",
        metavar="N",
        type=int,
        default=20,
        help="last hparams_seed plus one (default: 20)",
    )
    add("--output_dir", metavar="DIR", required=True, help="folder for the jobs' folders")
    add(
        "--data_dir",
        metavar="DIR",
        required=True,
        help="folder that contains the datasets' folders",
    )
    add("--seed", metavar="N", type=int, default=0, help="not used, as in upstream")
    add(
        "--n_trials",
        metavar="N",
        type=int,
        default=3,
        help="number of trials per cell (default: 3)",
    )
    add(
        "--command_launcher",
        metavar="NAME",
        required=True,
        help="launcher, such as local, pool or slurm",
    )
    add(
        "--steps",
        metavar="N",
        type=int,
        help="training steps per job (default: the dataset's number)",
    )
    add("--hparams", metavar="JSON", help="JSON object of hyperparameters to set in every job")
    add(
        "--holdout_fraction",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of each environment in its out-split (default: 0.2)",
    )
    add(
        "--single_test_envs",
        action="store_true",
        help="hold out single environments only, no pairs",
    )
    add("--skip_confirmation", action="store_true", help="start without asking for confirmation")
    scalar_logs.add_flag(parser)

    return parser


def check(args: argparse.Namespace) -> None:
    """Raise a CarftError that lists all mistakes; for `launch` this includes every job's."""
    problems: list[str] = []
    for algorithm in args.algorithms:
        problems += checks.algorithm_problems(algorithm)

    known_datasets = []
    for dataset in dict.fromkeys(args.datasets):
        dataset_problems = checks.dataset_problems(dataset)
        problems += dataset_problems
        if not dataset_problems:
            known_datasets.append(dataset)
    problems += [
        f"{dataset} has 2 environments, but jobs with two test environments need at least 3; pass "
        "--single_test_envs to hold out single environments only"
        for dataset in known_datasets
        if datasets.num_environments(dataset) == 2 and not args.single_test_envs
    ]
    minimums = {
        "n_trials": 1,
        "n_hparams_from": 0,
        "steps": 1,
        "n_hparams": args.n_hparams_from + 1,
    }
    for name, minimum in minimums.items():
        problems += checks.range_problems(f"--{name}", getattr(args, name), minimum)
    problems += checks.task_problems(args.task)

    if args.command == "launch":
        problems += command_launchers.problems(args.command_launcher, args.output_dir)
        problems += checks.holdout_problems(args.holdout_fraction)
        problems += scalar_logs.problems(args.log)
        problems += _hparams_problems(args)
        # The jobs of other launchers can run on machines that have the data.
        if command_launchers.runs_here(args.command_launcher):
            for dataset in known_datasets:
                problems += checks.data_problems(dataset, args.data_dir)
    raise_for(problems)


def _hparams_problems(args: argparse.Namespace) -> list[str]:
    """Return the problems of --hparams for each algorithm on each dataset."""
    try:
        given = checks.parse_hparams(args.hparams)
    except CarftError as error:
        return [*error.problems]

    classes = [
        algorithms.get_algorithm_class(name)
        for name in args.algorithms
        if not checks.algorithm_problems(name)
    ]
    known_datasets = [name for name in args.datasets if not checks.dataset_problems(name)]
    return [
        str(problem)
        for dataset, algorithm_class in itertools.product(known_datasets, classes)
        for problem in algorithm_class.resolve_hparams(dataset, given, steps=args.steps).problems
    ]
