"""Batches in the order in which a job asks for them, from one pool of worker processes.

A job has one pool for its training and all its evaluations; upstream's loaders (file
domainbed/lib/fast_data_loader.py at b93c22a) start one for each environment and each split.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from domainbed.lib import shared_batches, stopping
from domainbed.lib.image_batches import Images, UnfinishedBatch
from domainbed_carft.errors import TransientError
from domainbed_carft.images import rng
from domainbed_carft.images.image_lists import Passes
from domainbed_carft.machine import devices

Batch = tuple[torch.Tensor, torch.Tensor]
# A dataset's number, a position in it, and the key of the random numbers drawn on the way.
Request = tuple[int, int, tuple[int, ...]]


class _RequestedItems(Dataset[Any]):
    """Items of several datasets, each read with random numbers that depend on its request alone.

    So neither the number of workers nor a restart changes an augmentation.
    """

    def __init__(self, datasets: Sequence[Any], images: Images) -> None:
        self._datasets = datasets
        self._sources = [images.source(dataset) for dataset in datasets]

    def __getitems__(self, requests: list[Request]) -> Any:
        """Read a batch, as torch's loader calls it.

        Returns a TransientError instead if one occurs: raised in a worker, it would reach the
        user as a traceback.
        """
        source = self._sources[requests[0][0]]  # all are of one dataset
        with rng.preserve_states():
            try:
                return source.batch(requests) if source else list(map(self._item, requests))
            except TransientError as failure:
                return failure

    def _item(self, request: Request) -> Any:
        number, position, key = request
        rng.reseed(rng.derive_seed(*key))
        return self._datasets[number][position]


# How long worker processes may take to end by themselves; torch would wait 5 s for each in turn.
_PATIENCE_S = 2.0


def load_batches(
    datasets: Sequence[Any],
    requests: Iterator[list[Request]],
    workers: int,
    images: Images,
    pinned: bool = False,
) -> Generator[Any, None, None]:
    """A batch for each list of requests, all of one dataset, from one pool of worker processes.

    They start with the first batch and read ahead, and have ended once the generator is closed.
    Raises TransientError if data cannot be read, or shared memory is missing.
    """
    # Without this generator, torch's loader would draw a seed, which nobody uses, from the global
    # one, and change what training draws.
    loader: DataLoader[Any] = DataLoader(
        _RequestedItems(datasets, images),
        batch_sampler=requests,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),
        worker_init_fn=stopping.init_worker,
        collate_fn=shared_batches.collated,
    )
    with stopping.blocked_signals():
        earlier_children = set(multiprocessing.active_children())
        try:
            if workers:
                multiprocessing.Lock()  # fails alone, where torch would leave half an iterator
            loaded = iter(loader)
        except OSError as error:  # their locks are in /dev/shm
            raise shared_batches.unshared(error) from None  # no full disk
        processes = set(multiprocessing.active_children()) - earlier_children

    try:
        for batch in loaded:
            if isinstance(batch, TransientError):
                raise batch
            yield batch
    finally:
        if processes:
            _end(loaded, processes)


def _end(loaded: Any, processes: Iterable[BaseProcess]) -> None:
    """End the worker processes of a loader's iterator, also those that hang.

    The iterator would end them once nobody refers to it, but an exception's traceback does.
    """
    # After this time torch has told them to end, and needs nothing of them any more.
    timer = threading.Timer(_PATIENCE_S, _terminate, [processes])
    timer.daemon = True
    timer.start()
    with contextlib.suppress(RuntimeError):  # raised once more for a process that was killed
        loaded._shutdown_workers()
    timer.cancel()

    for process in processes:
        if process.is_alive():  # stopped, or it waits for a disk
            process.kill()


def _terminate(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


def on_device(loaded: Iterator[Any], device: torch.device) -> Iterator[Batch]:
    """The batches on a device. Each is copied to a GPU while the one before is being used.

    ``loaded``: pairs of images and labels, in place of some maybe an UnfinishedBatch, as of a job
    that began on a GPU.
    """
    if not devices.is_gpu(device):
        for batch in loaded:
            yield batch.finish() if isinstance(batch, UnfinishedBatch) else batch
        return

    stream = devices.CopyStream(device)
    previous = None
    for batch in loaded:
        current = _start_copy(batch, stream)
        if previous is not None:
            yield previous.wait()
        previous = current
    if previous is not None:
        yield previous.wait()


@dataclass(frozen=True)
class _CopiedBatch:
    """A batch on its way to a GPU."""

    copies: devices.StartedCopies  # of the images and the labels
    unfinished: UnfinishedBatch | None  # on the host, if the images still need a second stage

    def wait(self) -> Batch:
        """The batch, for work on the current stream, which waits for the copy."""
        x, y = self.copies.wait()
        if self.unfinished is None:
            return x, y
        return self.unfinished._replace(images=x, labels=y).finish()


def _start_copy(batch: Batch | UnfinishedBatch, stream: devices.CopyStream) -> _CopiedBatch:
    """Start to copy a batch to a GPU."""
    unfinished = batch if isinstance(batch, UnfinishedBatch) else None
    x, y = batch if unfinished is None else (unfinished.images, unfinished.labels)  # type: ignore[misc]
    return _CopiedBatch(stream.start([x, y]), unfinished)


def draw_seed() -> int:
    """A seed from the global generator, for `training_requests`."""
    return int(torch.empty((), dtype=torch.int64).random_())


def training_requests(
    seed: int,
    sizes: Sequence[int],
    weights: Sequence[torch.Tensor | None],
    batch_size: int,
    step: int,
    passes: Sequence[Passes] = (),
) -> Iterator[list[Request]]:
    """The requests of one step, a batch of each dataset, by its number from 0.

    Items are drawn with replacement, as upstream does, by a dataset's weights if it has some. With
    `passes` these say instead which items a batch has. All draws are a function of seed, dataset,
    step and place in the batch.
    """
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        key = (seed, number, step)
        generator = torch.Generator().manual_seed(rng.derive_seed(*key))
        if passes:
            positions = passes[number].batch(step, batch_size)
        elif weight is None:
            positions = torch.randint(size, (batch_size,), generator=generator).tolist()
        else:
            positions = torch.multinomial(weight, batch_size, True, generator=generator).tolist()

        yield [(number, position, (*key, place)) for place, position in enumerate(positions)]


def evaluation_requests(
    sizes: Sequence[int], batch_size: int, key: Sequence[int], first: int = 0
) -> Iterator[list[Request]]:
    """The requests for every item of every dataset once, in order; no batch mixes two datasets.

    The datasets, of these sizes, are numbered from `first` on. The random numbers depend on `key`,
    the dataset's place among these and the item: upstream augments in evaluation as well.
    """
    for place, size in enumerate(sizes):
        for begin in range(0, size, batch_size):
            yield [
                (first + place, position, (*key, place, position))
                for position in range(begin, min(begin + batch_size, size))
            ]


class InfiniteDataLoader:
    """Endless batches of one dataset: upstream's name, which scripts and algorithms import."""

    def __init__(
        self, dataset: Any, weights: torch.Tensor | None, batch_size: int, num_workers: int
    ) -> None:
        seed = draw_seed()
        steps = (
            training_requests(seed, [len(dataset)], [weights], batch_size, step)
            for step in itertools.count()
        )
        requests = itertools.chain.from_iterable(steps)
        self._batches = load_batches([dataset], requests, num_workers, Images())

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self._batches)


class FastDataLoader:
    """One pass over one dataset an iteration: upstream's name, as `InfiniteDataLoader` is."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        requests = evaluation_requests([len(self._dataset)], self._batch_size, ())
        return load_batches([self._dataset], requests, self._num_workers, Images())

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)
