"""The evaluation at a checkpoint: an accuracy for each split, and the row that is printed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from domainbed.lib import misc, stopping
from domainbed.lib.fast_data_loader import Batch
from domainbed.lib.job_batches import JobBatches
from domainbed.lib.process_group import ProcessGroup
from domainbed_carft.pictures import rng

COLUMN_WIDTH = 12


@dataclass
class Evaluator:
    """Measures an algorithm's accuracies on splits, as often as `accuracies` is called.

    `is_constant`: whether training changes no prediction, so that one evaluation is enough.
    """

    algorithm: Any
    splits: Sequence[str]
    batches: JobBatches
    device: str
    stop: stopping.StopSignals
    process_group: ProcessGroup
    is_constant: bool
    _accuracies: dict[str, float] = field(default_factory=dict)

    def timed_accuracies(self) -> tuple[dict[str, float], float]:
        """Return what `accuracies` returns, and how many seconds that took."""
        started = time.monotonic()
        accuracies = self.accuracies()
        return accuracies, time.monotonic() - started

    def accuracies(self) -> dict[str, float]:
        """Return the accuracy on each split, by its name in the records, such as env0_in_acc.

        Raises Stopped if a signal comes; the random generators are then as before the call.
        """
        if self.is_constant and self._accuracies:
            return self._accuracies

        generators = rng.get_states()
        try:
            self._accuracies = {
                f"{name}_acc": misc.accuracy(
                    self.algorithm,
                    self._batches_of_split(name),
                    weights=None,
                    device=self.device,
                    all_reduce=self.process_group.all_reduce,
                )
                for name in self.splits
            }
        except stopping.Stopped:
            rng.set_states(generators)
            raise
        return self._accuracies

    def _batches_of_split(self, name: str) -> Iterator[Batch]:
        for batch in self.batches.split_batches(name):
            self.stop.check()
            if batch is not None:
                yield batch


class RowPrinter:
    """Prints a row for each checkpoint, under a head wherever the columns are new."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def print(self, results: Mapping[str, Any]) -> None:
        """Print the results by name, in the order of the names."""
        columns = sorted(results)
        if columns != self._columns:
            misc.print_row(columns, colwidth=COLUMN_WIDTH)
            self._columns = columns

        misc.print_row([results[column] for column in columns], colwidth=COLUMN_WIDTH)
