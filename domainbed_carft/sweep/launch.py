"""``carft sweep launch``: check everything, show it, ask for confirmation, run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers
from domainbed_carft.data import benchmarks, tasks, verify
from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.sweep import estimate, names, printing, sources, states
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import confirm, counted, shown

RUN_HERE = ("local", "pool")


def launch(arguments: argparse.Namespace, given: Mapping[str, Any], options: Any) -> int:
    """Launch the jobs that are not done; 1 if one failed, or is not done when a launcher returns.

    ``given`` are DomainBed's own flags instead of a file, ``options`` those of the launcher.
    """
    output, name, dry = arguments.output_dir, arguments.launcher, arguments.dry_run
    problems: list[str] = []
    verdicts: list[str] = []
    broken: list[str] = []
    declared = _collected(lambda: sources.asked(arguments.sweep, given), problems)
    launcher = _collected(lambda: launchers.make(name, options), problems)
    if launcher is not None and not dry:
        problems += launchers.problems(launcher, [output])
    data_dir = arguments.data_dir
    if declared is not None:
        places = [names.picture_folder(one, "--data_dir") for one in declared.datasets]
        if data_dir is None and any(one is None or one[:2] == "--" for one in places):
            problems.append("--data_dir is missing; expected the folder of the data sets' folders")
        else:
            embedded = all(one in benchmarks.BENCHMARKS for one in declared.datasets)
            data_dir = data_dir or ("embedded" if embedded else ".")
            verdicts, broken = _data(declared, data_dir, name in RUN_HERE and not dry)
    if arguments.log:  # as each job would refuse it: a train that cannot log, a missing library
        log = _collected(lambda: names.module("lib.scalar_logs"), problems)
        problems += log.problems(arguments.log) if log else []
    if arguments.measure and not dry:
        problems.append("--measure needs --dry_run")
    # A dry run shows the verdicts and the costs before it refuses the data.
    raise_for(problems + broken if problems or not dry else ())

    statuses = look(declared, data_dir, output)
    print(f"{declared.name}: {counted(len(statuses), 'job')}: {printing.counted(statuses)}.")
    for verdict in verdicts:
        print(shown(f"Data: {verdict}."))
    if dry:
        _dry_run(arguments, declared, statuses)
        raise_for(broken)
        return 0
    if failed := sum(status.state == states.FAILED for status in statuses):
        print(
            f"{counted(failed, 'failed job is', 'failed jobs are')} not launched. For the reasons: "
            f"{printing.again('status', output)}; to retry: {printing.again('retry', output)}"
        )
    chosen = _chosen(statuses, name)
    environment = functools.partial(_environment, arguments)
    if name == "dummy":
        launcher(chosen, environment)
        return 0
    if chosen:
        print(f"About to launch {counted(len(chosen), 'job')} into {output} ({name}).")
        confirm(arguments.yes)
    else:
        print("There is nothing to launch.")
    try:
        left = run(declared, data_dir, output, launcher, name, environment)
    except KeyboardInterrupt:
        print("carft: stopped by Ctrl-C; the same command resumes the sweep", file=sys.stderr)
        return 130
    if left:
        print(printing.failures(left, output), file=sys.stderr)
    elif name == "slurm" and chosen:
        print(f"Submitted. To watch the jobs: {printing.again('status', output)} --watch 30")
    return int(bool(left))


def look(declaration: Declaration, data_dir: str, output: Path) -> list[Status]:
    """All jobs of the sweep, each in its folder, and their states."""
    jobs = manifest.settle(declaration.jobs(data_dir, output), output)
    return states.look(jobs, declaration.facts, states.waiting(output))


def _chosen(statuses: Sequence[Status], name: str) -> list[Job]:
    """The jobs for a launcher; one that runs jobs here also gets those queued by others."""
    needed = [states.NOT_LAUNCHED, states.INTERRUPTED]
    needed += [states.QUEUED] if name in RUN_HERE else []
    return [status.job for status in statuses if status.state in needed]


def run(
    declaration: Declaration,
    data_dir: str,
    output: Path,
    launcher: Any,
    name: str = "pool",
    environment: Callable[[Job], Mapping[str, str]] | None = None,
) -> list[Status]:
    """Run the jobs of a sweep that are not done; shows a progress bar if the launcher waits.

    Returns the jobs that are not done at the end, each with the reason as its detail; if the
    launcher does not wait, those that failed before, if there was nothing to submit. Call it from
    the main thread, where Ctrl-C arrives.
    """
    statuses = look(declaration, data_dir, output)
    jobs = [status.job for status in statuses]
    chosen = _chosen(statuses, name)
    note(declaration, output, jobs)
    endings: Sequence[Any] = ()
    if name == "slurm":
        launcher(chosen, environment)
        return [status for status in statuses if status.state == states.FAILED and not chosen]
    if chosen:
        with printing.bar(statuses, declaration.facts):
            endings = launcher(chosen, environment) or ()
    now = states.look(jobs, declaration.facts, states.waiting(output))
    # Where there could be no attempt, such as for a full disk, only the launcher knows why.
    words = {Path(ending.folder): ending.last_words for ending in endings}
    left = [status for status in now if status.state != states.DONE]
    return [replace(one, detail=one.detail or words.get(one.job.folder, "")) for one in left]


def note(declaration: Declaration, output: Path, jobs: Sequence[Job]) -> None:
    """Write the manifest for other commands, and a copy of the sweep file for people."""
    settings = tuple(declaration.selection), tuple(declaration.compare_with)
    manifest.add(output, manifest.Sweep(tuple(jobs), declaration.facts, *settings))
    if declaration.text is not None:
        files.save_text(output / "sweep.yaml", declaration.text)


def _collected(make: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return make()
    except CarftError as error:
        # Those of a declaration are a list already, under a headline.
        listed = [line[2:] for line in str(error).splitlines() if line.startswith("- ")]
        problems += listed or [str(error)]
        return None


def _data(declared: Declaration, data_dir: str, needed: bool) -> tuple[list[str], list[str]]:
    """The verdict on each data folder that is here, without decoding; what refuses a launch.

    Our algorithms refuse broken data, as their jobs would; others' jobs warn of it. What is not
    here is refused where it is ``needed``.
    """
    verdicts, refused = [], []
    for name in declared.datasets:
        folder = names.picture_folder(name, data_dir)
        is_checked = any(
            declared.hparams_of(name, algorithm, variant).get("data_edition") != UNCHECKED
            for variant in declared.settings.values()
            for algorithm in declared.algorithms
            if algorithm in ALGORITHMS and variant.covers(name, algorithm)
        )
        if not folder:
            verdict = "needs no folder" if folder == "" else "not checked, its folder is unknown"
        elif not os.path.isdir(folder):
            verdict = f"not checked, no {folder} here; each job checks it where it runs"
            if needed:
                refused.append(
                    f"{name} is missing: expected its folder {folder}; is --data_dir {data_dir} "
                    "right?"
                )
        else:
            if name in tasks.TASKS:
                report = tasks.verify(name, Path(data_dir))
            else:
                report = verify.examine(name, Path(folder))
            verdict = f"{report.data_edition}, {report.pictures:,} pictures in {report.root}"
            if report.problems:
                verdict = f"broken: {'; '.join(report.problems)}"
            if report.problems and is_checked:
                remedy = f"fix the data, or set the hparam data_edition to {UNCHECKED}"
                refused.append(f"{report.refusal}; {remedy}")
        verdicts.append(f"{name}: {verdict}")
    return verdicts, refused


def _environment(arguments: argparse.Namespace, job: Job) -> dict[str, str]:
    """The environment variables for a job's settings that are not part of its identity."""
    kinds, group = arguments.log or (), arguments.output_dir.absolute().name
    told = {
        "DOMAINBED_KEEP_WEIGHTS": arguments.keep_weights,
        "DOMAINBED_PICTURES": arguments.pictures,
        "DOMAINBED_PICTURE_CACHE": arguments.picture_cache,
        "DOMAINBED_SKIP_TRAINING_IN_SPLITS": "1" if arguments.skip_training_in_splits else None,
        "DOMAINBED_LOG": " ".join(kinds),
    }
    if "wandb" in kinds and "WANDB_RUN_GROUP" not in os.environ:  # a user's own stays
        told["WANDB_RUN_GROUP"] = f"{group}/{job.variant}".rstrip("/")
    return {name: value for name, value in told.items() if value}


def _dry_run(arguments: Any, declared: Declaration, statuses: Sequence[Status]) -> None:
    paces = estimate.recorded([status.job for status in statuses], declared.facts)
    for job in [one.job for one in statuses if arguments.measure and one.state != states.DONE]:
        group = job.args["dataset"], job.args["algorithm"]
        if group not in paces:
            try:
                with contextlib.redirect_stdout(None):  # what algorithms print of themselves
                    paces[group] = estimate.measured(job, declared.facts[group[0]])
            except Exception as error:  # of an algorithm, a download, a device out of memory
                paces[group] = math.nan
                told = f"{' '.join(group)} cannot be measured here: {error}"
                print(shown(told), file=sys.stderr)
    skips = arguments.skip_training_in_splits
    costs = estimate.costs(statuses, declared.facts, paces, skips)
    print(f"Selection: {', '.join(declared.selection)}. Nothing is launched.\n")
    print(estimate.shown(costs, skips))
