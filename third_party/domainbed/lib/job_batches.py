"""All batches of a job, of its steps and evaluations, in the order of their use.

One pool of loader processes loads them, and reads ahead from steps into evaluations and back.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from domainbed.lib import fast_data_loader as loader
from domainbed.lib import misc, stopping
from domainbed.lib.fast_data_loader import Batch, Request
from domainbed.lib.process_group import ProcessGroup
from domainbed_carft.images import image_lists, rng
from domainbed_carft.images.plan import N_CHANNELS
from domainbed_carft.machine import devices

EVALUATION_BATCH_SIZE = 64

# On a GPU an evaluation batch has up to this many times the images of a step, since evaluation
# stores no activations.
EVALUATION_FACTOR_ON_GPU = 4


@dataclass
class JobBatches:
    """The batches of a job, in the order of their use.

    Creating an object draws the seed of the job's training.
    """

    in_splits: Sequence[misc.SplitDataset]  # data to train on
    # Splits to evaluate at each checkpoint, by name. A skipped split is an empty list, since an
    # image's random numbers depend on the place of its split.
    evaluated: Mapping[str, Any]
    hparams: Mapping[str, Any]
    steps: int
    checkpoint_freq: int
    seed: int  # seeds the random numbers of evaluations, together with the step
    device: torch.device  # device of the returned batches
    process_group: ProcessGroup  # this process loads its slice of every batch
    by_plan: bool = False  # read image files by their plan, instead of by the dataset's transforms
    memory_limit: int = 0  # largest size of evaluation images in memory, bytes
    stop: stopping.StopSignals | None = None  # signals that end the wait for a loader process
    # Splits of the validation loss, by name, loaded before each evaluation without random numbers.
    validated: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._evaluation_batch_size = EVALUATION_BATCH_SIZE * self.process_group.size
        if devices.is_gpu(self.device):
            step_size = len(self.in_splits) * self.hparams["batch_size"]
            self._evaluation_batch_size = max(
                self._evaluation_batch_size, EVALUATION_FACTOR_ON_GPU * step_size
            )

        self._training_seed = loader.draw_seed()
        self._weights: list[torch.Tensor | None] = [None for _ in self.in_splits]
        if self.hparams["class_balanced"]:
            self._weights = [
                misc.make_weights_for_balanced_classes(split) for split in self.in_splits
            ]

        sampling = self.hparams.get("sampling", image_lists.WITH_REPLACEMENT)
        self._passes = [
            image_lists.Passes(len(split), rng.derive_seed(self._training_seed, number))
            for number, split in enumerate(self.in_splits)
            if sampling != image_lists.WITH_REPLACEMENT
        ]

    def begin(self, step: int, pending: bool, once: bool, workers: int) -> None:
        """Start loading; `close` ends it.

        Args:
            step: The first step.
            pending: If True, begin with the evaluation after the previous step.
            once: If True, evaluate only once, for algorithms that training does not change.
            workers: Number of loader processes.
        """
        data = [*self.in_splits, *self.evaluated.values(), *self.validated.values()]
        full_batches = self._requests(step, pending, once)
        slices = (batch[self.process_group.get_slice(len(batch))] for batch in full_batches)
        requests = filter(None, slices)  # a small batch can have no image for this process
        # The loader reads its requests ahead of their use.
        loader_requests, all_requests = itertools.tee(requests)

        on_gpu = devices.is_gpu(self.device)
        limit = 0 if once else self.memory_limit // self.process_group.local_size
        memory = loader.ImageMemory(self._constant_images(), limit, pinned=on_gpu)
        self._loaded = loader.load_batches(
            data,
            memory.missing(loader_requests),
            workers,
            by_plan=self.by_plan,
            on_gpu=on_gpu,
        )
        self._batches = loader.copy_to_device(
            memory.batches(all_requests, self._loaded), self.device
        )
        self._n_workers = workers

    def _constant_images(self) -> dict[int, int]:
        """Map the numbers of evaluated datasets without random draws to bytes per image."""
        if not self.by_plan:
            return {}
        sizes = {}
        evaluated = [*self.evaluated.values(), *self.validated.values()]
        for number, dataset in enumerate(evaluated, start=len(self.in_splits)):
            source = loader.find_source(dataset)
            if source and not source.plan.is_random:
                sizes[number] = N_CHANNELS * source.plan.size**2
        return sizes

    def is_due(self, step: int) -> bool:
        """Return True if there is a checkpoint after the step."""
        return step % self.checkpoint_freq == 0 or step == self.steps - 1

    def step_batches(self) -> list[Batch]:
        """Return the batches of the next step, one of each in-split.

        Raises:
            Stopped: A signal was received while waiting for a batch.
        """
        with self._stop_while_waiting():
            return list(itertools.islice(self._batches, len(self.in_splits)))

    def split_batches(self, name: str) -> Iterator[Batch | None]:
        """Yield this process's slices of an evaluated split's batches, or None for an empty slice.

        Splits must be requested in their order.

        Raises:
            Stopped: A signal was received while waiting for a batch.
        """
        return self._slices(len(self.evaluated[name]))

    def validation_batches(self, name: str) -> Iterator[Batch | None]:
        """Yield the batches of a split of the validation loss, in the same way."""
        return self._slices(len(self.validated[name]))

    def _slices(self, size: int) -> Iterator[Batch | None]:
        """Yield this process's slices of the next batches, which contain `size` images."""
        for begin in range(0, size, self._evaluation_batch_size):
            part = self.process_group.get_slice(min(self._evaluation_batch_size, size - begin))
            if part.start == part.stop:
                yield None
                continue
            with self._stop_while_waiting():
                batch = next(self._batches)
            yield batch

    def _stop_while_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Raise Stopped at once if a signal arrives while the block waits for loader processes."""
        if self.stop is None or not self._n_workers:
            return contextlib.nullcontext()
        return self.stop.waiting()

    def close(self) -> None:
        """End the loader processes."""
        self._loaded.close()

    def _requests(self, first: int, pending: bool, once: bool) -> Iterator[list[Request]]:
        """Yield the requests of all batches from a step on, before they are sliced."""
        if pending:
            yield from self._evaluation(0 if once else first - 1)

        sizes = [len(split) for split in self.in_splits]
        for step in range(first, self.steps):
            yield from loader.training_requests(
                seed=self._training_seed,
                sizes=sizes,
                weights=self._weights,
                batch_size=self.hparams["batch_size"],
                step=step,
                passes=self._passes,
            )
            if self.is_due(step) and not (once and pending):
                yield from self._evaluation(0 if once else step)
                pending = True

    def _evaluation(self, step: int) -> Iterator[list[Request]]:
        key = (self.seed % 2**64, step)
        n_trained = len(self.in_splits)
        for splits, first in (
            (self.validated, n_trained + len(self.evaluated)),
            (self.evaluated, n_trained),
        ):
            sizes = [len(split) for split in splits.values()]
            if not sizes:
                continue
            yield from loader.evaluation_requests(sizes, self._evaluation_batch_size, key, first)
