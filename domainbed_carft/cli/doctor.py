"""``carft doctor``: prints whether a training job could start here, and if not, what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from domainbed_carft import doctor
from domainbed_carft.doctor import Finding
from domainbed_carft.text import printable, quantity


def run(arguments: argparse.Namespace) -> int:
    """Print the findings and the verdict; 1 if a job could not start, or was not tried."""
    findings = doctor.diagnose(with_training=arguments.train)
    is_missing_step = arguments.train and _is_train_untried(findings)
    is_ok = not doctor.has_problem(findings) and not is_missing_step

    if arguments.json:
        names = ("name", "state", "found", "remedy")
        rows = [{name: getattr(finding, name) for name in names} for finding in findings]
        print(json.dumps({"ok": is_ok, "findings": rows}, indent=2))
    else:
        for finding in findings:
            print(printable(f"{finding.state:8} {finding.name:17} {finding.found}"))
            if finding.remedy:
                print(printable(f"{'':8} -> {finding.remedy}"))
        print(f"\n{verdict(findings, is_missing_step)}")
    return 0 if is_ok else 1


def _is_train_untried(findings: Sequence[Finding]) -> bool:
    """Whether nothing is known of the `train` of this checkout."""
    return any(f.name == "train" and f.state == doctor.SKIPPED for f in findings)


def verdict(findings: Sequence[Finding], is_missing_step: bool = False) -> str:
    """Which training jobs can start, as far as the findings tell.

    ``is_missing_step``: whether a step was asked for and not taken.
    """
    problems = [finding.name for finding in findings if finding.state == doctor.PROBLEM]
    if problems and {*problems} == {doctor.RESULTS}:  # a job was trained to its end
        return "A training job starts, but its results do not count: see the arrow."
    if problems:
        count = quantity(len(problems), "problem")
        return f"A training job cannot start: {count}, see the arrows."
    if is_missing_step:
        return "No training job was tried: see the arrow of train."

    can_start = "can start"
    if _is_train_untried(findings):
        can_start = "may start, if this checkout's train works"
    default_weights = f"backbone {doctor.DEFAULT_BACKBONE}"
    if not any(f.name == default_weights and f.state == doctor.NOTE for f in findings):
        return f"A training job {can_start}."
    return (
        f"A training job on EmojiStyles, or with tiny as clip_backbone, {can_start}. Others need "
        f"the weights of {doctor.DEFAULT_BACKBONE}, which are not here."
    )
