"""``carft doctor``: prints whether a training job could start here, and if not, what to do."""

from __future__ import annotations

import argparse
import json

from domainbed_carft.doctor.checks import DEFAULT_BACKBONE
from domainbed_carft.doctor.diagnosis import Diagnosis, diagnose
from domainbed_carft.text import printable, quantity


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and the verdict; 1 if a job could not start, or was not tried."""
    diagnosis = diagnose(with_training=arguments.train)

    if arguments.json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        print_findings(diagnosis)
        print(f"\n{verdict(diagnosis)}")
    return 0 if diagnosis.is_ok else 1


def print_findings(diagnosis: Diagnosis) -> None:
    """Print a line a finding, and what to do below it."""
    for finding in diagnosis.findings:
        print(printable(f"{finding.state:8} {finding.name:17} {finding.detail}"))
        if finding.remedy:
            print(printable(f"{'':8} -> {finding.remedy}"))


def verdict(diagnosis: Diagnosis) -> str:
    """Which training jobs can start, as far as the findings tell."""
    if diagnosis.has_started:
        return "A training job starts, but its results do not count: see the arrow."
    if not diagnosis.can_start:
        problems = quantity(diagnosis.problem_count, "problem")
        return f"A training job cannot start: {problems}, see the arrows."

    if not diagnosis.is_ok:
        return "No training job was tried: see the arrow of train."

    can_start = "can start"
    if diagnosis.is_train_untried:
        can_start = "may start, if this checkout's train works"
    if not diagnosis.lacks_default_weights:
        return f"A training job {can_start}."
    return (
        f"A training job on EmojiStyles, or with tiny as clip_backbone, {can_start}. Others need "
        f"the weights of {DEFAULT_BACKBONE}, which are not here."
    )
