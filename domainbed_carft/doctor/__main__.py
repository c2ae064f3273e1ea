"""The checks in this interpreter: ``python -m domainbed_carft.doctor FILE [CHECK ...]``.

After each check FILE gets a line of JSON with its findings, so that a crash or a hang loses only
that check.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable

from domainbed_carft.doctor import checks
from domainbed_carft.doctor.findings import NOTE, PROBLEM, Finding
from domainbed_carft.doctor.import_errors import error_message, installation_command
from domainbed_carft.errors import CarftWarning


def main(path: str, *names: str) -> None:
    """Make the checks of these names, by default all.

    They come in an order in which a later one may need what an earlier one imported.
    """
    has_problem = False
    with open(path, "w", encoding="utf-8") as file:
        for name in names or checks.CHECKS:
            findings = findings_of(name, checks.CHECKS[name], has_problem)
            line = json.dumps([finding.as_dict() for finding in findings])
            print(line, file=file, flush=True)
            has_problem = has_problem or any(finding.state == PROBLEM for finding in findings)


def findings_of(
    name: str, check: Callable[[], Iterable[Finding]], has_problem: bool
) -> list[Finding]:
    """The findings of ``check``, one of its failure if it raises, and one for each warning of ours.

    ``has_problem``: an earlier check found a problem, from which this failure may follow.
    """
    findings: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            findings.extend(check())
        except (Exception, SystemExit) as error:  # some modules exit when they are imported
            traceback.print_exc()  # for who runs this by hand
            findings.append(_failure(name, error, has_problem))

    for warning in caught:
        if issubclass(warning.category, CarftWarning):
            message = str(warning.message)
            findings.append(Finding("plugin", NOTE, message, checks.FIX_EXTENSION))
    return findings


def _failure(name: str, error: BaseException, has_problem: bool) -> Finding:
    if name == "cache":
        remedy = checks.CHOOSE_CACHE
    else:
        general_remedy = checks.FIX_ABOVE if has_problem else checks.RUN_BY_HAND
        remedy = installation_command(error) or general_remedy
    state = NOTE if has_problem else PROBLEM
    return Finding(name, state, error_message(error), remedy)


if __name__ == "__main__":
    main(*sys.argv[1:])
