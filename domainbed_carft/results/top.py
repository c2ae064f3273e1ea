"""``carft top`` as a function: the hyperparameters that selection chose in each trial."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.facts import NAMES, NEUTRAL_RETIRED
from domainbed_carft.jobs.job import overrides
from domainbed_carft.jobs.records import RecordWarning, Run
from domainbed_carft.paths import AnyPath
from domainbed_carft.results import collection as collecting
from domainbed_carft.results import order, selection
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.selection import Selected

# Values that a run fills in and records; passed on, they would refuse any other data set.
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
    ``values``: searched hyperparameter -> the chosen value; ``members``: among how many choices this
    one was chosen.
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


def top(
    folders: AnyPath | Iterable[AnyPath],
    *,
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    single_source: bool = False,
    dataset: str | None = None,
    algorithm: str | None = None,
    test_env: int | None = None,
) -> Top:
    """The best hyperparameters of each trial in the records of sweeps, as of ``carft top``.

    ``folders``, ``methods``, ``ignored`` and ``single_source``: as for `collect`. ``dataset``,
    ``algorithm`` and ``test_env`` leave only the entries with these values. Raises CarftError if no
    entry has one of them, or none is by one of ``methods``, and for what `collect` does.
    """
    collection = collecting.gather(folders, methods, ignored, single_source=single_source)
    entries = list(best_hparams(collection))

    wanted = {"dataset": dataset, "algorithm": algorithm, "test_env": test_env}
    for name, value in wanted.items():
        if value is not None:
            _require(entries, name, value)
            entries = [entry for entry in entries if getattr(entry, name) == value]
    for method in methods or ():
        _require(entries, "selection", method)
    return Top(entries, collection.warnings)


def _require(entries: Iterable[BestHparams], name: str, value: object) -> None:
    """Raise CarftError, naming the available values, unless an entry has this one."""
    available = sorted({getattr(entry, name) for entry in entries} - {None})
    if value not in available:
        listing = ", ".join(map(str, available)) or "none"
        raise CarftError(f"no run was selected with {name} {value}; available: {listing}")


def best_hparams(
    collection: Collection, methods: Sequence[str] | None = None
) -> Iterator[BestHparams]:
    """The chosen hyperparameters of each group, method, data set, algorithm, target and trial.

    ``methods``: of selection, by default those of the collection.
    """
    drawn = drawn_hparams(collection.runs)
    for group, method in itertools.product(collection.groups, methods or collection.methods):
        labels = order.environment_labels(group.runs, listed=group.labels)
        leaves_out = selection.METHODS[method].leaves_out

        for selected in _in_row_order(selection.select(group.runs, method), group.declared):
            # Jobs that leave nothing out select the same for each column.
            if leaves_out or selected.target == 0:
                environment = labels[selected.dataset][selected.target] if leaves_out else None
                yield _entry(selected, group.title, method, environment, drawn)


def drawn_hparams(runs: Iterable[Run]) -> dict[tuple[str, str], list[str]]:
    """(data set, algorithm) -> the hyperparameters in which the draws of a random search differ.

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


def _in_row_order(selections: Iterable[Selected], declared: Sequence[str]) -> list[Selected]:
    """By data set, then in the tables' order of algorithms, then by target and trial."""
    selections = list(selections)
    algorithms = order.ordered_algorithms((selected.algorithm for selected in selections), declared)

    def row_and_trial(selected: Selected) -> tuple[str, int, int, int]:
        row = algorithms.index(selected.algorithm)
        return selected.dataset, row, selected.target, selected.trial

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

    hparams_set = overrides(run.job.args)
    is_drawn = outcome.hparams_seed != 0
    drawn_names = drawn[selected.dataset, run.job.args["algorithm"]] if is_drawn else ()

    filled_in = {*RECORDED_FACTS} - hparams_set.keys()
    to_repeat = {
        name: value
        for name, value in run.recorded.items()
        if name not in {*filled_in, "original_precision"} and NEUTRAL_RETIRED.get(name) != value
    }
    return BestHparams(
        setting=setting,
        selection=method,
        dataset=selected.dataset,
        algorithm=run.job.args["algorithm"],
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
        row=selected.algorithm,
    )
