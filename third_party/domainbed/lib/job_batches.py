"""All batches of a job, in the order in which it uses them: its steps and its evaluations.

One pool of loader processes serves them, and reads ahead across the border between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed.lib import fast_data_loader as loader
from domainbed.lib import misc
from domainbed.lib.fast_data_loader import Batch, Request
from domainbed.lib.members import Members
from domainbed.lib.picture_batches import Pictures
from domainbed_carft.pictures import drawing, environment

# On a GPU four times the pictures of a step, if that is more: without the activations that a
# step keeps, they take less of its memory.
EVALUATION_BATCH_SIZE = 64


@dataclass
class JobBatches:
    """The batches of a job, to be used in order. Building one draws what `training` draws from."""

    in_splits: Sequence[misc.SplitDataset]  # what is trained on
    # What is evaluated at each checkpoint, by name; an empty list stands in for a split that is
    # skipped, since what is drawn for a picture depends on its split's place.
    evaluated: Mapping[str, Any]
    hparams: Mapping[str, Any]
    steps: int
    checkpoint_freq: int
    seed: int  # what the random numbers of an evaluation depend on, beside its step
    device: str  # where the batches are to be, "cuda" or "cpu"
    members: Members  # this one gets its slice of every batch

    def __post_init__(self) -> None:
        of_step = len(self.in_splits) * self.hparams["batch_size"]
        most = 4 * of_step if self.device == "cuda" else 0
        self._at_a_time = max(EVALUATION_BATCH_SIZE * self.members.size, most)
        self._draws = loader.drawn_seed()
        balanced = self.hparams["class_balanced"]
        weigh = misc.make_weights_for_balanced_classes if balanced else lambda split: None
        self._weights = [weigh(split) for split in self.in_splits]
        sampling = self.hparams.get("sampling", environment.REPLACED)
        self._passes = [
            environment.Passes(
                len(split),
                drawing.seed_of(self._draws, number),
                environment.shards_of(split) if sampling == environment.BY_SHARD else None,
            )
            for number, split in enumerate(self.in_splits)
            if sampling != environment.REPLACED
        ]

    def begin(self, step: int, pending: bool, once: bool, workers: int, pictures: Pictures) -> None:
        """Go on with a step; `close` ends it.

        `pending`: whether the evaluation after the step before is to come first; `once`: whether to
        evaluate once, the same whenever that is, and not at every checkpoint.
        """
        data = [*self.in_splits, *self.evaluated.values()]
        whole = self._requests(step, pending, once)
        requests = filter(None, (batch[self.members.part(len(batch))] for batch in whole))
        self._loaded = loader.batches(data, requests, workers, pictures, self.device == "cuda")
        self._batches = loader.on_device(self._loaded, self.device)

    def is_due(self, step: int) -> bool:
        """Whether there is a checkpoint after the step."""
        return step % self.checkpoint_freq == 0 or step == self.steps - 1

    def of_step(self) -> list[Batch]:
        """The batches of the next step, one of each in-split."""
        return list(itertools.islice(self._batches, len(self.in_splits)))

    def of_split(self, name: str) -> Iterator[Batch | None]:
        """The batches of what is evaluated next; None where this process has no slice of one."""
        size = len(self.evaluated[name])
        for begin in range(0, size, self._at_a_time):
            part = self.members.part(min(self._at_a_time, size - begin))
            yield next(self._batches) if part.start < part.stop else None

    def close(self) -> None:
        """End the loader processes; there are no more batches."""
        self._loaded.close()

    def _requests(self, first: int, pending: bool, once: bool) -> Iterator[list[Request]]:
        if pending:
            yield from self._evaluation(0 if once else first - 1)
        sizes = [len(split) for split in self.in_splits]
        how = (self._draws, sizes, self._weights, self.hparams["batch_size"])
        for step in range(first, self.steps):
            yield from loader.training(*how, step, self._passes)
            if self.is_due(step) and not (once and pending):
                yield from self._evaluation(0 if once else step)
                pending = True

    def _evaluation(self, step: int) -> Iterator[list[Request]]:
        sizes = [len(split) for split in self.evaluated.values()]
        key = (self.seed % 2**64, step)
        return loader.evaluation(sizes, self._at_a_time, key, len(self.in_splits))
