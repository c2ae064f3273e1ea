"""Evaluation at a checkpoint: validation loss, accuracies of splits, and the printed row."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from domainbed.lib import misc, stopping
from domainbed.lib.fast_data_loader import JobBatches
from domainbed.lib.process_group import ProcessGroup
from domainbed_carft.images import rng

COLUMN_WIDTH = 12


@dataclass
class Evaluator:
    """Evaluates an algorithm on the splits of a job."""

    algorithm: Any
    splits: Sequence[str]  # names of the evaluated splits
    batches: JobBatches
    device: torch.device
    process_group: ProcessGroup
    is_constant: bool  # training changes no prediction, so that one evaluation is enough
    _accuracies: dict[str, float] = field(default_factory=dict)

    def evaluate(self) -> tuple[dict[str, float], float]:
        """Return the accuracies and the duration of the evaluation in seconds.

        If there are validation batches, the algorithm first receives the validation loss.
        """
        started = time.monotonic()
        if self.batches.validated:
            self.algorithm.at_checkpoint(self.validation_loss())
        accuracies = self.accuracies()
        return accuracies, time.monotonic() - started

    def accuracies(self) -> dict[str, float]:
        """Return the accuracy on each split by its name in the records, such as env0_in_acc.

        Raises:
            Stopped: a signal was received; the random generators are then as before the call.
        """
        if self.is_constant and self._accuracies:
            return self._accuracies

        with _restore_generators_if_stopped():
            self._accuracies = {
                f"{name}_acc": misc.accuracy(
                    self.algorithm,
                    self.batches.split_batches(self.batches.evaluated[name]),
                    weights=None,
                    device=self.device,
                    all_reduce=self.process_group.all_reduce,
                )
                for name in self.splits
            }
        return self._accuracies

    def validation_loss(self) -> float:
        """Return the cross-entropy in nats, averaged over each validated split, then over splits.

        It is computed with the weights being trained, on images without augmentation.

        Raises:
            Stopped: a signal was received; the random generators are then as before the call.
        """
        with _restore_generators_if_stopped():
            losses = [self._mean_loss(split) for split in self.batches.validated.values()]
        return float(np.mean(losses))

    def _mean_loss(self, split: Sized) -> float:
        sums = torch.zeros(2, dtype=torch.float64)  # sum of the losses, number of images
        self.algorithm.eval()
        with torch.no_grad():
            for inputs, labels in self.batches.split_batches(split):
                logits = self.algorithm.trained_logits(inputs.to(self.device))
                targets = labels.to(self.device)
                loss = F.cross_entropy(logits.float(), targets, reduction="sum")
                sums[0] += loss.double().cpu()
                sums[1] += len(labels)
        self.algorithm.train()

        self.process_group.all_reduce([sums])
        return float(sums[0] / sums[1])


@contextlib.contextmanager
def _restore_generators_if_stopped() -> Iterator[None]:
    """Restore the random generators if the block raises Stopped."""
    generators = rng.get_states()
    try:
        yield
    except stopping.Stopped:
        rng.set_states(generators)
        raise


class RowPrinter:
    """Prints a row for each checkpoint, with a header whenever the columns change."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def print(self, results: Mapping[str, Any]) -> None:
        """Print the results, sorted by name."""
        columns = sorted(results)
        if columns != self._columns:
            misc.print_row(columns, colwidth=COLUMN_WIDTH)
            self._columns = columns

        misc.print_row([results[column] for column in columns], colwidth=COLUMN_WIDTH)
