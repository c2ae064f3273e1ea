"""The runs that selection chose in each trial, for ``carft top`` and the report."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.facts import NAMES, is_fact
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.records import RecordedRun, RecordWarning
from domainbed_carft.results import selection
from domainbed_carft.results.cells import PERCENT, format_accuracy
from domainbed_carft.results.collection import Collection, Sweeps, as_collection
from domainbed_carft.results.selection import SelectedRun

_MAX_VALUE_LENGTH = 40  # characters of a hyperparameter's value, such as a list of contexts


@dataclass(frozen=True)
class ChosenRun:
    """The run that a selection rule chose for one target in one trial.

    Attributes:
        setting: title of the group of runs; empty for a single group.
        selection: name of the selection rule.
        dataset, algorithm: arguments of the job.
        test_env: number of the target; None if no environment was held out.
        environment: name of the target; None if no environment was held out.
        trial_seed, hparams_seed: arguments of the job.
        step: step of the chosen checkpoint.
        validation_accuracy: in [0, 1].
        accuracy: in [0, 1]; None if no environment was held out.
        hparams: all hyperparameters as recorded.
        argument: ``--hparams`` for the command line of another run.
        folders: folders of the jobs that selection used, first the chosen one.
        hparams_set: hyperparameters set on the run's own command line.
        hparams_chosen: ``hparams_set`` and those that a random search drew.
        values: searched hyperparameter -> chosen value.
        members: number of choices that this one was chosen from.
        row: the tables' name of the row: the algorithm, unless ``by`` divides it.
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

    @property
    def validation_text(self) -> str:
        """The validation accuracy in percent."""
        return format_accuracy(PERCENT * self.validation_accuracy)

    @property
    def accuracy_text(self) -> str:
        """The accuracy in percent; empty if no environment was held out."""
        return "" if self.accuracy is None else format_accuracy(PERCENT * self.accuracy)

    def describe_hparams(self, shared: Container[str] = ()) -> str:
        """Return the chosen and searched values, without those named in ``shared``."""
        distinct = {k: value for k, value in self.hparams_chosen.items() if k not in shared}
        return format_hparams(self.values | distinct)


@dataclass(frozen=True)
class Top:
    """The result of `top`.

    Attributes:
        entries: the chosen runs, in the order of the tables.
        warnings: problems in the files that were read.
    """

    entries: Sequence[ChosenRun]
    warnings: Sequence[RecordWarning]


def top(sweeps: Sweeps, *, only: str = "", **options: Any) -> Top:
    """Find the chosen run of each cell and trial in the records of sweeps, like ``carft top``.

    Args:
        sweeps: one or several output folders of sweeps, or the collection that `gather` returned.
        only: a part of a job's folder or description, such as ``PACS CARFT``; other jobs have no
            entry.
        **options: options of `gather`. Of them, a collection takes ``select`` only.

    Returns:
        The chosen runs (``entries``) and the ``warnings``.

    Raises:
        CarftError: if `gather` raises it, if no chosen job matches ``only``, or if a requested
            rule chose no job.
    """
    collection = as_collection(sweeps, **options)
    for rule in options.get("select") or ():
        if not collection.select(rule):
            raise CarftError(f"no run was selected with selection {rule}")

    entries = list(list_chosen_runs(collection, only=only))
    if only and not entries:
        raise CarftError(
            f"no chosen job matches {only!r}; run carft top without --only to list all of them"
        )
    return Top(entries, collection.warnings)


def list_chosen_runs(
    collection: Collection, rules: Sequence[str] | None = None, only: str = ""
) -> Iterator[ChosenRun]:
    """Yield the chosen run of each group, rule, dataset, algorithm, target and trial.

    ``rules`` are those of the collection by default. ``only`` is as in `top`.
    """
    drawn = drawn_hparams(collection.runs)
    for group, rule in itertools.product(collection.groups, rules or collection.rules):
        labels = group.environments
        holds_out = selection.RULES[rule].holds_out

        for selected in group.select_in_table_order(rule):
            # Without targets, all columns have the same selected run.
            if not holds_out and selected.target != 0:
                continue
            if only in f"{selected.run.job.folder.name} {selected.run.job}":
                environment = labels[selected.dataset][selected.target] if holds_out else None
                yield _entry(selected, group.title, rule, environment, drawn)


def find_shared_hparams(entries: Sequence[ChosenRun]) -> dict[str, Any]:
    """Return the hyperparameters with the same values in all entries, without searched ones."""
    if not entries:
        return {}
    searched = {name for entry in entries for name in entry.values}
    return {
        name: value
        for name, value in entries[0].hparams_chosen.items()
        if name not in searched
        and all(
            name in entry.hparams_chosen and entry.hparams_chosen[name] == value
            for entry in entries
        )
    }


def format_hparams(hparams: Mapping[str, Any]) -> str:
    """Return names and values, such as ``lr 0.0003, kl_weight 3``; long values are cut."""
    parts = []
    for name, value in hparams.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _MAX_VALUE_LENGTH:
            text = f"{text[:_MAX_VALUE_LENGTH]}..."
        parts.append(f"{name} {text}")
    return ", ".join(parts)


def drawn_hparams(runs: Iterable[RecordedRun]) -> dict[tuple[str, str], list[str]]:
    """Map (dataset, algorithm) to the hyperparameters in which the draws of a random search differ.

    They are found in the records, so that the algorithm need not be installed. A single draw does
    not show any.
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


def _entry(
    selected: SelectedRun,
    setting: str,
    rule: str,
    environment: str | None,
    drawn: Mapping[tuple[str, str], Sequence[str]],
) -> ChosenRun:
    """Describe the selected run; ``environment`` is the target, or None if none was held out.

    ``drawn`` is the result of `drawn_hparams`.
    """
    has_target = environment is not None
    outcome = selected.outcome
    run = outcome.runs[0]

    hparams_set = parse_overrides(run.job.args)
    drawn_names: Sequence[str] = ()
    if outcome.hparams_seed != 0:
        drawn_names = drawn[selected.dataset, run.job.args["algorithm"]]

    # The facts of a job would reject any other dataset.
    repeated_hparams = {
        name: value
        for name, value in run.recorded.items()
        if name in hparams_set or not is_fact(name)
    }
    return ChosenRun(
        setting=setting,
        selection=rule,
        dataset=selected.dataset,
        algorithm=run.algorithm,
        test_env=selected.target if has_target else None,
        environment=environment,
        trial_seed=selected.trial,
        hparams_seed=outcome.hparams_seed,
        step=int(outcome.step),
        validation_accuracy=outcome.validation,
        accuracy=outcome.accuracy if has_target else None,
        hparams=dict(run.recorded),
        argument=f"--hparams {shlex.quote(json.dumps(repeated_hparams, sort_keys=True))}",
        folders=[run.folder for run in outcome.runs],
        hparams_set=hparams_set,
        hparams_chosen={
            name: run.recorded[name]
            for name in dict.fromkeys([*hparams_set, *drawn_names])
            if name in run.recorded and not is_fact(name)
        },
        values=dict(outcome.values),
        members=outcome.members,
        row=selected.row,
    )
