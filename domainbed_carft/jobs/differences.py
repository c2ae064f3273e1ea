"""In what two runs differ by their records: settings, versions, data editions and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from domainbed_carft.errors import CarftError, invalid
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import HPARAM, SCHEDULE
from domainbed_carft.paths import AnyPath, as_path

# Which job of its sweep it is, by the names of train's arguments.
IDENTITY = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
# Facts among the recorded hyperparameters that are settings by themselves.
_SETTINGS_OF_THEIR_OWN = ("protocol", "data_edition", "method_digest")


@dataclass(frozen=True)
class RunDifferences:
    """What `diff` returns.

    ``differences``: setting, such as ``hparam lr`` or ``version of PyTorch`` -> its values in both
    runs. ``only_in_first`` and ``only_in_second``: settings that just one run has recorded; they do
    not count as differences.
    """

    first: str
    second: str
    differences: Mapping[str, tuple[Any, Any]]
    only_in_first: Sequence[str]
    only_in_second: Sequence[str]

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs that both runs have recorded."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """What ``carft diff --json`` prints."""
        return asdict(self)


def diff(first: AnyPath, second: AnyPath) -> RunDifferences:
    """In what two runs differ, each given by its job's folder; neither accuracies nor paths count.

    Raises CarftError for a folder without the records of one run.
    """
    settings = _settings(_run_in(first))
    other_settings = _settings(_run_in(second))
    return RunDifferences(
        first=str(first),
        second=str(second),
        differences={
            name: (value, other_settings[name])
            for name, value in settings.items()
            if name in other_settings and not _is_same(value, other_settings[name])
        },
        only_in_first=[name for name in settings if name not in other_settings],
        only_in_second=[name for name in other_settings if name not in settings],
    )


def _run_in(folder: AnyPath) -> RecordedRun:
    path = as_path(folder)
    runs = records.read([path]).runs if (path / RECORDS).is_file() else []
    if len(runs) != 1:
        expected = f"a job's folder, with the records of one run in {RECORDS}"
        raise CarftError(invalid("the folder to compare", str(folder), expected))
    return runs[0]


def _settings(run: RecordedRun) -> dict[str, Any]:
    """Setting -> value, those of IDENTITY first."""
    settings = {name: run.job.args[name] for name in IDENTITY}
    settings["test_envs"] = sorted(settings["test_envs"])
    for name, value in run.setting.items():
        if not name.startswith((HPARAM, SCHEDULE)):  # `recorded` has all of these
            settings[name] = value

    for name, value in run.recorded.items():
        if value != "" and name not in _SETTINGS_OF_THEIR_OWN:
            settings[HPARAM + name] = value
    return settings


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values are equal, such as 1 and 1.0; True is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
