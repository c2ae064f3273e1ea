"""The runs that selection chose, as rows of a table: of ``carft top``, and of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.results.columns import format_accuracy
from domainbed_carft.results.top import BestHparams

_MAX_VALUE_LENGTH = 40  # of a hyperparameter, such as a list of contexts


@dataclass(frozen=True)
class ChosenRun:
    """A chosen run in words.

    ``hparams``: the values that a search chose or drew and those that ``--hparams`` sets, unless
    all rows share them. ``measured``: step, validation accuracy and accuracy, in percent, ""
    without.
    """

    entry: BestHparams
    hparams: str
    measured: tuple[str, str, str]


def describe(entries: Sequence[BestHparams]) -> tuple[list[ChosenRun], str]:
    """The rows of a table of chosen runs, and the hyperparameters that all rows share, in words.

    The chosen values of a search are in each row, shared or not.
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
        own_hparams = {
            name: value for name, value in entry.hparams_chosen.items() if name not in shared
        }
        accuracy = None if entry.accuracy is None else 100 * entry.accuracy
        validation = format_accuracy(100 * entry.validation_accuracy)
        run = ChosenRun(
            entry=entry,
            hparams=_hparams_text(entry.values | own_hparams),
            measured=(str(entry.step), validation, format_accuracy(accuracy)),
        )
        runs.append(run)
    return runs, _hparams_text(shared)


def _hparams_text(hparams: Mapping[str, Any]) -> str:
    """Names and values, as ``lr 0.0003, kl_weight 3``; a long value is cut."""
    parts = []
    for name, value in hparams.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > _MAX_VALUE_LENGTH:
            text = f"{text[:_MAX_VALUE_LENGTH]}..."
        parts.append(f"{name} {text}")
    return ", ".join(parts)
