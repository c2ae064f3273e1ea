"""Run the checks of a method, for `domainbed_carft.check` and `carft check`."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from domainbed_carft.arguments import FLAG, MAPPING, TEXTS, require_kind
from domainbed_carft.checks.properties import CHECKS
from domainbed_carft.checks.subject import DATASET, Inapplicable, Subject, find_classes, find_file
from domainbed_carft.errors import brief, raise_for
from domainbed_carft.method import resolution
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.suggestions import unknown
from domainbed_carft.wording import quantity

OK = "ok"
SKIPPED = "skipped"
FAILED = "FAILED"
_WIDTH = max(map(len, CHECKS))


class CheckResult(NamedTuple):
    """The result of one check of one method.

    Attributes:
        algorithm: name of the method.
        check: name of the check.
        state: "ok", "skipped" or "FAILED".
        message: the reason for skipping, or the actual and the expected value of a failed check;
            "" if the check passed.
    """

    algorithm: str
    check: str
    state: str
    message: str = ""

    def __str__(self) -> str:
        message = f": {self.message}" if self.message else ""
        return f"{self.check:{_WIDTH}}  {self.state}{message}"


def check(
    method: str | Path | type[CLIPAlgorithm],
    *,
    hparams: Mapping[str, Any] = {},
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    raises: bool = True,
) -> list[CheckResult]:
    """Check the properties that every method must have, on the small CLIP model with noise images.

    The checks run in this process and take less than a minute. They need neither a GPU nor a
    network; without a GPU, only the check called device is skipped.

    Args:
        method: name of an algorithm, path of the Python file of your own method, or its class.
        hparams: hyperparameters that differ from the defaults, such as ``{"average": "ema"}``.
        only: names of the checks to run; all by default.
        without: names of the checks to skip.
        raises: raise an AssertionError if a check fails.

    Returns:
        One result per check and method; a file can contain several methods.

    Raises:
        AssertionError: if a check fails; the message has one line per failed check.
        CarftError: if the algorithm, a check or a hyperparameter is unknown, or the file cannot be
            used.

    >>> [result.state for result in check("CARFT", only=["zero-weight"])]
    ['ok']
    """
    require_kind(MAPPING, hparams=hparams)
    require_kind(TEXTS, only=only, without=without)
    require_kind(FLAG, raises=raises)
    results = [*run_checks(method, hparams, only, without)]
    failures = [result for result in results if result.state == FAILED]
    if failures and raises:
        names = ", ".join(dict.fromkeys(result.algorithm for result in failures))
        lines = [f"{names}: {summary(results)}", *map(str, failures)]
        raise AssertionError("\n".join(lines))
    return results


def run_checks(
    method: str | Path | type[CLIPAlgorithm],
    hparams: Mapping[str, Any] = {},
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Iterator[CheckResult]:
    """Yield the results of `check` one by one, without raising an error for a failed check."""
    raise_for(unknown("check", name, CHECKS) for name in (*only, *without) if name not in CHECKS)
    classes = find_classes(method)
    raise_for(_find_problems(classes, hparams))
    for algorithm_class in classes:
        exemptions = algorithm_class.EXEMPT_FROM
        subject = Subject(algorithm_class, hparams)
        for name in CHECKS:
            if name in without or (only and name not in only):
                continue
            if name in exemptions:
                message = f"{algorithm_class.__name__} is exempt: {exemptions[name]}"
                yield CheckResult(subject.name, name, SKIPPED, message)
            else:
                yield _run_check(subject, name)


def _find_problems(
    classes: Sequence[type[CLIPAlgorithm]], hparams: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the problems of the hyperparameters, and unknown checks in exemptions.

    If a file has several methods, one of them has to know each hyperparameter.
    """
    problems = [
        problem
        for algorithm_class in classes
        for problem in resolution.resolve(algorithm_class, DATASET, hparams).problems
    ]
    classes_without_name = Counter(problem.name for problem in problems if problem.valid_names)
    yield from dict.fromkeys(
        str(problem)
        for problem in problems
        if not problem.valid_names or classes_without_name[problem.name] == len(classes)
    )

    for algorithm_class in classes:
        for name in algorithm_class.EXEMPT_FROM:
            if name not in CHECKS:
                problem_text = unknown("check", name, CHECKS)
                yield f"EXEMPT_FROM of {algorithm_class.__name__}: {problem_text}"


def _run_check(subject: Subject, name: str) -> CheckResult:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread does not make small models faster
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Seems like `optimizer.step"
            )  # caused by copying the schedule
            CHECKS[name](subject)
    except Inapplicable as reason:
        return CheckResult(subject.name, name, SKIPPED, str(reason))
    except AssertionError as error:
        return CheckResult(subject.name, name, FAILED, str(error))
    except (Exception, SystemExit) as error:  # the method can raise any type
        frames = traceback.extract_tb(error.__traceback__)
        method_frames = [f for f in frames if f.filename == find_file(subject.algorithm_class)]
        frame = (method_frames or frames)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return CheckResult(subject.name, name, FAILED, f"{brief(error)} ({place})")
    else:
        return CheckResult(subject.name, name, OK)
    finally:
        torch.set_num_threads(threads)


def summary(results: Sequence[CheckResult]) -> str:
    """Return the numbers of passed, failed and skipped checks, such as "3 checks passed, ..."."""
    states = [result.state for result in results]
    counts = [quantity(states.count(OK), "check passed", "checks passed")]
    counts += [f"{states.count(state)} {state.lower()}" for state in (FAILED, SKIPPED)]
    return ", ".join(counts)
