"""Batches in the order in which a job uses them, loaded by one pool of worker processes.

A job has one pool for training and all evaluations. Upstream's loaders (file
domainbed/lib/fast_data_loader.py at b93c22a) start a pool for each environment and each split.
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
# The number of a dataset, a position in it, and the key that seeds the item's random numbers.
Request = tuple[int, int, tuple[int, ...]]


class _RequestedItems(Dataset[Any]):
    """Items of several datasets, whose random numbers depend on the request only.

    Neither the number of workers nor a restart changes an augmentation.
    """

    def __init__(self, datasets: Sequence[Any], images: Images) -> None:
        self._datasets = datasets
        self._sources = [images.source(dataset) for dataset in datasets]

    def __getitems__(self, requests: list[Request]) -> Any:
        """Read a batch (called by torch's loader).

        A TransientError is returned, not raised, because torch would print an error of a worker
        process with a traceback.
        """
        source = self._sources[requests[0][0]]  # a batch is of one dataset
        with rng.preserve_states():
            try:
                return source.batch(requests) if source else list(map(self._item, requests))
            except TransientError as failure:
                return failure

    def _item(self, request: Request) -> Any:
        number, position, key = request
        rng.reseed(rng.derive_seed(*key))
        return self._datasets[number][position]


# Time for worker processes to end by themselves; torch would wait 5 s for each in turn.
_PATIENCE_S = 2.0


def load_batches(
    datasets: Sequence[Any],
    requests: Iterator[list[Request]],
    workers: int,
    images: Images,
    pinned: bool = False,
) -> Generator[Any, None, None]:
    """Load a batch for each list of requests with one pool of worker processes.

    The worker processes start with the first batch, read ahead, and end when the generator is
    closed.

    Args:
        datasets: The datasets, which requests refer to by number.
        requests: Requests of a batch each, all of one dataset.
        workers: Number of worker processes; 0 loads in this process.
        images: The job's way to read images.
        pinned: If True, the batches are in pinned memory.

    Raises:
        TransientError: Data cannot be read, or processes cannot share memory.
    """
    # Without this generator, torch's loader would draw an unused seed from the global generator,
    # and change the random numbers of training.
    loader: DataLoader[Any] = DataLoader(
        _RequestedItems(datasets, images),
        batch_sampler=requests,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),
        worker_init_fn=stopping.init_worker,
        collate_fn=shared_batches.collate_batch,
    )
    with stopping.block_signals():
        earlier_children = set(multiprocessing.active_children())
        try:
            if workers:
                multiprocessing.Lock()  # fails here, where torch would leave half an iterator
            loaded = iter(loader)
        except OSError as error:  # locks are in /dev/shm; without a cause, as no disk is full
            raise shared_batches.sharing_error(error) from None
        processes = set(multiprocessing.active_children()) - earlier_children

    try:
        for batch in loaded:
            if isinstance(batch, TransientError):
                raise batch
            yield batch
    finally:
        if processes:
            _end_workers(loaded, processes)


def _end_workers(loaded: Any, processes: Iterable[BaseProcess]) -> None:
    """End the worker processes of a loader's iterator, including hanging ones.

    Torch ends them when the iterator is deleted, but an exception's traceback can keep it alive.
    """
    # By then torch has requested their end and does not use them any more.
    timer = threading.Timer(_PATIENCE_S, _terminate, [processes])
    timer.daemon = True
    timer.start()
    with contextlib.suppress(RuntimeError):  # raised again if a process was killed
        loaded._shutdown_workers()
    timer.cancel()

    for process in processes:
        if process.is_alive():  # stopped by a signal, or waiting for a disk
            process.kill()


def _terminate(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


def copy_to_device(loaded: Iterator[Any], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on a device; each is copied to a GPU while the previous one is used.

    Args:
        loaded: (images, labels) pairs, or UnfinishedBatch objects.
        device: The CPU or a GPU.
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
    """A batch that is being copied to a GPU."""

    copies: devices.StartedCopies  # of images and labels
    unfinished: UnfinishedBatch | None  # on the host, if the images still need the second stage

    def wait(self) -> Batch:
        """Make the current stream wait for the copy, and return the finished batch."""
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
    """Draw a seed for `training_requests` from the global generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


def training_requests(
    seed: int,
    sizes: Sequence[int],
    weights: Sequence[torch.Tensor | None],
    batch_size: int,
    step: int,
    passes: Sequence[Passes] = (),
) -> Iterator[list[Request]]:
    """Yield the requests of one step, a batch of each dataset.

    Items are drawn with replacement, as in upstream. All draws are a function of seed, dataset,
    step and place in the batch.

    Args:
        seed: The seed of the job's training.
        sizes: Number of items of each dataset.
        weights: Weights of each dataset's items, or None for equal weights.
        batch_size: Number of items of a batch.
        step: The step's number.
        passes: The passes of each dataset, which replace the draws; empty for none.
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
    """Yield requests for every item of every dataset, in order, in batches of one dataset.

    Args:
        sizes: Number of items of each dataset.
        batch_size: Largest number of items of a batch.
        key: Key that seeds the random numbers together with the dataset's place and the item:
            upstream augments in evaluation as well.
        first: Number of the first dataset.
    """
    for place, size in enumerate(sizes):
        for begin in range(0, size, batch_size):
            yield [
                (first + place, position, (*key, place, position))
                for position in range(begin, min(begin + batch_size, size))
            ]


class InfiniteDataLoader:
    """Endless batches of one dataset, under upstream's name, for scripts and algorithms."""

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
    """One pass over a dataset per iteration, under upstream's name."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        requests = evaluation_requests([len(self._dataset)], self._batch_size, ())
        return load_batches([self._dataset], requests, self._num_workers, Images())

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)
