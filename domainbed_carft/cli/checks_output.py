"""Output of the commands that check before a sweep: ``doctor``, ``check`` and ``data``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.escaping import print_lines
from domainbed_carft.text_tables import table
from domainbed_carft.wording import quantity

NO_DATA = 2  # exit status of data verify


def doctor_command(arguments: argparse.Namespace) -> int:
    """Print the findings and a conclusion; return 1 if there is a problem."""
    from domainbed_carft import doctor  # with as few imports as possible, which can be damaged

    findings = doctor.diagnose(arguments.train, arguments.algorithm)
    problems = sum(finding.state == doctor.PROBLEM for finding in findings)
    if arguments.json:
        rows = [vars(finding) for finding in findings]
        print(json.dumps({"ok": not problems, "findings": rows}, indent=2))
        return 1 if problems else 0

    for finding in findings:
        first, *further_lines = finding.detail.splitlines()
        hint = [f"-> {finding.hint}"] if finding.hint else []
        print_lines(
            f"{finding.state:8} {finding.name:17} {first}",
            *(f"{'':8} {line}" for line in [*further_lines, *hint]),
        )
    states = {finding.name: finding.state for finding in findings}
    print(f"\n{_conclude(problems, arguments.train, states.get('train'))}")
    return 1 if problems else 0


def _conclude(problems: int, with_training: bool, training: str | None) -> str:
    """Return the last line of ``doctor``.

    Args:
        problems: the number of problems, of which the two training steps can be one.
        with_training: True if the user wants training steps.
        training: the state of these steps, None if none were taken.
    """
    from domainbed_carft import doctor

    if training == doctor.PROBLEM:
        return "No other problem found, but the two training steps failed, see the arrow."
    if problems:
        return f"A training job cannot start: {quantity(problems, 'problem')}, see the arrows."
    if training == doctor.OK:
        return "A training job can start."
    if with_training:
        return "No problem found, but no training step was tested, see the arrow."
    return "No problem found. To also test two training steps: carft doctor --train"


def check_command(arguments: argparse.Namespace) -> int:
    """Print each check's result when it ends, and a summary; return 1 if a check failed."""
    from domainbed_carft.checks.check import FAILED, CheckResult, run_checks, summary  # torch

    hparams = _parse_hparams(arguments.hparams)
    results: list[CheckResult] = []
    for result in run_checks(arguments.method, hparams, arguments.only, arguments.without):
        if not results or result.algorithm != results[-1].algorithm:
            print_lines(result.algorithm)
        results.append(result)
        print_lines(str(result))
    print(f"\n{summary(results)}")
    return 1 if any(result.state == FAILED for result in results) else 0


def _parse_hparams(text: str) -> dict[str, Any]:
    try:
        hparams = json.loads(text)
    except ValueError:
        hparams = None
    if not isinstance(hparams, dict):
        raise CarftError(invalid("--hparams", text, 'a JSON object, such as {"average": "ema"}'))
    return hparams


def list_command(arguments: argparse.Namespace) -> None:
    """Print a table of the datasets for training, and a table of the test sets."""
    from domainbed_carft.suites import known_data

    if arguments.json:
        print(json.dumps(known_data.list_known_data(), indent=2))
        return

    print(_training_table())
    print("\nTest sets of the suite imagenet (carft evaluate --suite imagenet):")
    print(_test_set_table())
    print("\nsteps: DomainBed's default, which --steps overrides.")
    print("Other steps, sources, licences, citations, counts by class: carft data list --json")


def _training_table() -> str:
    """Return the table of the datasets for training."""
    from domainbed_carft.data.benchmarks import BENCHMARKS
    from domainbed_carft.data.tasks import TASKS
    from domainbed_carft.suites import known_data

    benchmark_rows = [
        (
            benchmark.name,
            benchmark.folder or "(in the package)",
            ", ".join(environment.label for environment in benchmark.environments),
            str(len(benchmark.classes)),
            " or ".join(f"{edition.total:,}" for edition in benchmark.editions),
            f"{benchmark.steps['DomainBed']:,}",
        )
        for benchmark in BENCHMARKS.values()
    ]
    task_rows = [
        (
            task.name,
            task.folder,
            f"train, {task.split}; test set",
            str(task.classes),
            " + ".join(f"{images:,}" for images in task.images),
            f"{known_data.TASK_STEPS:,}",
        )
        for task in TASKS.values()
    ]
    header = ("name", "folder", "environments", "classes", "images", "steps")
    return table(header, [*benchmark_rows, *task_rows])


def _test_set_table() -> str:
    """Return the table of ImageNet's test sets."""
    from domainbed_carft.suites import imagenet

    facts = imagenet.facts()
    rows = [
        (
            test_set.name,
            facts[test_set.name]["folders"][0],
            str(len(test_set.classes)),
            f"{facts[test_set.name]['images']:,}",
        )
        for test_set in imagenet.suite().sets
    ]
    return table(("name", "folder", "classes", "images"), rows)


def verify_command(arguments: argparse.Namespace) -> int:
    """Print the report of a dataset; return 1 if it is broken, and 2 if there is no data."""
    from domainbed_carft.suites import known_data

    try:
        report = known_data.verify_data(arguments.data, arguments.data_dir, arguments.decode)
    except CarftError as error:
        print(f"carft: {error}", file=sys.stderr)
        if arguments.json:
            failure = {"name": arguments.data, "status": None, "error": str(error)}
            print(json.dumps(failure, indent=2))
        return NO_DATA

    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.as_text())
    return int(report.status == "broken")


def download_command(arguments: argparse.Namespace) -> None:
    """Download a dataset, and print the report of its verification."""
    from domainbed_carft.suites import known_data

    report = known_data.download_data(
        arguments.data, arguments.data_dir, arguments.accept_different, arguments.given_files
    )
    print(report.as_text())


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "doctor": doctor_command,
    "check": check_command,
    "list": list_command,
    "verify": verify_command,
    "download": download_command,
}
