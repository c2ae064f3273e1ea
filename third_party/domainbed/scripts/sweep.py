"""Launch the jobs of a sweep: `python -m domainbed.scripts.sweep --help`.

Follows upstream file domainbed/scripts/sweep.py at b93c22a. Unlike upstream, it launches the jobs
in the order of the list, so that an interrupted local sweep has complete trials.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from domainbed import command_launchers, datasets
from domainbed.lib import misc, scalar_logs
from domainbed.lib.command_line import exit_status
from domainbed.lib.sweep_arguments import DATASETS as DATASETS
from domainbed.lib.sweep_arguments import build_parser, check
from domainbed_carft import escaping
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import make_job, make_train_command
from domainbed_carft.jobs.job_folder import HeldError, JobFolder, delete_claimed
from domainbed_carft.sweep import host


class Job:
    """A job: one call of `train`, in a folder whose name is a digest of its arguments.

    Args:
        train_args: arguments of `train`, except output_dir, as JSON values.
        sweep_output_dir: the sweep's folder.

    Attributes:
        output_dir: the job's folder.
        train_args: arguments of `train`.
        command_str: the command line, quoted for a shell.
        listed: the job's entry in the manifest.
        state: the state when this object was created: NOT_LAUNCHED, INCOMPLETE or DONE.
    """

    NOT_LAUNCHED = "Not launched"
    INCOMPLETE = "Incomplete"
    DONE = "Done"

    def __init__(self, train_args: dict[str, Any], sweep_output_dir: str) -> None:
        self.listed = make_job(train_args, Path(sweep_output_dir))
        self.output_dir = os.path.join(sweep_output_dir, self.listed.folder.name)
        self.train_args = {**copy.deepcopy(train_args), "output_dir": self.output_dir}
        self.command_str = shlex.join(make_train_command(self.train_args))
        self.state = Job.NOT_LAUNCHED
        if os.path.exists(self.output_dir):
            self.state = Job.DONE if JobFolder(self.output_dir).done else Job.INCOMPLETE

    def __str__(self) -> str:
        names = ("dataset", "algorithm", "test_envs", "hparams_seed")
        values = tuple(self.train_args[name] for name in names)
        return f"{self.state}: {self.output_dir} {values}"

    @staticmethod
    def launch(jobs: Sequence[Job], launcher_fn: command_launchers.Launcher) -> list[Any]:
        """Make the jobs' folders and run the launcher.

        Args:
            jobs: the jobs to launch.
            launcher_fn: a launcher of `command_launchers.REGISTRY`.

        Returns:
            The failures that the launcher reports.
        """
        print("Launching...")
        print("Making job directories:")
        for job in jobs:
            os.makedirs(job.output_dir, exist_ok=True)
        failed = launcher_fn([job.command_str for job in jobs])
        print(f"Launched {len(jobs)} jobs!")
        return list(failed or [])

    @staticmethod
    def delete(jobs: Sequence[Job]) -> None:
        """Delete the jobs' folders, except the folders of running jobs."""
        print("Deleting...")
        deleted = 0
        for output_dir in dict.fromkeys(job.output_dir for job in jobs):
            folder = JobFolder(output_dir)
            try:
                with folder.claim():
                    delete_claimed(folder)
                deleted += 1
            except HeldError as error:
                print(f"sweep: not deleted: {error}", file=sys.stderr)
        print(f"Deleted {deleted} jobs!")


def all_test_env_combinations(n: int) -> Iterator[list[int]]:
    """Yield all choices of one or two of `n` environments: [0], [0, 1], ..., [1], [1, 2], ..."""
    assert n >= 3, "with two test environments, fewer than three leave none to train on"
    sizes = (1, 2)
    yield from sorted([*envs] for size in sizes for envs in itertools.combinations(range(n), size))


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
    """Return the arguments of `train` for every job of the sweep, ordered by trial."""
    common: dict[str, Any] = {
        "data_dir": data_dir,
        "task": task,
        "holdout_fraction": holdout_fraction,
    }
    # A job's folder depends on these values as they were passed, such as 0 steps.
    passed = {"steps": steps, "hparams": hparams}
    common |= {name: value for name, value in passed.items() if value is not None}

    return [
        {
            **common,
            "dataset": dataset,
            "algorithm": algorithm,
            "test_envs": test_envs,
            "hparams_seed": hparams_seed,
            "trial_seed": trial_seed,
            "seed": misc.seed_hash(dataset, algorithm, test_envs, hparams_seed, trial_seed),
        }
        for trial_seed in range(n_trials)
        for dataset in dataset_names
        for algorithm in algorithms
        for test_envs in _list_test_envs(datasets.num_environments(dataset), single_test_envs)
        for hparams_seed in range(n_hparams_from, n_hparams)
    ]


def _list_test_envs(n_envs: int, single: bool) -> list[list[int]]:
    """Return the test environments of each job on a dataset."""
    if n_envs == 1:  # a user's own data: there is no environment to hold out
        return [[]]
    return [[env] for env in range(n_envs)] if single else [*all_test_env_combinations(n_envs)]


def run(args: argparse.Namespace) -> int:
    """List the jobs, then launch or delete some; return 1 if a launched job failed."""
    check(args)
    args_list = make_args_list(
        n_trials=args.n_trials,
        dataset_names=args.datasets,
        algorithms=args.algorithms,
        n_hparams_from=args.n_hparams_from,
        n_hparams=args.n_hparams,
        steps=args.steps,
        data_dir=args.data_dir,
        task=args.task,
        holdout_fraction=args.holdout_fraction,
        single_test_envs=args.single_test_envs,
        hparams=args.hparams,
    )
    jobs = [Job(train_args, args.output_dir) for train_args in args_list]
    states = (Job.DONE, Job.INCOMPLETE, Job.NOT_LAUNCHED)
    by_state = {state: [job for job in jobs if job.state == state] for state in states}
    for job in jobs:
        print(job)
    counts = ", ".join(f"{len(group)} {state.lower()}" for state, group in by_state.items())
    print(f"{len(jobs)} jobs: {counts}.")

    is_launch = args.command == "launch"
    chosen = by_state[Job.NOT_LAUNCHED if is_launch else Job.INCOMPLETE]
    print(f"About to {'launch' if is_launch else 'delete'} {len(chosen)} jobs.")
    if not args.skip_confirmation:
        _confirm()
    if is_launch:
        return _launch(jobs, chosen, by_state[Job.INCOMPLETE], args)
    _delete(chosen, Path(args.output_dir))
    return 0


def _launch(
    jobs: Sequence[Job], chosen: Sequence[Job], incomplete: Sequence[Job], args: argparse.Namespace
) -> int:
    """Launch the chosen jobs; return 1 if one of them failed."""
    if incomplete:
        running = sum(JobFolder(job.output_dir).is_held() for job in incomplete)
        print(
            f"sweep: {len(incomplete)} incomplete jobs were not launched, {running} of them are "
            "running; to launch the others, run delete_incomplete, then launch",
            file=sys.stderr,
        )
    facts = {name: host.get_dataset_facts(name) for name in args.datasets}
    sweep = manifest.Sweep(tuple(job.listed for job in jobs), facts)
    with _warn_about_manifest():
        manifest.add(Path(args.output_dir), sweep, keeps_declared=True)
    scalar_logs.set_job_variables(args.log, args.output_dir)
    try:
        failed = Job.launch(chosen, command_launchers.REGISTRY[args.command_launcher])
    except CarftError as error:  # jobs have started, so the command line is not at fault
        raise TransientError(*error.problems) from error
    return 1 if failed else 0


def _delete(jobs: Sequence[Job], output_dir: Path) -> None:
    """Delete the jobs' folders, and remove the jobs from the manifest."""
    Job.delete(jobs)
    deleted = [Path(job.output_dir) for job in jobs if not os.path.exists(job.output_dir)]
    if deleted:
        with _warn_about_manifest():
            manifest.drop(output_dir, deleted)


@contextlib.contextmanager
def _warn_about_manifest() -> Iterator[None]:
    """Print a warning if the block cannot change the manifest, which `carft` reads."""
    try:
        yield
    except CarftError as error:
        lines = [
            f"sweep: Warning: the list of jobs was not updated: {problem}"
            for problem in error.problems
        ]
        escaping.print_lines(*lines, stream=sys.stderr)


def _confirm() -> None:
    """Exit unless the user confirms."""
    try:
        answer = input("Are you sure? (y/n) ")
    except (EOFError, RuntimeError):  # RuntimeError if standard input was closed from the start
        raise CarftError(
            "cannot ask for confirmation, because standard input is closed; pass "
            "--skip_confirmation"
        ) from None
    if not answer.strip().lower().startswith("y"):
        print("Nevermind!")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, 1 after failed jobs, 2 after an invalid argument, 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        return exit_status("sweep", lambda: run(args))
    except KeyboardInterrupt:
        print(
            "sweep: interrupted by Ctrl-C; to restart the interrupted jobs, run delete_incomplete, "
            "then launch",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
