"""``carft sweep launch``: check everything, show it, ask for confirmation, run."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft import files, launchers
from domainbed_carft.data import benchmarks, tasks, verify
from domainbed_carft.errors import CarftError, raise_for, refusals
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job, overrides
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.sweep import estimate, names, printing, sources, states
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import confirm, counted, shown

RUN_HERE = ("local", "pool")


def launch(arguments: argparse.Namespace, options: Mapping[str, Any]) -> int:
    """Launch the jobs that are not done; 1 if one failed, or is not done when the launcher ends."""
    output, name, dry = arguments.output_dir, arguments.launcher, arguments.dry_run
    if wrong := refusals(sources.load, arguments.sweep):
        wrong += refusals(launchers.make, name, options)
    # Those of a file are a list already, under a headline.
    lines = [line.removeprefix("- ") for one in wrong for line in one.splitlines()]
    raise_for(line for line in lines if not line.endswith("nothing was done"))
    declared, launcher = sources.load(arguments.sweep), launchers.make(name, options)
    data_dir = arguments.data_dir
    if data_dir is None:
        places = [names.picture_folder(one, "--data_dir") for one in declared.datasets]
        if any(one is None or one.startswith("--data_dir") for one in places):
            raise CarftError("--data_dir is missing; expected the folder of the data sets' folders")
        embedded = all(one in benchmarks.BENCHMARKS for one in declared.datasets)
        data_dir = "embedded" if embedded else "."
    problems = [] if dry else launchers.problems(launcher, [output])
    if arguments.log:  # as each job would refuse it: a train that cannot log, a missing library
        problems += names.module("lib.scalar_logs").problems(arguments.log)
    verdicts, broken = _data(declared, data_dir, name in RUN_HERE and not dry)
    # A dry run shows the verdicts and the costs before it refuses the data.
    raise_for(problems + broken if problems or not dry else ())

    statuses = look(declared, data_dir, output)
    print(f"{declared.name}: {counted(len(statuses), 'job')}: {printing.counted(statuses)}.")
    for verdict in verdicts:
        print(shown(f"Data: {verdict}."))
    if dry:
        skips = arguments.skip_training_in_splits
        print(f"Selection: {', '.join(declared.selection)}. Nothing is launched.\n")
        print(estimate.shown(estimate.costs(statuses, declared.facts, skips), skips))
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
    if left := run(declared, data_dir, output, launcher, name, environment):
        print(printing.failures(left, output), file=sys.stderr)
    elif name == "slurm" and chosen:
        print(f"Submitted. To watch the jobs: {printing.again('status', output)} --watch 30")
    return int(bool(left))


def look(declaration: Declaration, data_dir: str, output: Path) -> list[Status]:
    """All jobs of the sweep, each in its folder, and their states."""
    jobs = manifest.reuse_folders(declaration.jobs(data_dir, output), output)
    places = states.waiting(output).places
    return [states.status(job, declaration.facts, places) for job in jobs]


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
    statuses, words = look(declaration, data_dir, output), {}
    chosen = _chosen(statuses, name)
    note(declaration, output, [status.job for status in statuses])
    if name == "slurm":
        launcher(chosen, environment)
        return [status for status in statuses if status.state == states.FAILED and not chosen]
    if chosen:
        with printing.bar(statuses, declaration.facts):
            endings = launcher(chosen, environment) or ()
        # Where there could be no attempt, such as for a full disk, only the launcher knows why.
        words = {Path(ending.folder): ending.last_words for ending in endings}
        statuses = look(declaration, data_dir, output)
    left = [status for status in statuses if status.state != states.DONE]
    return [replace(one, detail=one.detail or words.get(one.job.folder, "")) for one in left]


def note(declaration: Declaration, output: Path, jobs: Sequence[Job]) -> None:
    """Write the manifest for other commands, and a copy of the sweep file for people."""
    settings = tuple(declaration.selection), tuple(declaration.compare_with)
    manifest.add(output, manifest.Sweep(tuple(jobs), declaration.facts, *settings))
    files.save_text(output / "sweep.yaml", declaration.text)


def _data(declared: Declaration, data_dir: str, needed: bool) -> tuple[list[str], list[str]]:
    """The verdict on each data folder that is here, without decoding; what refuses a launch.

    Our algorithms refuse broken data, as their jobs would; others' jobs warn of it. What is not
    here is refused where it is ``needed``.
    """
    verdicts, refused = [], list[str]()
    checked = {
        job.key.dataset
        for job in declared.jobs(data_dir, Path())
        if job.key.algorithm in ALGORITHMS and overrides(job.args).get("data_edition") != UNCHECKED
    }
    for name in declared.datasets:
        folder = names.picture_folder(name, data_dir)
        if not folder:
            verdict = "needs no folder" if folder == "" else "not checked, its folder is unknown"
        elif not os.path.isdir(folder):
            verdict = f"not checked, no {folder} here; each job checks it where it runs"
            if needed:
                told = f"{name} is missing: expected its folder {folder}"
                refused.append(f"{told}; is --data_dir {data_dir} right?")
        else:
            report = (tasks if name in tasks.TASKS else verify).verify(name, Path(data_dir))
            verdict = f"{report.data_edition}, {report.pictures:,} pictures in {report.root}"
            if report.problems:
                verdict = f"broken: {'; '.join(report.problems)}"
                remedy = f"fix the data, or set the hparam data_edition to {UNCHECKED}"
                refused += [f"{report.refusal}; {remedy}"] * (name in checked)
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
