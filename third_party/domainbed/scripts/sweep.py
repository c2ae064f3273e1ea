"""Launch the jobs of a sweep: `python -m domainbed.scripts.sweep --help`.

As upstream file domainbed/scripts/sweep.py at b93c22a, but that jobs are launched in the order of
the list: a local sweep cut short holds whole trials.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed import algorithms as algorithms_module
from domainbed import command_launchers, datasets
from domainbed.lib import checks, misc, scalar_logs
from domainbed.lib.image_folders import spelled
from domainbed.lib.usage import exit_status
from domainbed_carft.errors import CarftError, PassingError, raise_for
from domainbed_carft.jobs import job as house
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import Held, JobFolder

DATASETS = [name for name in datasets.DATASETS if "Debug" not in name]


class Job:
    """One call of train, in a folder named after its arguments, JSON values without output_dir.

    `state` is as it was when this object was built, and `command_str` is quoted for a shell.
    """

    NOT_LAUNCHED = "Not launched"
    INCOMPLETE = "Incomplete"
    DONE = "Done"

    def __init__(self, train_args: dict[str, Any], sweep_output_dir: str) -> None:
        self.output_dir = os.path.join(sweep_output_dir, house.identity(train_args))
        self.train_args = {**copy.deepcopy(train_args), "output_dir": self.output_dir}
        self.command_str = shlex.join(house.command(self.train_args))
        begun = Job.INCOMPLETE if os.path.exists(self.output_dir) else Job.NOT_LAUNCHED
        self.state = Job.DONE if JobFolder(self.output_dir).done else begun

    def __str__(self) -> str:
        shown = ("dataset", "algorithm", "test_envs", "hparams_seed")
        return f"{self.state}: {self.output_dir} {tuple(self.train_args[name] for name in shown)}"

    @staticmethod
    def launch(jobs: Sequence[Job], launcher_fn: command_launchers.Launcher) -> list[Any]:
        """Make the jobs' folders, run the launcher, and return the failures that it reports."""
        print("Launching...")
        print("Making job directories:")
        for job in jobs:
            os.makedirs(job.output_dir, exist_ok=True)
        failed = launcher_fn([job.command_str for job in jobs])
        print(f"Launched {len(jobs)} jobs!")
        return list(failed or [])

    @staticmethod
    def delete(jobs: Sequence[Job]) -> None:
        """Delete the jobs' folders, but those of jobs that run by now."""
        print("Deleting...")
        deleted = 0
        for folder in (JobFolder(job.output_dir) for job in jobs):
            away = folder.path.with_name(f".deleted-{folder.path.name}-{os.getpid()}")
            try:
                with folder.claim():
                    folder.records_path.unlink(missing_ok=True)  # no table has half a folder
                    folder.path.rename(away)
                    shutil.rmtree(away)
                deleted += 1
            except Held as error:
                print(f"sweep: not deleted: {error}", file=sys.stderr)
        print(f"Deleted {deleted} jobs!")


def all_test_env_combinations(n: int) -> Iterator[list[int]]:
    """Yield all choices of one or two of `n` environments: [0], [0, 1], ..., [1], [1, 2], ..."""
    assert n >= 3, "two test environments at a time leave nothing to train on"
    choices = [itertools.combinations(range(n), size) for size in (1, 2)]
    yield from map(list, sorted(itertools.chain(*choices)))


def make_args_list(
    n_trials: int,
    dataset_names: Sequence[str],
    algorithms: Sequence[str],
    n_hparams_from: int,
    n_hparams: int,
    steps: int | None,
    data_dir: str,
    task: str,
    holdout_fraction: float,
    single_test_envs: bool,
    hparams: str | None,
) -> list[dict[str, Any]]:
    """Return the train arguments of every job of the sweep, trial by trial."""
    common = {"data_dir": data_dir, "task": task, "holdout_fraction": holdout_fraction}
    optional = {"steps": steps, "hparams": hparams}
    common |= {name: value for name, value in optional.items() if value is not None}
    return [
        {
            **common,
            **{"dataset": dataset, "algorithm": algorithm, "test_envs": test_envs},
            **{"hparams_seed": hparams_seed, "trial_seed": trial_seed},
            "seed": misc.seed_hash(dataset, algorithm, test_envs, hparams_seed, trial_seed),
        }
        for trial_seed in range(n_trials)
        for dataset in dataset_names
        for algorithm in algorithms
        for test_envs in _test_env_choices(dataset, single_test_envs)
        for hparams_seed in range(n_hparams_from, n_hparams)
    ]


def _test_env_choices(dataset: str, single: bool) -> list[list[int]]:
    n = datasets.num_environments(dataset)
    if n == 1:  # a user's own data: there is nothing to leave out
        return [[]]
    return [[index] for index in range(n)] if single else list(all_test_env_combinations(n))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="domainbed.scripts.sweep", description="Run a sweep")
    parser.add_argument("command", choices=["launch", "delete_incomplete"])
    parser.add_argument("--datasets", nargs="+", default=DATASETS, type=spelled)
    parser.add_argument("--algorithms", nargs="+", default=algorithms_module.ALGORITHMS)
    parser.add_argument("--task", default=checks.TASKS[0], choices=checks.TASKS)
    parser.add_argument("--n_hparams_from", type=int, default=0, help="first hparams_seed")
    parser.add_argument("--n_hparams", type=int, default=20, help="last hparams_seed plus one")
    parser.add_argument("--output_dir", required=True, help="folder for the jobs' folders")
    parser.add_argument("--data_dir", required=True, help="folder with the data sets' folders")
    parser.add_argument("--seed", type=int, default=0, help="unused, as in upstream")
    parser.add_argument("--n_trials", type=int, default=3, help="trials per cell (default: 3)")
    parser.add_argument("--command_launcher", required=True, help="such as local, pool or slurm")
    parser.add_argument("--steps", type=int, help="steps per job (0 or none: the data set's own)")
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
    unknown = {dataset: checks.dataset_problems(dataset) for dataset in args.datasets}
    problems += itertools.chain(*unknown.values())
    known = [dataset for dataset in unknown if not unknown[dataset]]
    problems += [
        f"{dataset} has 2 environments; these jobs need at least 3; with --single_test_envs 2 are "
        "enough"
        for dataset in known
        if datasets.num_environments(dataset) == 2 and not args.single_test_envs
    ]
    least = {"n_trials": 1, "n_hparams_from": 0, "steps": 0, "n_hparams": args.n_hparams_from + 1}
    for name, value in least.items():
        problems += checks.range_problems(f"--{name}", getattr(args, name), value)
    problems += checks.task_problems(args.task)
    if args.command == "launch":
        problems += command_launchers.problems(args.command_launcher, args.output_dir)
        problems += checks.holdout_problems(args.holdout_fraction)
        problems += scalar_logs.problems(args.log)
        for dataset, algorithm in itertools.product(args.datasets, args.algorithms):
            problems += checks.hparams_problems(args.hparams, algorithm, dataset)
        if command_launchers.runs_here(args.command_launcher):  # else it may be where the jobs run
            for dataset in known:
                problems += checks.data_problems(dataset, args.data_dir)
    raise_for(problems)


def run(args: argparse.Namespace) -> int:
    """List the jobs, then launch or delete; return 1 if a launched job is known to have failed."""
    check(args)
    launching = args.command == "launch"
    args_list = make_args_list(
        *(args.n_trials, args.datasets, args.algorithms, args.n_hparams_from, args.n_hparams),
        *(args.steps, args.data_dir, args.task, args.holdout_fraction),
        *(args.single_test_envs, args.hparams),
    )
    jobs = [Job(train_args, args.output_dir) for train_args in args_list]
    states = (Job.DONE, Job.INCOMPLETE, Job.NOT_LAUNCHED)
    by_state = {state: [job for job in jobs if job.state == state] for state in states}
    for job in jobs:
        print(job)
    counts = ", ".join(f"{len(found)} {state.lower()}" for state, found in by_state.items())
    print(f"{len(jobs)} jobs: {counts}.")
    chosen = by_state[Job.NOT_LAUNCHED if launching else Job.INCOMPLETE]
    print(f"About to {'launch' if launching else 'delete'} {len(chosen)} jobs.")
    if not args.skip_confirmation:
        _confirm()
    if not launching:
        Job.delete(chosen)
        if gone := [Path(job.output_dir) for job in chosen if not os.path.exists(job.output_dir)]:
            _noted(manifest.drop, Path(args.output_dir), gone)
        return 0
    if begun := by_state[Job.INCOMPLETE]:
        running = sum(JobFolder(job.output_dir).is_held() for job in begun)
        left = f"{len(begun)} incomplete jobs were not launched, {running} of them are running"
        print(f"sweep: {left}; for the rest delete_incomplete, then launch", file=sys.stderr)
    _noted(_list, jobs, args)
    scalar_logs.hand_on(args.log, args.output_dir)
    try:
        failed = Job.launch(chosen, command_launchers.REGISTRY[args.command_launcher])
    except CarftError as error:  # by now something has begun
        raise PassingError(str(error)) from error
    return 1 if failed else 0


def _list(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Add the jobs to the manifest, which `carft sweep status` and `carft collect` read."""
    output = Path(args.output_dir)
    known = (manifest.read(output) if output.is_dir() else None) or manifest.Sweep(())
    listed = []
    for job in jobs:
        train_args = {k: v for k, v in job.train_args.items() if k != "output_dir"}
        listed.append(house.Job(train_args, Path(job.output_dir)))
    facts = {}
    for name in args.datasets:
        of = datasets.get_dataset_class(name)
        steps = getattr(of, "N_STEPS", 5001), getattr(of, "CHECKPOINT_FREQ", 100)
        facts[name] = manifest.Dataset(tuple(of.ENVIRONMENTS), None, *steps)
    manifest.add(output, replace(known, jobs=tuple(listed), datasets=facts))


def _noted(change: Callable[..., object], *arguments: Any) -> None:
    """Change the manifest; if that cannot be done, the sweep goes on without it."""
    for told in checks.refusals(change, *arguments):
        print(f"sweep: Warning: the list of jobs was not updated: {told}", file=sys.stderr)


def _confirm() -> None:
    """Leave the program unless the user says yes."""
    try:
        answer = input("Are you sure? (y/n) ")
    except (EOFError, RuntimeError):  # the latter where it was closed from the start
        raise CarftError("standard input is closed; give --skip_confirmation") from None
    if not answer.strip().lower().startswith("y"):
        print("Nevermind!")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 after failed jobs, 2 after a wrong argument, 130 if stopped."""
    args = build_parser().parse_args(argv)
    try:
        return exit_status("sweep", lambda: run(args))
    except KeyboardInterrupt:
        advice = "jobs that ran are incomplete: run delete_incomplete, then launch again"
        print(f"sweep: interrupted by Ctrl-C; {advice}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
