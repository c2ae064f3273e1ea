"""The command line of `sweep`: its flags, their defaults, and what is checked before it starts.

Flags and defaults are those of upstream file domainbed/scripts/sweep.py at b93c22a.
"""

from __future__ import annotations

import argparse
import itertools

from domainbed import algorithms as algorithms_module
from domainbed import command_launchers, datasets
from domainbed.lib import checks, scalar_logs
from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.errors import CarftError, raise_for

DATASETS = [name for name in datasets.DATASETS if "Debug" not in name]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="domainbed.scripts.sweep", description="Run a sweep")

    parser.add_argument("command", choices=["launch", "delete_incomplete"])
    parser.add_argument("--datasets", nargs="+", default=DATASETS, type=shortest_path)
    parser.add_argument("--algorithms", nargs="+", default=algorithms_module.ALGORITHMS)
    parser.add_argument("--task", default=checks.TASKS[0], choices=checks.TASKS)
    parser.add_argument("--n_hparams_from", type=int, default=0, help="first hparams_seed")
    parser.add_argument("--n_hparams", type=int, default=20, help="last hparams_seed plus one")
    parser.add_argument("--output_dir", required=True, help="folder for the jobs' folders")
    parser.add_argument("--data_dir", required=True, help="folder with the datasets' folders")
    parser.add_argument("--seed", type=int, default=0, help="unused, as in upstream")
    parser.add_argument("--n_trials", type=int, default=3, help="trials per cell (default: 3)")
    parser.add_argument("--command_launcher", required=True, help="such as local, pool or slurm")
    parser.add_argument("--steps", type=int, help="steps per job (0 or none: the dataset's own)")
    parser.add_argument("--hparams", help="JSON object of hyperparameters to set in every job")
    parser.add_argument("--holdout_fraction", type=float, default=0.2, help="share in out-splits")
    parser.add_argument("--single_test_envs", action="store_true", help="leave out no pairs")
    parser.add_argument("--skip_confirmation", action="store_true", help="do not ask")
    scalar_logs.add_flag(parser)

    return parser


def check(args: argparse.Namespace) -> None:
    """Raise a CarftError that lists all mistakes, when launching also those of every job."""
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
        f"{dataset} has 2 environments; these jobs need at least 3; with --single_test_envs 2 are "
        "enough"
        for dataset in known_datasets
        if datasets.num_environments(dataset) == 2 and not args.single_test_envs
    ]
    minimums = {
        "n_trials": 1,
        "n_hparams_from": 0,
        "steps": 0,
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
        if command_launchers.runs_here(args.command_launcher):  # else it may be where the jobs run
            for dataset in known_datasets:
                problems += checks.data_problems(dataset, args.data_dir)
    raise_for(problems)


def _hparams_problems(args: argparse.Namespace) -> list[str]:
    """Say what is wrong with --hparams for each algorithm on each dataset."""
    try:
        overrides = checks.parse_hparams(args.hparams)
    except CarftError as error:
        return [*error.problems]

    return [
        problem
        for dataset, algorithm in itertools.product(args.datasets, args.algorithms)
        for problem in checks.hparams_problems(overrides, algorithm, dataset, args.steps)
    ]
