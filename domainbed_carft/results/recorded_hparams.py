"""Hyperparameters in which runs differ although their commands are equal.

Such runs come from versions with other defaults, or from a changed ``default_hparams``. Their
records tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from domainbed_carft.jobs import facts
from domainbed_carft.jobs.job import Job, parse_overrides
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import HPARAM, UNKNOWN, format_hparam, get_setting

DRAWN = "drawn"  # the value of an hparam in a run with an hparams_seed

# Values that the dataset, the target or the other settings decide, and facts, which are no hparams.
_DECIDED = {"class_names", "total_steps", *facts.NAMES} - {"amp"}


def add_to_settings(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return the runs with settings that contain the hparams in which runs of one row differ.

    These are the hparams of which an algorithm on one dataset recorded several values with equal
    arguments, or which only some of the runs recorded. Draws of a random search are not compared,
    because records do not show which of their values were drawn.
    """
    names = _find_differing(runs)
    if not names:
        return list(runs)
    return [
        replace(run, setting={**_get_values(run, names), **run.setting})  # set values stay
        for run in runs
    ]


def get_settings_of_planned(
    planned: Iterable[Job], runs: Iterable[RecordedRun]
) -> list[tuple[Job, Mapping[str, str]]]:
    """Return planned jobs with their settings, given the runs that `add_to_settings` returned.

    The added hparams of a job without a record are UNKNOWN.
    """
    added_by_folder = {}
    for run in runs:
        set_parts = get_setting(run.job.args)
        added_by_folder[run.job.folder] = {
            part: value
            for part, value in run.setting.items()
            if part.startswith(HPARAM) and part not in set_parts
        }
    added_parts = dict.fromkeys(part for added in added_by_folder.values() for part in added)
    unknown = dict.fromkeys(added_parts, UNKNOWN)
    return [
        (job, {**added_by_folder.get(job.folder, unknown), **get_setting(job.args)})
        for job in planned
    ]


def _find_differing(runs: Iterable[RecordedRun]) -> list[str]:
    """Return the names of hparams in which runs differ with equal arguments."""
    runs_by_command: dict[tuple[object, ...], list[Mapping[str, str]]] = {}
    for run in runs:
        if run.job.choice.hparams_seed == 0:
            searched = {HPARAM + name for name in run.job.role.values}
            parts = get_setting(run.job.args).items()
            command = frozenset(part for part in parts if part[0] not in searched)
            key = (run.dataset, run.row, command)
            runs_by_command.setdefault(key, []).append(_get_recorded(run))

    differing: dict[str, None] = {}
    for hparams_of_runs in runs_by_command.values():
        for name in dict.fromkeys(name for hparams in hparams_of_runs for name in hparams):
            if len({hparams.get(name, UNKNOWN) for hparams in hparams_of_runs}) > 1:
                differing[name] = None
    return list(differing)


def _get_values(run: RecordedRun, names: Iterable[str]) -> dict[str, str]:
    """Return the parts of the run's setting for the hparams ``names``."""
    if run.job.choice.hparams_seed != 0:
        return {HPARAM + name: DRAWN for name in names}
    recorded = _get_recorded(run)
    return {HPARAM + name: recorded.get(name, UNKNOWN) for name in names}


def _get_recorded(run: RecordedRun) -> dict[str, str]:
    """Return hparam -> value as text, without those that the command set or that others decide."""
    excluded = _DECIDED | run.job.args.keys() | parse_overrides(run.job.args).keys()
    return {
        name: format_hparam(value) for name, value in run.recorded.items() if name not in excluded
    }
