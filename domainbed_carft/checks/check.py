"""Running the checks: `domainbed_carft.check`, and one result a line for `carft check`."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from domainbed_carft.arguments import FLAG, MAPPING, TEXTS
from domainbed_carft.arguments import check as check_arguments
from domainbed_carft.checks.properties import CHECKS
from domainbed_carft.checks.subject import Inapplicable, Subject, file_of, find_classes
from domainbed_carft.errors import brief, raise_for
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.text import quantity, unknown

OK = "ok"
SKIPPED = "skipped"
FAILED = "FAILED"
_WIDTH = max(map(len, CHECKS))


class CheckResult(NamedTuple):
    """What one check found.

    Attributes:
        algorithm: the name of the method.
        check: the name of the check.
        state: "ok", "skipped" or "FAILED".
        message: why it does not apply, or what was expected and what came; "" if it is ok.
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
    """Check the properties that every method has, on the small CLIP, with noise for images.

    It needs no GPU and no network, and takes some seconds. In your own tests, import it at the top
    of the module: the checks on the stand-in for a GPU need a process that has not taken a backward
    pass before this import, and are skipped otherwise.

    Args:
        method: an algorithm's name, the Python file of a method of your own, or its class.
        hparams: hyperparameters that differ from the defaults, such as ``{"average": "ema"}``.
        only: the names of the checks to run, by default all.
        without: the names of the checks to leave out; "processes" takes the longest.
        raises: whether to raise an AssertionError if a check fails.

    Returns:
        A result for each check, of all methods in a file.

    Raises:
        AssertionError: if a check fails, with one line for each that does.
        CarftError: for an unknown algorithm or check, and for a file that cannot be used.

    >>> [result.state for result in check("CARFT", only=["zero-weight"])]
    ['ok']
    """
    check_arguments(MAPPING, hparams=hparams)
    check_arguments(TEXTS, only=only, without=without)
    check_arguments(FLAG, raises=raises)
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
    """Yield the results of `check` one by one; it raises for no failure."""
    raise_for(unknown("check", name, CHECKS) for name in (*only, *without) if name not in CHECKS)
    for algorithm_class in find_classes(method):
        subject = Subject(algorithm_class, hparams)
        for name in CHECKS:
            if name not in without and (name in only or not only):
                yield _run_check(subject, name)


def _run_check(subject: Subject, name: str) -> CheckResult:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small models gain nothing from a second one
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Seems like `optimizer.step")  # of a copied schedule
            CHECKS[name](subject)
    except Inapplicable as reason:
        return CheckResult(subject.name, name, SKIPPED, str(reason))
    except AssertionError as error:
        return CheckResult(subject.name, name, FAILED, str(error))
    except Exception as error:  # of any type, by what the method does
        frames = traceback.extract_tb(error.__traceback__)
        in_method = [f for f in frames if f.filename == file_of(subject.algorithm_class)]
        frame = (in_method or frames)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return CheckResult(subject.name, name, FAILED, f"{brief(error)} ({place})")
    else:
        return CheckResult(subject.name, name, OK)
    finally:
        torch.set_num_threads(threads)


def summary(results: Sequence[CheckResult]) -> str:
    """How many checks have passed, failed and do not apply."""
    states = [result.state for result in results]
    counts = [quantity(states.count(OK), "check passed", "checks passed")]
    counts += [f"{states.count(state)} {state.lower()}" for state in (FAILED, SKIPPED)]
    return ", ".join(counts)
