"""What ``--log`` asks of the jobs of a sweep, told to their ``train`` by environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from domainbed_carft.errors import CarftError
from domainbed_carft.sweep import names

LOG = "DOMAINBED_LOG"  # read by our train
GROUP = "WANDB_RUN_GROUP"  # by W&B: what the runs of a sweep have in common


def problems(kinds: Sequence[str]) -> list[str]:
    """What each job would refuse: a ``train`` that cannot log, a missing library, no login."""
    if not kinds:
        return []
    try:
        found: list[str] = names.module("lib.scalar_logs").problems(kinds)
    except CarftError:
        domainbed = getattr(sys.modules.get("domainbed"), "__path__", ["not found"])[0]
        return [
            f"--log: the jobs would run the train of {domainbed}, which logs to nothing but "
            "results.jsonl; expected the harness of domainbed-carft. Launch without --log, or "
            "where no other domainbed can be imported"
        ]
    return found


def environment(kinds: Sequence[str], output_dir: Path) -> dict[str, str]:
    """The variables by which jobs are told; a group of the user's own stays."""
    variables = {LOG: " ".join(kinds)} if kinds else {}
    if "wandb" in kinds and GROUP not in os.environ:
        variables[GROUP] = output_dir.absolute().name
    return variables


def of_variant(environment: Mapping[str, str], variant: str) -> dict[str, str]:
    """The variables of a job; the variants of a sweep are a group each."""
    group = environment.get(GROUP)
    return {**environment, **({GROUP: f"{group}/{variant}"} if group and variant else {})}
