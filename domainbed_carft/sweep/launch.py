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
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.job import Job, overrides
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.suites import imagenet_training
from domainbed_carft.sweep import costs, declaration_file, name_checks, printing, states
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.states import Status
from domainbed_carft.text import confirm, counted, shown

RUN_HERE = ("local", "pool")

# Tells our harness's train whether to leave out the training environments' in-splits: "1" or "0".
SKIP_VARIABLE = "DOMAINBED_SKIP_TRAINING_IN_SPLITS"

JobVariables = Callable[[Job], Mapping[str, str]]  # the environment variables of a job


def launch(arguments: argparse.Namespace, options: Mapping[str, Any]) -> int:
    """Launch the jobs that are not done; 1 if one failed, or is not done when the launcher ends."""
    output, name, dry = arguments.output_dir, arguments.launcher, arguments.dry_run
    if wrong := refusals(declaration_file.load, arguments.sweep):
        wrong += refusals(launchers.make, name, options)
    # Those of a file are a list already, under a headline.
    lines = [line.removeprefix("- ") for one in wrong for line in one.splitlines()]
    raise_for(line for line in lines if not line.endswith("nothing was done"))
    declared, launcher = declaration_file.load(arguments.sweep), launchers.make(name, options)
    data_dir = arguments.data_dir
    if data_dir is None:
        places = [name_checks.picture_folder(one, "--data_dir") for one in declared.datasets]
        if any(one is None or one.startswith("--data_dir") for one in places):
            raise CarftError("--data_dir is missing; expected the folder of the data sets' folders")
        embedded = all(one in benchmarks.BENCHMARKS for one in declared.datasets)
        data_dir = "embedded" if embedded else "."
    problems = [] if dry else launchers.problems(launcher, [output])
    if arguments.log:  # as each job would refuse it: a train that cannot log, a missing library
        unlogged = name_checks.module("lib.scalar_logs").problems(arguments.log)
        if dry:
            for problem in unlogged:
                print(shown(f"Warning: a launch would refuse this: {problem}"), file=sys.stderr)
        else:
            problems += unlogged
    verdicts, broken = _data(declared, data_dir, name in RUN_HERE and not dry)
    # A dry run shows the verdicts and the costs before it refuses the data.
    raise_for(problems + broken if problems or not dry else ())

    statuses = look(declared, data_dir, output)
    print(f"{declared.name}: {counted(len(statuses), 'job')}: {printing.counted(statuses)}.")
    for verdict in verdicts:
        print(shown(f"Data: {verdict}."))
    jobs = [status.job for status in statuses]
    skips = skips_training_in_splits(output, jobs, arguments.skip_training_in_splits)
    if skips is not None:
        print(_evaluation(skips))
    if dry:
        print(f"Selection: {', '.join(declared.selection)}. Nothing is launched.\n")
        print(costs.shown(costs.costs(statuses, declared.facts, bool(skips)), bool(skips)))
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
        launcher(chosen, _with_skip(environment, skips))
        return 0
    if chosen:
        print(f"About to launch {counted(len(chosen), 'job')} into {output} ({name}).")
        confirm(arguments.yes)
    else:
        print("There is nothing to launch.")
    if left := run(declared, data_dir, output, launcher, name, environment, skips):
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
    environment: JobVariables | None = None,
    skip_training_in_splits: bool | None = None,
) -> list[Status]:
    """Run the jobs of a sweep that are not done; shows a progress bar if the launcher waits.

    ``skip_training_in_splits`` is resolved as by the function `skips_training_in_splits`.

    Returns the jobs that are not done at the end, each with the reason as its detail; if the
    launcher does not wait, those that failed before, if there was nothing to submit. Call it from
    the main thread, where Ctrl-C arrives.
    """
    statuses, words = look(declaration, data_dir, output), {}
    chosen = _chosen(statuses, name)
    jobs = [status.job for status in statuses]
    skips = skips_training_in_splits(output, jobs, skip_training_in_splits)
    environment = _with_skip(environment, skips)
    note(declaration, output, jobs, skips)
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


def note(
    declaration: Declaration, output: Path, jobs: Sequence[Job], skips: bool | None = None
) -> None:
    """Write the manifest for other commands, and a copy of the sweep file for people.

    ``skips``: whether the jobs leave out the training environments' in-splits.
    """
    sweep = manifest.Sweep(
        jobs=tuple(jobs),
        datasets=declaration.facts,
        selection=tuple(declaration.selection),
        compare_with=tuple(declaration.compare_with),
        algorithms=tuple(declaration.algorithms),
        skip_training_in_splits=skips,
    )
    manifest.add(output, sweep)
    files.save_text(output / "sweep.yaml", declaration.text)


def skips_training_in_splits(
    output: Path, jobs: Sequence[Job], chosen: bool | None = None
) -> bool | None:
    """Whether the jobs leave out the accuracies on the training environments' in-splits.

    The first of these decides: ``chosen``, the user's variable, the manifest of the sweep, the
    records of a sweep that 0.1.0 began. A new sweep leaves them out. Returns None for a domainbed
    whose train always has them. Raises CarftError for another value of the variable.
    """
    if not name_checks.skips_in_splits():
        return None
    if chosen is not None:
        return chosen

    variable = os.environ.get(SKIP_VARIABLE, "")
    if variable not in ("", "0", "1"):
        raise CarftError(f"{SKIP_VARIABLE} is {variable!r}, expected 0 or 1")
    if variable:
        return variable == "1"

    sweep = manifest.read(output) if output.is_dir() else None
    if sweep and sweep.skip_training_in_splits is not None:
        return sweep.skip_training_in_splits

    # 0.1.0 evaluated them unless a flag said otherwise, which only the records tell.
    begun = [args for job in jobs if (args := records.recorded_arguments(job.folder))]
    if begun or sweep:
        return bool(begun) and all(args.get("skip_training_in_splits") is True for args in begun)
    return True


def _evaluation(skips: bool) -> str:
    """What the jobs evaluate, and the flag for the opposite."""
    if skips:
        return "Evaluation: without training in-splits (--training_in_splits adds them)."
    return "Evaluation: with training in-splits (--skip_training_in_splits leaves them out)."


def _with_skip(environment: JobVariables | None, skips: bool | None) -> JobVariables:
    """The variables of ``environment``, and unless they have it, the one for what is evaluated."""
    added = {} if skips is None else {SKIP_VARIABLE: "1" if skips else "0"}
    return lambda job: {**added, **(environment(job) if environment else {})}


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
    absent = benchmarks.missing_data_dir(data_dir)
    for name in declared.datasets:
        folder = name_checks.picture_folder(name, data_dir)
        if absent and folder and not os.path.isdir(folder):
            refused += absent if needed else []
            there = "each job checks its data where it runs"
            verdicts.append(f"not checked, no --data_dir {data_dir} here; {there}")
            continue
        if not folder:
            verdict = "needs no folder" if folder == "" else "not checked, its folder is unknown"
        elif not os.path.isdir(folder):
            verdict = f"not checked, no {folder} here; each job checks it where it runs"
            if needed:
                told = f"{name} is missing: expected its folder {folder}"
                refused.append(f"{told}; is --data_dir {data_dir} right?")
        else:
            try:
                report = _verified(name, Path(data_dir))
            except CarftError as error:  # a folder, or lists in it, that cannot be read at all
                refused.append(str(error))
                verdicts.append(f"{name}: {error}")
                continue
            verdict = f"{report.data_edition}, {report.pictures:,} pictures in {report.root}"
            if report.problems:
                verdict = f"broken: {'; '.join(report.problems)}"
                remedy = f"fix the data, or set the hparam data_edition to {UNCHECKED}"
                refused += [f"{report.refusal}; {remedy}"] * (name in checked)
        verdicts.append(f"{name}: {verdict}")
    return list(dict.fromkeys(verdicts)), refused


def _verified(name: str, data_dir: Path) -> verify.Report:
    """What `carft data verify` finds of the pictures that jobs of the data set train on."""
    if name == "ImageNet":
        return imagenet_training.verify(data_dir)
    return (tasks if name in tasks.TASKS else verify).verify(name, data_dir)


def _environment(arguments: argparse.Namespace, job: Job) -> dict[str, str]:
    """The environment variables for a job's settings that are not part of its identity."""
    kinds, group = arguments.log or (), arguments.output_dir.absolute().name
    told = {
        "DOMAINBED_KEEP_WEIGHTS": arguments.keep_weights,
        "DOMAINBED_PICTURES": arguments.pictures,
        "DOMAINBED_PICTURE_CACHE": arguments.picture_cache,
        "DOMAINBED_LOG": " ".join(kinds),
    }
    if "wandb" in kinds and "WANDB_RUN_GROUP" not in os.environ:  # a user's own stays
        told["WANDB_RUN_GROUP"] = f"{group}/{job.variant}".rstrip("/")
    return {name: value for name, value in told.items() if value}
