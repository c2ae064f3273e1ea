"""One run for each job: the same job in two folders must not count twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.planned import Planned
from domainbed_carft.jobs.records import Run
from domainbed_carft.results import drift
from domainbed_carft.text import counted


def identity(run: Run | Planned) -> tuple[Any, ...]:
    """What no two runs of a group may share."""
    return (run.dataset, run.algorithm, frozenset(run.test_envs), run.trial, run.choice)


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[Fault]]:
    """``runs`` of one group with each job once, and a fault for each that was passed over.

    Of several the finished one counts; of several with the same records, the first. Raises
    CarftError, naming all of them, for jobs of which two runs came to different records.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(identity(run), []).append(run)
    if len(found) == len(runs):
        return list(runs), []
    passed_over = {}
    problems = []
    faults = []
    for same in found.values():
        kept = _kept(same)
        if kept is None:
            problems.append(_problem(same))
            continue
        for run in same:
            if run is not kept:
                passed_over[id(run)] = run
                what = f"the same job as in {kept.folder}, which counts"
                faults.append(Fault("passed over", run.folder, what))
    if problems:
        raise CarftError(
            f"{counted(len(problems), 'job was', 'jobs were')} run twice under the same settings, "
            "and came to different records; expected one run a job. Of two folders move one away, "
            "or collect them apart; in one folder set the records that do not count aside:\n"
            + "\n".join(problems)
        )
    return [run for run in runs if id(run) not in passed_over], faults


def _kept(same: Sequence[Run]) -> Run | None:
    """The run that counts, or None if that cannot be said."""
    done = [run for run in same if run.done]
    candidates = done or same
    first = candidates[0]
    equal = all(
        run.steps == first.steps
        and run.accuracies.tobytes() == first.accuracies.tobytes()  # nan is not equal to nan
        for run in candidates
    )
    return first if equal else None


def _problem(same: Sequence[Run]) -> str:
    first, *others = same
    parts = [
        f"{part} {first.setting.get(part)} and {run.setting.get(part)}"
        for run in others
        for part in {**first.setting, **run.setting}
        if first.setting.get(part) != run.setting.get(part)
    ]
    parts += [f"seed {first.seed} and {run.seed}" for run in others if run.seed != first.seed]
    if drifted := drift.differences(dict.fromkeys(run.hparams for run in same)):
        parts.append(f"recorded hparams {drifted}")
    folders = ", ".join(dict.fromkeys(run.folder for run in same))
    difference = "; ".join(parts) or "in no argument"
    return f"- {first.dataset} {first.algorithm}: {folders} (they differ: {difference})"
