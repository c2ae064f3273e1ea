"""Differences between the records of two runs: settings, versions, data editions, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.jobs import records
from domainbed_carft.jobs.facts import CHANGED_HPARAMS, DECLARATIONS
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import HPARAM, SCHEDULE, label_recorded
from domainbed_carft.paths import AnyPath, as_path

# Arguments of train that identify a job within its sweep.
_FIRST_SETTINGS = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
# Facts that are not compared as such: they are parts of the setting, or follow from the method.
_SEPARATE_SETTINGS = (
    "protocol",
    "data_edition",
    "method_digest",
    DECLARATIONS,
    CHANGED_HPARAMS,
)


@dataclass(frozen=True)
class RunDifferences:
    """Settings in which two runs differ, returned by `diff`.

    Attributes:
        first: folder of the first job.
        second: folder of the second job.
        differences: setting or fact, such as ``hparam lr``, ``fact prompts_digest`` or ``version of
            PyTorch``, to its values in the first and the second run.
        only_in_first: settings recorded by the first run only. They do not count as differences.
        only_in_second: settings recorded by the second run only.
    """

    first: str
    second: str
    differences: Mapping[str, tuple[Any, Any]]
    only_in_first: Sequence[str]
    only_in_second: Sequence[str]

    @property
    def is_equal(self) -> bool:
        """True if all settings recorded by both runs are equal."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict, the content of ``carft diff --json``."""
        return asdict(self)


def diff(first: AnyPath, second: AnyPath) -> RunDifferences:
    """Compare the settings of two runs, without their accuracies and paths.

    Args:
        first: folder of a job.
        second: folder of the job to compare it with.

    Returns:
        The settings that differ, and settings that only one of the runs has recorded.

    Raises:
        CarftError: if a folder does not contain the records of exactly one run.
    """
    first_settings = _get_settings(_read_run(first))
    second_settings = _get_settings(_read_run(second))
    return RunDifferences(
        first=str(first),
        second=str(second),
        differences={
            name: (value, second_settings[name])
            for name, value in first_settings.items()
            if name in second_settings and not _is_same(value, second_settings[name])
        },
        only_in_first=[name for name in first_settings if name not in second_settings],
        only_in_second=[name for name in second_settings if name not in first_settings],
    )


def _read_run(folder: AnyPath) -> RecordedRun:
    path = as_path(folder)
    runs = records.read([path]).runs if (path / RECORDS).is_file() else []
    if len(runs) != 1:
        expected = f"the folder of a job with the records of one run in {RECORDS}"
        raise CarftError(invalid("the folder to compare", str(folder), expected))
    return runs[0]


def _get_settings(run: RecordedRun) -> dict[str, Any]:
    """Map settings to values, in the order in which differences are listed."""
    settings = {name: run.job.args[name] for name in _FIRST_SETTINGS}
    settings["test_envs"] = sorted(settings["test_envs"])
    for name, value in run.setting.items():
        if not name.startswith((HPARAM, SCHEDULE)):  # `recorded` has all of these
            settings[name] = value

    for name, value in run.recorded.items():
        if value != "" and name not in _SEPARATE_SETTINGS:
            settings[label_recorded(name)] = value
    return settings


def _is_same(value: Any, other: Any) -> bool:
    """Return True for equal values such as 1 and 1.0, but not for True and 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
