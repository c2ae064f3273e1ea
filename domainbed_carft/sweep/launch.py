"""``carft sweep launch``: everything is checked, then shown, then asked, then run."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from domainbed_carft.data import benchmarks, data_check
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.sweep import (
    data,
    declaration,
    estimate,
    flags,
    launching,
    logs,
    names,
    printing,
    schedules,
    states,
)
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status

if TYPE_CHECKING:
    from domainbed_carft.launchers import Launcher

T = TypeVar("T")

RUN_HERE = ("local", "pool")
# Read by our train.
KEEP_WEIGHTS = "DOMAINBED_KEEP_WEIGHTS"
SKIP_IN_SPLITS = "DOMAINBED_SKIP_TRAINING_IN_SPLITS"

# What stands for a data folder where all pictures are in the package; and where others have one
# that is no other's, as what DomainBed's own command line would be given.
EMBEDDED = "embedded"
HERE = "."
# How a file asks our algorithms to train on broken data.
BY_DECLARATION = f"hparams: {{data_edition: {UNCHECKED}}} in the declaration"

HOW_TO_MEASURE = (
    "With --measure a few steps of each algorithm are timed here, on the machine that runs this; "
    "once jobs have been run into this folder, their times are used."
)


def launch(arguments: argparse.Namespace) -> int:
    """Launch what is needed; 1 if a job is not done after a launcher that waits, or failed."""
    declared, data_dir, launcher, looks = _checked(arguments)
    statuses = launching.look(declared, data_dir, arguments.output_dir)
    if arguments.dry_run:
        _dry_run(arguments, declared, statuses, looks)
        raise_for(_data_problems(arguments, declared, looks))
        return 0
    for one in looks:
        if one.absent:
            print(f"{one}; the jobs look at it where they run.", file=sys.stderr)
    chosen = launching.needed(statuses, arguments.unknown)
    kept, skips = arguments.keep_weights, arguments.skip_training_in_splits
    environment = {KEEP_WEIGHTS: kept} if kept else {}
    environment |= {SKIP_IN_SPLITS: "1"} if skips else {}
    environment |= logs.environment(arguments.log or (), arguments.output_dir)
    print(
        f"{declared.name}: {printing.number(len(statuses), 'job')}: {printing.counted(statuses)}."
    )
    _tell_of_others(statuses, arguments)
    if arguments.launcher == "dummy":
        launching.hand_over(launcher, chosen, environment)
        return 0
    if not chosen:
        print("There is nothing to launch.")
        told = [one for one in statuses if _is_told(one, arguments)]
        return _ended(arguments, launching.not_done(told))
    count = printing.number(len(chosen), "job")
    print(f"About to launch {count} into {arguments.output_dir} ({arguments.launcher}).")
    confirm(arguments.yes)
    try:
        left = launching.run(
            declared, data_dir, arguments.output_dir, launcher, arguments.launcher,
            _origin(arguments), arguments.unknown, environment,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("carft: stopped by Ctrl-C; the same command goes on from here", file=sys.stderr)
        return 130
    if arguments.launcher == "slurm":
        print(f"Submitted. Watch them: {again('status', arguments.output_dir)} --watch 30")
        return 0
    return _ended(arguments, left)


def _is_told(status: Status, arguments: argparse.Namespace) -> bool:
    """Whether a job that is not launched is a reason for exit status 1; in SLURM others wait."""
    return arguments.launcher != "slurm" or status.state == states.FAILED


def _checked(
    arguments: argparse.Namespace,
) -> tuple[Declaration, str, Launcher, list[data.Look]]:
    """What was asked for, after all that is wrong with it has been told at once.

    But for the data of a dry run, if nothing else is wrong: it shows the verdicts first.
    """
    from domainbed_carft import launchers

    problems: list[str] = []
    declared = _collected(functools.partial(_declared, arguments), problems)
    options = flags.launcher_options(arguments)
    launcher = _collected(lambda: launchers.make(arguments.launcher, options), problems)
    if launcher is not None and not arguments.dry_run:
        problems += launchers.problems(launcher, [arguments.output_dir])
    data_dir = arguments.data_dir
    looks: list[data.Look] = []
    if declared is not None:
        data_dir = data_dir or _data_dir_of_none(declared.datasets)
        if data_dir is None:
            problems.append("--data_dir is missing, expected the folder of the data sets' folders")
        else:
            looks = data.look(declared, data_dir)
    problems += logs.problems(arguments.log or ())
    if arguments.measure and not arguments.dry_run:
        problems.append("--measure belongs to --dry-run")
    if declared is not None and (problems or not arguments.dry_run):
        problems += _data_problems(arguments, declared, looks)
    raise_for(problems)
    assert declared is not None and launcher is not None and data_dir is not None
    return declared, data_dir, launcher, looks


def _data_dir_of_none(datasets: Sequence[str]) -> str | None:
    """What jobs get as ``--data_dir`` where no data set is looked for in it; else None."""
    if any(map(names.lies_in_data_dir, datasets)):
        return None
    return EMBEDDED if all(name in benchmarks.BENCHMARKS for name in datasets) else HERE


def _data_problems(
    arguments: argparse.Namespace, declared: Declaration, looks: Sequence[data.Look]
) -> list[str]:
    setting = BY_DECLARATION if arguments.sweep else data_check.BY_FLAG
    needed_here = arguments.launcher in RUN_HERE and not arguments.dry_run
    return data.problems(looks, declared.algorithms, setting, needed_here)


def _collected(make: Callable[[], T], problems: list[str]) -> T | None:
    """What ``make`` returns, or None with what it raises among the problems."""
    try:
        return make()
    except CarftError as error:
        # Those of a declaration are a list already, under a headline.
        lines = str(error).splitlines()
        listed = [line[2:] for line in lines if line.startswith("- ")]
        problems += listed or [str(error)]
        return None


def _declared(arguments: argparse.Namespace) -> Declaration:
    given = flags.given(arguments)
    if arguments.sweep is None:
        if "algorithms" in given and "datasets" in given:
            return flags.declared(given)
        shipped = ", ".join(declaration.ours_by_name())
        raise CarftError(
            f"name a sweep (a file, or one of {shipped}), or give --algorithms and --datasets"
        )
    if given:
        raise CarftError(
            f"--{', --'.join(given)} and the sweep {arguments.sweep}: expected one of the two. "
            "What a declared sweep does stands in its file; copy it to change it"
        )
    return declaration.load(arguments.sweep)


def _origin(arguments: argparse.Namespace) -> launching.Origin:
    if arguments.sweep is None:
        return launching.Origin(flags=flags.given(arguments))
    path = declaration.find(arguments.sweep)
    return launching.Origin(str(path), path.read_text(encoding="utf-8"))


def _tell_of_others(statuses: Sequence[Status], arguments: argparse.Namespace) -> None:
    counts = Counter(status.state for status in statuses)
    where = arguments.output_dir
    if counts[states.FAILED]:
        print(
            f"{counts[states.FAILED]} failed and are left alone: {again('status', where)} says "
            f"why, {again('retry', where)} lets them be tried again."
        )
    if counts[states.UNKNOWN] and not arguments.unknown:
        print(
            f"{counts[states.UNKNOWN]} were begun by another tool, which leaves no sign of whether "
            "they run, and are left alone. If none of them runs: --unknown."
        )


def _ended(arguments: argparse.Namespace, left: Sequence[Status]) -> int:
    if not left:
        return 0
    print(printing.failures(left), file=sys.stderr)
    if any(one.state == states.FAILED for one in left):
        print(
            f"Once the cause is mended: {again('retry', arguments.output_dir)}, then launch again.",
            file=sys.stderr,
        )
    return 1


def _dry_run(
    arguments: argparse.Namespace,
    declared: Declaration,
    statuses: Sequence[Status],
    looks: Sequence[data.Look],
) -> None:
    jobs = [status.job for status in statuses]
    paces = estimate.recorded(jobs)
    if arguments.measure:
        from domainbed_carft.sweep import measure

        open_jobs = [status.job for status in statuses if status.state != states.DONE]
        paces = measure.measure(open_jobs, paces, lambda line: print(line, file=sys.stderr))
    print(
        f"{declared.name}: {printing.number(len(statuses), 'job')}: {printing.counted(statuses)}."
    )
    print(f"Selection: {', '.join(declared.selection)}. Nothing is launched.")
    for one in looks:
        print(f"Data: {one}.")
    print()
    made = estimate.make(statuses, paces, arguments.skip_training_in_splits)
    print(printing.estimate(made, HOW_TO_MEASURE))
    for note in schedules.notes(declared):
        print(f"Note: {note}")


def confirm(yes: bool) -> None:
    """Ask on a terminal, unless told not to; leave the program where the answer is no."""
    if yes or sys.stdin is None or not sys.stdin.isatty():
        return
    if not input("Go on? (y/n) ").strip().lower().startswith("y"):
        print("Nothing was done.")
        raise SystemExit(0)


def again(command: str, folder: Path) -> str:
    """A command line to copy."""
    return f"carft sweep {command} {shlex.quote(str(folder))}"
