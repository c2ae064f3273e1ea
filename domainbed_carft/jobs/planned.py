"""Jobs that are known by their description or declaration, not by records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from domainbed_carft.jobs import values
from domainbed_carft.results import settings


class Planned(NamedTuple):
    """A job that ``carft sweep`` has described and that has no record yet.

    Or, ``unusable``, one whose records say which it is, and cannot be used. Or, ``declared``, a job
    of the sweep that was launched, run or not; ``environments`` are the labels that go with it.
    """

    folder: str
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial: int
    choice: int
    setting: Mapping[str, str]
    unusable: bool = False
    declared: bool = False
    environments: tuple[str, ...] = ()


def of(folder: str, args: Mapping[str, Any], count: int | None = None) -> Planned:
    """Raises ValueError for arguments of no job; ``count``: of environments, if known."""
    values.require_identity(args, count)
    return Planned(
        folder, args["dataset"], args["algorithm"], tuple(args["test_envs"]),
        args["trial_seed"], args["hparams_seed"], settings.of(args, {}, None, {}),
    )  # fmt: skip


def described(folder: str, text: str) -> Planned:
    """The job of a job.json; raises ValueError for what describes none."""
    description = values.require({"it": json.loads(text)}, "it", dict)
    return of(folder, values.require(description, "train_args", dict))
