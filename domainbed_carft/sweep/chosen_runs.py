"""Rows of chosen runs, for the tables of ``carft top`` and of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.results.cells import format_accuracy
from domainbed_carft.results.top import BestHparams

_MAX_VALUE_LENGTH = 40  # characters of a hyperparameter's value, such as a list of contexts


@dataclass(frozen=True)
class ChosenRun:
    """A chosen run and the texts of its row."""

    entry: BestHparams
    # Values that a search chose or drew, and values set by --hparams unless all rows share them.
    hparams: str
    # Step, validation accuracy and accuracy; accuracies in percent, "" if unknown.
    measured: tuple[str, str, str]


def describe(entries: Sequence[BestHparams]) -> tuple[list[ChosenRun], str]:
    """Return the rows of a table of chosen runs, and the hyperparameters that all rows share.

    Values that a search chose are in each row, even if all rows share them.
    """
    searched = {name for entry in entries for name in entry.values}
    shared = {
        name: value
        for name, value in (entries[0].hparams_chosen if entries else {}).items()
        if name not in searched
        and all(
            name in entry.hparams_chosen and entry.hparams_chosen[name] == value
            for entry in entries
        )
    }

    runs = []
    for entry in entries:
        distinct_hparams = {
            name: value for name, value in entry.hparams_chosen.items() if name not in shared
        }
        accuracy = None if entry.accuracy is None else 100 * entry.accuracy
        validation = format_accuracy(100 * entry.validation_accuracy)
        run = ChosenRun(
            entry=entry,
            hparams=_format_hparams(entry.values | distinct_hparams),
            measured=(str(entry.step), validation, format_accuracy(accuracy)),
        )
        runs.append(run)
    return runs, _format_hparams(shared)


def _format_hparams(hparams: Mapping[str, Any]) -> str:
    """Return names and values, such as ``lr 0.0003, kl_weight 3``; long values are cut."""
    parts = []
    for name, value in hparams.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _MAX_VALUE_LENGTH:
            text = f"{text[:_MAX_VALUE_LENGTH]}..."
        parts.append(f"{name} {text}")
    return ", ".join(parts)
