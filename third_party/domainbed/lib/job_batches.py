"""All batches of a job, in the order in which it uses them: its steps and its evaluations.

One pool of loader processes serves them, and reads ahead across the border between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from domainbed.lib import fast_data_loader as loader
from domainbed.lib.fast_data_loader import Batch, Request
from domainbed.lib.members import Members
from domainbed.lib.picture_batches import Pictures
from domainbed.lib.splits import Split
from domainbed_carft.pictures import drawing, environment

# On a GPU four times the pictures of a step, if that is more: without the activations that a
# step keeps, they take less of its memory.
EVALUATION_BATCH_SIZE = 64


class JobBatches:
    """The batches of a job, which have to be used in order.

    Building one draws the seed of what is trained on from the global generator.

    Args:
        in_splits: what is trained on.
        evaluated: what is evaluated at each checkpoint, by name; an empty list stands in for a
            split that is skipped, since what is drawn for a picture depends on its split's place.
        batch_size: items of each in-split in a step.
        steps: how many steps there are in all.
        checkpoint_freq: steps between two checkpoints; the last step has one, too.
        seed: what the random numbers of an evaluation depend on, beside its step.
        device: where the batches are to be, "cuda" or "cpu".
        members: the job's processes, of which this one gets its slice of every batch.
        sampling: how items are drawn, as the hparam says it.
    """

    def __init__(
        self,
        in_splits: Sequence[Split],
        evaluated: Mapping[str, Any],
        batch_size: int,
        steps: int,
        checkpoint_freq: int,
        seed: int,
        device: str,
        members: Members,
        sampling: str = environment.REPLACED,
    ) -> None:
        self._in_splits = in_splits
        self._evaluated = evaluated
        self._batch_size = batch_size
        self._steps = steps
        self._checkpoint_freq = checkpoint_freq
        self._seed = seed % 2**64
        self._device = device
        self._members = members
        self._at_a_time = EVALUATION_BATCH_SIZE * members.size
        if device == "cuda":
            self._at_a_time = max(self._at_a_time, 4 * len(in_splits) * batch_size)
        self._draws = loader.drawn_seed()
        by_shard = sampling == environment.BY_SHARD
        self._passes = [
            environment.Passes(
                len(split),
                drawing.seed_of(self._draws, number),
                environment.shards_of(split.data) if by_shard else None,
            )
            for number, split in enumerate(in_splits if sampling != environment.REPLACED else ())
        ]

    def begin(self, step: int, pending: bool, once: bool, workers: int, pictures: Pictures) -> None:
        """Go on with a step; `close` ends it.

        Args:
            step: the step to begin with, to resume an earlier process.
            pending: whether the evaluation after the step before is to come first.
            once: evaluate once, the same whenever that is, and not at every checkpoint.
            workers: processes that load; 0 loads in this one.
            pictures: how files of pictures become batches.
        """
        data = [*(split.data for split in self._in_splits), *self._evaluated.values()]
        whole = self._requests(step, pending, once)
        requests = filter(None, (batch[self._members.part(len(batch))] for batch in whole))
        pinned = self._device == "cuda"
        self._loaded = loader.batches(data, requests, workers, pictures, pinned)
        self._batches = loader.on_device(self._loaded, self._device)

    def is_due(self, step: int) -> bool:
        """Whether there is a checkpoint after the step."""
        return step % self._checkpoint_freq == 0 or step == self._steps - 1

    def of_step(self) -> list[Batch]:
        """The batches of the next step, one of each in-split."""
        return list(itertools.islice(self._batches, len(self._in_splits)))

    def of_split(self, name: str) -> Iterator[Batch | None]:
        """The batches of what is evaluated next, `name`.

        None stands for one that is too small for this process to have a slice of it.
        """
        size = len(self._evaluated[name])
        for begin in range(0, size, self._at_a_time):
            part = self._members.part(min(self._at_a_time, size - begin))
            yield next(self._batches) if part.start < part.stop else None

    def close(self) -> None:
        """End the loader processes; there are no more batches."""
        self._loaded.close()

    def _requests(self, first: int, pending: bool, once: bool) -> Iterator[list[Request]]:
        if pending:
            yield from self._evaluation(0 if once else first - 1)
        sizes = [len(split) for split in self._in_splits]
        weights = [split.weights for split in self._in_splits]
        for step in range(first, self._steps):
            how = (self._draws, sizes, weights, self._batch_size, step, self._passes)
            yield from loader.training(*how)
            if self.is_due(step) and not (once and pending):
                yield from self._evaluation(0 if once else step)
                pending = True

    def _evaluation(self, step: int) -> Iterator[list[Request]]:
        sizes = [len(split) for split in self._evaluated.values()]
        key = (self._seed, step)
        return loader.evaluation(sizes, self._at_a_time, key, len(self._in_splits))
