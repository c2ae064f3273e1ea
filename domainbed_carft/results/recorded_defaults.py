"""Defaults in the settings of runs: the values of hyperparameters that ``--hparams`` did not set.

Usually all runs of an algorithm on a dataset have recorded the same defaults. If they have not, for
example because a later version has others, the recorded values become parts of the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from domainbed_carft.jobs.facts import NAMES
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import DEFAULT, HPARAM, NOT_RECORDED, format_hparam

DRAWN = "drawn"  # the value of an hparam with different defaults, in runs that drew it

# Facts that have no default. For amp, the fact is the value of the hparam.
_FACTS = {*NAMES} - {"amp"}
_ABSENT = object()


class _Source(NamedTuple):
    """The conditions under which all runs have equal values, apart from those that they set.

    Attributes:
        dataset, algorithm: arguments of the job.
        steps: the requested number of steps, which decides about ``total_steps``.
        overrides: the hparams that were set, on which other defaults can depend.
        draw: hparams_seed and trial of a random search, None for the defaults.
    """

    dataset: str
    algorithm: str
    steps: Any
    overrides: frozenset[tuple[str, str]]
    draw: tuple[int, int] | None


def is_unset(value: str) -> bool:
    """Return True for the value of an hparam in a setting that ``--hparams`` did not set."""
    return value in (DEFAULT, NOT_RECORDED, DRAWN) or value.startswith(f"{DEFAULT} ")


def add_recorded_defaults(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Add recorded values to the settings of runs whose defaults differ.

    An hparam differs if runs of one dataset, algorithm and steps, with the same values set, have
    recorded several values of it. Values that differ only between the draws of a random search are
    drawn. An hparam that differs somewhere is named by its value everywhere, so that equal values
    share a table. If some runs of an algorithm have an hparam, it is NOT_RECORDED in the others.
    """
    unset_hparams = [_get_unset_hparams(run) for run in runs]
    sources = [_get_source(run) for run in runs]
    members_by_source: dict[_Source, list[Mapping[str, Any]]] = {}
    for source, unset in zip(sources, unset_hparams, strict=True):
        members_by_source.setdefault(source, []).append(unset)

    differing_by_source = {
        source: _find_differing(members) for source, members in members_by_source.items()
    }
    defaults = {
        name: _find_defaults(name, members_by_source, differing_by_source)
        for names in differing_by_source.values()
        for name in names
    }
    set_by_algorithm: dict[str, dict[str, None]] = {}
    for run in runs:
        names_set = set_by_algorithm.setdefault(run.algorithm, {})
        names_set.update(dict.fromkeys(parse_overrides(run.job.args)))

    divided = []
    for run, source, unset in zip(runs, sources, unset_hparams, strict=True):
        values = {}
        for name, texts in defaults.items():
            if name in unset:
                text = format_hparam(unset[name])
                values[name] = f"{DEFAULT} {text}" if text in texts else DRAWN

        for name in (*differing_by_source[source], *set_by_algorithm[run.algorithm]):
            if name not in run.recorded and HPARAM + name not in run.setting:
                values[name] = NOT_RECORDED

        if values:
            parts = {HPARAM + name: value for name, value in values.items()}
            run = replace(run, setting={**run.setting, **parts})
        divided.append(run)
    return divided


def _get_source(run: RecordedRun) -> _Source:
    key = run.job.key
    # Searched values do not change other defaults, except for that of the CLIP model.
    searched = run.job.role.values.keys() - {"clip_backbone"}
    return _Source(
        dataset=key.dataset,
        algorithm=key.algorithm,
        steps=run.job.args.get("steps"),
        overrides=frozenset(
            (part, value)
            for part, value in run.setting.items()
            if part.startswith(HPARAM) and part.removeprefix(HPARAM) not in searched
        ),
        draw=(key.choice, key.trial) if key.choice else None,
    )


def _get_unset_hparams(run: RecordedRun) -> dict[str, Any]:
    """Return the recorded hparams that the command line does not decide."""
    decided = {*parse_overrides(run.job.args), *run.job.role.values, *_FACTS}
    if run.job.args.get("steps") is not None:
        decided.add("total_steps")
    return {name: value for name, value in run.recorded.items() if name not in decided}


def _find_differing(members: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    """Return the names of which the ``members`` of a source have several values."""
    first = members[0]
    return dict.fromkeys(
        name
        for unset in members
        if unset != first
        for name in {**first, **unset}
        if unset.get(name, _ABSENT) != first.get(name, _ABSENT)
    )


def _find_defaults(
    name: str,
    members_by_source: Mapping[_Source, Iterable[Mapping[str, Any]]],
    differing_by_source: Mapping[_Source, Mapping[str, None]],
) -> set[str]:
    """Return the values of an hparam that cannot have been drawn, as text."""
    return {
        format_hparam(unset[name])
        for source, members in members_by_source.items()
        if source.draw is None or name in differing_by_source[source]
        for unset in members
        if name in unset
    }
