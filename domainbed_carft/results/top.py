"""``carft top`` as a function: the hyperparameters that selection chose in each trial."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.facts import NAMES
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.records import RecordedRun, RecordWarning
from domainbed_carft.results import selection
from domainbed_carft.results.collection import Collection, Group, Sweeps, gathered
from domainbed_carft.results.selection import Selected

# Values that a run fills in and records; passed on, they would refuse any other dataset.
RECORDED_FACTS = (
    "prompts_digest",
    "clip_digest",
    "clip_revision",
    "preprocessing",
    "data_edition",
    "method_digest",
    "method_file",
)


@dataclass(frozen=True)
class BestHparams:
    """The hyperparameters that a selection method chose for one target in one trial.

    ``row``: what tables call the row, the algorithm's name unless rows have values of their own.
    ``setting``: of the group of runs, where there are several. ``test_env`` and ``environment``:
    index and name of the target; None, as is ``accuracy``, if nothing was left out. Accuracies are
    in [0, 1]. ``hparams``: as recorded; ``argument``: for the command line of another run;
    ``hparams_set``: those that the run's own command line sets; ``hparams_chosen``: these and those
    that a random search drew. ``folders``: of the jobs that selection used, the run itself first.
    ``values``: searched hyperparameter -> the chosen value; ``members``: among how many choices
    this one was chosen.
    """

    setting: str
    selection: str
    dataset: str
    algorithm: str
    test_env: int | None
    environment: str | None
    trial_seed: int
    hparams_seed: int
    step: int
    validation_accuracy: float
    accuracy: float | None
    hparams: dict[str, Any]
    argument: str
    folders: list[str]
    hparams_set: dict[str, Any]
    hparams_chosen: dict[str, Any]
    values: dict[str, Any]
    members: int
    row: str

    def as_dict(self) -> dict[str, Any]:
        """An entry of the list that ``carft top --json`` prints."""
        return dict(vars(self))


@dataclass(frozen=True)
class Top:
    """What `top` returns: ``entries`` in the tables' order, and warnings about unusable files."""

    entries: Sequence[BestHparams]
    warnings: Sequence[RecordWarning]


def top(sweeps: Sweeps, *, only: str = "", **reading: Any) -> Top:
    """The best hyperparameters of each trial in the records of sweeps, as of ``carft top``.

    ``sweeps``: output folders, or the collection that `gather` read; ``reading``: the options of
    `gather`. ``only``: a part of a job's folder or description, such as ``PACS CARFT``; other jobs
    have no entry. Raises CarftError if no chosen job has it, if a requested method chose none,
    and for what `gather` does.
    """
    collection = gathered(sweeps, **reading)
    for method in reading.get("methods") or ():
        if not collection.selected(method):
            raise CarftError(f"no run was selected with selection {method}")

    entries = list(best_hparams(collection, only=only))
    if only and not entries:
        raise CarftError(f"no chosen job matches {only!r}; for a list: carft top without --only")
    return Top(entries, collection.warnings)


def best_hparams(
    collection: Collection, methods: Sequence[str] | None = None, only: str = ""
) -> Iterator[BestHparams]:
    """The chosen hyperparameters of each group, method, dataset, algorithm, target and trial.

    ``methods``: of selection, by default those of the collection. ``only``: as of `top`.
    """
    drawn = drawn_hparams(collection.runs)
    for group, method in itertools.product(collection.groups, methods or collection.methods):
        labels = group.environments
        leaves_out = selection.METHODS[method].leaves_out

        for selected in _in_row_order(group, method):
            # Jobs that leave nothing out select the same for each column.
            is_first = leaves_out or selected.target == 0
            if is_first and only in f"{selected.run.job.folder.name} {selected.run.job}":
                environment = labels[selected.dataset][selected.target] if leaves_out else None
                yield _entry(selected, group.title, method, environment, drawn)


def drawn_hparams(runs: Iterable[RecordedRun]) -> dict[tuple[str, str], list[str]]:
    """(dataset, algorithm) -> the hyperparameters in which the draws of a random search differ.

    Only the records tell, so that no algorithm need be installed. Of a lone draw they tell nothing.
    """
    values: dict[tuple[str, str], dict[str, set[str]]] = {}
    for run in runs:
        args = run.job.args
        values_of_row = values.setdefault((args["dataset"], args["algorithm"]), {})
        for name, value in run.recorded.items():
            if name not in NAMES:
                values_of_row.setdefault(name, set()).add(json.dumps(value, sort_keys=True))

    return {
        row: [name for name, distinct in values_of_row.items() if len(distinct) > 1]
        for row, values_of_row in values.items()
    }


def _in_row_order(group: Group, method: str) -> list[Selected]:
    """What the method selects, by dataset, row in the tables' order, target and trial."""
    selections = group.selected(method)
    names = group.ordered(selected.row for selected in selections)

    def row_and_trial(selected: Selected) -> tuple[str, int, int, int]:
        return selected.dataset, names.index(selected.row), selected.target, selected.trial

    return sorted(selections, key=row_and_trial)


def _entry(
    selected: Selected,
    setting: str,
    method: str,
    environment: str | None,
    drawn: Mapping[tuple[str, str], Sequence[str]],
) -> BestHparams:
    """The hparams that were selected; ``environment``: the one left out, None if none was.

    ``drawn``: as `drawn_hparams` returns it.
    """
    leaves_out = environment is not None
    outcome = selected.outcome
    run = outcome.runs[0]

    hparams_set = parse_overrides(run.job.args)
    is_drawn = outcome.hparams_seed != 0
    drawn_names = drawn[selected.dataset, run.job.args["algorithm"]] if is_drawn else ()

    filled_in = {*RECORDED_FACTS} - hparams_set.keys()
    to_repeat = {name: value for name, value in run.recorded.items() if name not in filled_in}
    return BestHparams(
        setting=setting,
        selection=method,
        dataset=selected.dataset,
        algorithm=run.algorithm,
        test_env=selected.target if leaves_out else None,
        environment=environment,
        trial_seed=selected.trial,
        hparams_seed=outcome.hparams_seed,
        step=int(outcome.step),
        validation_accuracy=outcome.validation,
        accuracy=outcome.accuracy if leaves_out else None,
        hparams=dict(run.recorded),
        argument=f"--hparams {shlex.quote(json.dumps(to_repeat, sort_keys=True))}",
        folders=[run.folder for run in outcome.runs],
        hparams_set=hparams_set,
        hparams_chosen={
            name: run.recorded[name]
            for name in dict.fromkeys([*hparams_set, *drawn_names])
            if name in run.recorded and name not in RECORDED_FACTS
        },
        values=dict(outcome.values),
        members=outcome.members,
        row=selected.row,
    )
