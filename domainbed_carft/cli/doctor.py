"""``carft doctor``: prints whether a training job could start here, and if not, what to do."""

from __future__ import annotations

import argparse
import json

from domainbed_carft import doctor
from domainbed_carft.text import printable, quantity


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and the verdict; 1 if a job could not start."""
    findings = doctor.diagnose(with_training=arguments.train)
    problems = sum(finding.state == doctor.PROBLEM for finding in findings)
    if arguments.json:
        rows = [vars(finding) for finding in findings]
        print(json.dumps({"ok": not problems, "findings": rows}, indent=2))
        return 1 if problems else 0

    for finding in findings:
        first, *others = finding.found.splitlines()
        print(printable(f"{finding.state:8} {finding.name:17} {first}"))
        for line in others:
            print(printable(f"{'':8} {line}"))
        if finding.remedy:
            print(printable(f"{'':8} -> {finding.remedy}"))
    if problems:
        verdict = f"A training job cannot start: {quantity(problems, 'problem')}, see the arrows."
    elif arguments.train:
        verdict = "A training job can start."
    else:
        verdict = "No problem found. carft doctor --train takes two steps of training."
    print(f"\n{verdict}")
    return 1 if problems else 0
