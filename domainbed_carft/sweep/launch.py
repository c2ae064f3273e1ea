"""``carft sweep launch``: everything is checked, then shown, then asked, then run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft import files, launchers, plugin
from domainbed_carft.data import benchmarks, verify
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.sweep import estimate, names, printing, sources, states
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import confirm, counted, shown

NEEDED = (states.NOT_LAUNCHED, states.INTERRUPTED)
RUN_HERE = ("local", "pool")

# Read by our train.
KEEP_WEIGHTS = "DOMAINBED_KEEP_WEIGHTS"
SKIP_IN_SPLITS = "DOMAINBED_SKIP_TRAINING_IN_SPLITS"
LOG = "DOMAINBED_LOG"
WANDB_GROUP = "WANDB_RUN_GROUP"  # by W&B: what the runs of a sweep have in common


class Data(NamedTuple):
    """The verdict on each data set, in words; what refuses a launch, and what is not here."""

    verdicts: list[str]
    refused: list[str]
    absent: list[str]


def launch(arguments: argparse.Namespace, given: Mapping[str, Any], options: Any) -> int:
    """Launch what is needed; 1 if a job is not done after a launcher that waits, or failed.

    ``given`` are DomainBed's own flags in place of a file, ``options`` those of the launcher.
    """
    declared, data_dir, launcher, data = _checked(arguments, given, options)
    output, name = arguments.output_dir, arguments.launcher
    statuses = look(declared, data_dir, output)
    print(f"{declared.name}: {counted(len(statuses), 'job')}: {printing.counted(statuses)}.")
    for verdict in data.verdicts:
        print(shown(f"Data: {verdict}."))
    if arguments.dry_run:
        _dry_run(arguments, declared, statuses)
        raise_for(data.refused)
        return 0
    if failed := sum(status.state == states.FAILED for status in statuses):
        print(
            f"{failed} failed and are left alone: {printing.again('status', output)} says why, "
            f"{printing.again('retry', output)} lets them be tried again."
        )
    chosen = [status.job for status in statuses if status.state in NEEDED]
    environment = _environment(arguments)
    if name == "dummy":
        launcher(chosen, environment)
        return 0
    if not chosen:
        note(declared, data_dir, output, [status.job for status in statuses])
        print("There is nothing to launch.")
        # In SLURM others wait.
        told = [one for one in statuses if name != "slurm" or one.state == states.FAILED]
        return _ended(output, not_done(told))
    print(f"About to launch {counted(len(chosen), 'job')} into {output} ({name}).")
    confirm(arguments.yes)
    try:
        left = run(declared, data_dir, output, launcher, name, environment)
    except KeyboardInterrupt:
        print("carft: stopped by Ctrl-C; the same command resumes the sweep", file=sys.stderr)
        return 130
    if name == "slurm":
        print(f"Submitted. Watch them: {printing.again('status', output)} --watch 30")
        return 0
    return _ended(output, left)


def look(declaration: Declaration, data_dir: str, output: Path) -> list[Status]:
    """All jobs of the sweep, each in its folder, and their states."""
    jobs = manifest.settle(declaration.jobs(data_dir, output), output)
    return states.look(jobs, declaration.facts, states.waiting(output))


def run(
    declaration: Declaration,
    data_dir: str,
    output: Path,
    launcher: Any,
    name: str = "pool",
    environment: Callable[[Job], Mapping[str, str]] | None = None,
) -> list[Status]:
    """Run what is not done of a sweep; where the launcher waits, with a bar over all its steps.

    Returns the jobs that are not done by the end, each with the reason as its detail; none where
    the launcher does not wait. To be called from the main thread, where Ctrl-C arrives.
    """
    statuses = look(declaration, data_dir, output)
    jobs = [status.job for status in statuses]
    chosen = [status.job for status in statuses if status.state in NEEDED]
    raise_for(launchers.problems(launcher, {job.folder.parent for job in chosen}))
    note(declaration, data_dir, output, jobs)
    if name == "slurm":
        if chosen:
            launcher(chosen, environment)
        return []
    with printing.bar(statuses, declaration.facts):
        endings = launcher(chosen, environment) or () if chosen else ()
    now = states.look(jobs, declaration.facts, states.waiting(output))
    return not_done(now, endings)


def note(declaration: Declaration, data_dir: str, output: Path, jobs: Sequence[Job]) -> None:
    """Write down what is launched: for other commands, and a copy of the file for people."""
    sweep = manifest.Sweep(
        declaration.name, data_dir, tuple(jobs), declaration.facts, declaration.selection,
        declaration.compare_with,
    )  # fmt: skip
    manifest.add(output, sweep)
    if declaration.text is not None:
        files.save_text(output / "sweep.yaml", declaration.text)


def not_done(statuses: Sequence[Status], endings: Sequence[Any] = ()) -> list[Status]:
    """The jobs that are not done, each with the reason as its detail."""
    told = {Path(ending.folder): ending for ending in endings}
    left = [status for status in statuses if status.state != states.DONE]
    return [replace(one, detail=_reason(one, told.get(one.job.folder))) for one in left]


def _reason(status: Status, ending: Any) -> str:
    if status.state == states.RUNNING:
        return f"running elsewhere: {status.holder}"
    if status.state == states.QUEUED:
        return f"queued elsewhere: {status.detail}"
    if status.attempt is None and ending is not None:  # there could be no attempt
        return ending.last_words or f"exit status {ending.status}"
    return status.detail or status.state


def _ended(output: Path, left: Sequence[Status]) -> int:
    if not left:
        return 0
    print(printing.failures(left, output), file=sys.stderr)
    return 1


def _checked(
    arguments: argparse.Namespace, given: Mapping[str, Any], options: Any
) -> tuple[Declaration, str, Any, Data]:
    """What was asked for, after all that is wrong with it has been told at once.

    But for the data of a dry run, if nothing else is wrong: it shows the verdicts first.
    """
    problems: list[str] = []
    declared: Declaration | None = _collected(
        lambda: sources.asked(arguments.sweep, given), problems
    )
    launcher = _collected(lambda: launchers.make(arguments.launcher, options), problems)
    if launcher is not None and not arguments.dry_run:
        problems += launchers.problems(launcher, [arguments.output_dir])
    data = Data([], [], [])
    data_dir = arguments.data_dir
    if declared is not None:
        data_dir = data_dir or _data_dir_of_none(declared.datasets)
        if data_dir is None:
            problems.append("--data_dir is missing; expected the folder of the data sets' folders")
        else:
            data = _data(declared, data_dir)
    problems += _log_problems(arguments.log or ())
    if arguments.measure and not arguments.dry_run:
        problems.append("--measure needs --dry_run")
    if problems or not arguments.dry_run:
        problems += data.refused
        problems += data.absent if arguments.launcher in RUN_HERE and not arguments.dry_run else []
    raise_for(problems)
    assert declared is not None and launcher is not None and data_dir is not None
    return declared, data_dir, launcher, data


def _collected(make: Callable[[], Any], problems: list[str]) -> Any:
    """What ``make`` returns, or None with what it raises among the problems."""
    try:
        return make()
    except CarftError as error:
        # Those of a declaration are a list already, under a headline.
        listed = [line[2:] for line in str(error).splitlines() if line.startswith("- ")]
        problems += listed or [str(error)]
        return None


def _data_dir_of_none(datasets: Sequence[str]) -> str | None:
    """What jobs get as ``--data_dir`` where no data set is looked for in it; else None."""
    if any(map(names.lies_in_data_dir, datasets)):
        return None
    return "embedded" if all(name in benchmarks.BENCHMARKS for name in datasets) else "."


def _data(declared: Declaration, data_dir: str) -> Data:
    """Verify each data folder that is here, without decoding.

    Our algorithms refuse broken data, as their jobs would; others' jobs warn of it.
    """
    found = Data([], [], [])
    for name in declared.datasets:
        folder = names.picture_folder(name, data_dir)
        editions = {
            declared.hparams_of(name, algorithm, variant).get("data_edition")
            for variant in declared.variants
            for algorithm in declared.algorithms_of(variant)
            if algorithm in ALGORITHMS
        }
        if folder is None:
            known = name in benchmarks.BENCHMARKS
            verdict = "in the package" if known else "not checked, its folder is not known"
        elif not os.path.isdir(folder):
            verdict = f"not seen, no {folder} here; the jobs look at it where they run"
            found.absent.append(
                f"{name} is not there: expected the folder {folder} with one sub-folder an "
                f"environment; is --data_dir {data_dir} right?"
            )
        elif editions == {UNCHECKED} or plugin.switched_off():
            verdict = "not checked, as asked"
        else:
            verdict, problems = _verified(name, data_dir)
            if problems and editions:
                remedy = f"mend it, or set the hparam data_edition to {UNCHECKED}"
                found.refused.append(f"the data of {name} in {folder} is {verdict}; {remedy}")
        found.verdicts.append(f"{name}: {verdict}")
    return found


def _verified(name: str, data_dir: str) -> tuple[str, bool]:
    """The verdict on a data set that is here, and whether it is broken."""
    try:
        report = verify.verify(name, Path(data_dir))
    except CarftError as error:
        return f"broken: {error}", True
    if report.problems:
        return f"broken: {'; '.join(report.problems)}", True
    return f"{report.data_edition}, {report.pictures:,} pictures in {report.root}", False


def _log_problems(kinds: Sequence[str]) -> list[str]:
    """What each job would refuse of ``--log``: a train that cannot log, a missing library."""
    try:
        return list(names.module("lib.scalar_logs").problems(kinds)) if kinds else []
    except CarftError:
        domainbed = getattr(sys.modules.get("domainbed"), "__path__", ["not found"])[0]
        return [
            f"--log: the jobs would run the train of {domainbed}, which logs to nothing but "
            "results.jsonl; only the harness of domainbed-carft has more"
        ]


def _environment(arguments: argparse.Namespace) -> Callable[[Job], dict[str, str]]:
    """The variables by which jobs are told what is no part of what they are."""
    common = {KEEP_WEIGHTS: arguments.keep_weights} if arguments.keep_weights else {}
    common |= {SKIP_IN_SPLITS: "1"} if arguments.skip_training_in_splits else {}
    kinds = arguments.log or ()
    common |= {LOG: " ".join(kinds)} if kinds else {}
    group = arguments.output_dir.absolute().name
    has_group = "wandb" in kinds and WANDB_GROUP not in os.environ  # a user's own stays

    def of(job: Job) -> dict[str, str]:
        own = f"{group}/{job.variant}" if job.variant else group
        return {**common, **({WANDB_GROUP: own} if has_group else {})}

    return of


def _dry_run(
    arguments: argparse.Namespace, declared: Declaration, statuses: Sequence[Status]
) -> None:
    jobs = [status.job for status in statuses]
    paces = estimate.recorded(jobs, declared.facts)
    if arguments.measure:
        unfinished = [status.job for status in statuses if status.state != states.DONE]
        say: Callable[[str], None] = lambda line: print(shown(line), file=sys.stderr)  # noqa: E731
        paces = estimate.measure(unfinished, declared.facts, paces, say)
    print(f"Selection: {', '.join(declared.selection)}. Nothing is launched.")
    skips = arguments.skip_training_in_splits
    rows = estimate.make(statuses, declared.facts, paces, skips)
    print(f"\n{printing.estimate(rows, paces, skips)}")
    for dataset, algorithm, steps, _, total, falls in declared.schedules():
        if falls and steps != total:
            print(
                f"Note: {algorithm} on {dataset} trains {steps:,} steps, but its rate falls to 0 "
                f"at step {total:,}: set the hparam total_steps together with the steps"
            )
