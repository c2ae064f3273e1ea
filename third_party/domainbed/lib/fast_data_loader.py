"""Batches in the order in which a job uses them, loaded by one pool of worker processes.

From top to bottom: requests, which name the items of a batch; reading them in a worker process;
the batch's way to this process; images in memory; the copy to the device. A job has one pool for
training and all evaluations. Upstream's loaders (file domainbed/lib/fast_data_loader.py at b93c22a)
start a pool for each environment and each split.

Image files are read by their environment's plan in two stages, with images equal to those of
upstream's transforms up to rounding: single images in a worker process, then the batch, there or on
a GPU. All other items are read by their dataset.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from domainbed.lib import stopping
from domainbed_carft.data import image_files
from domainbed_carft.errors import TransientError
from domainbed_carft.images import loading, rng, stages
from domainbed_carft.images.image_lists import Passes, get_file_plan
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.machine import devices

Batch = tuple[torch.Tensor, torch.Tensor]
# The number of a dataset, a position in it, and the key that seeds the item's random numbers.
Request = tuple[int, int, tuple[int, ...]]
# The key of a batch in memory: the number of its dataset, and its first position there.
BatchKey = tuple[int, int]

SHARED_MEMORY = "/dev/shm"

# Time for worker processes to end by themselves; torch would wait 5 s for each in turn.
_PATIENCE_S = 2.0


# Requests


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


# Reading


class UnfinishedBatch(NamedTuple):
    """A batch before its second stage."""

    plan: ImagePlan
    images: torch.Tensor  # (N, S, S, 3), uint8
    choices: torch.Tensor  # (N, 10), from `stages.first_stage`
    labels: torch.Tensor  # (N,)

    def finish(self) -> Batch:
        """Return the normalised images, (N, 3, S, S) float32, and the labels, (N,)."""
        return stages.second_stage(self.plan, self.images, self.choices), self.labels

    def copy(self) -> UnfinishedBatch:
        """Copy the batch out of the memory that is shared with a worker process."""
        return self._replace(
            images=self.images.clone(),
            choices=self.choices.clone(),
            labels=self.labels.clone(),
        )

    def pinned(self) -> UnfinishedBatch:
        """Return the batch with images and labels in pinned memory."""
        return self._replace(images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class ImageSource:
    """An environment, or a subset of it, whose image files are read by a plan."""

    samples: Sequence[tuple[str, int]]  # files and labels of the environment
    positions: Sequence[int] | None  # of the subset's items in the environment; None for all
    plan: ImagePlan

    def read(self, requests: Sequence[Request]) -> UnfinishedBatch:
        """Read a batch.

        Raises:
            TransientError: An image cannot be read.
        """
        squares = []
        choices = []
        labels = []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.samples[position]
            pixels = image_files.read_image(loading.decode, path)
            if self.plan.is_random:  # the generator that torchvision's transforms use
                torch.default_generator.manual_seed(rng.derive_seed(*key))
            square, square_choices = stages.first_stage(self.plan, pixels)
            squares.append(square)
            choices.append(square_choices)
            labels.append(label)
        return UnfinishedBatch(
            self.plan, torch.stack(squares), torch.stack(choices), torch.tensor(labels)
        )


def find_source(dataset: Any) -> ImageSource | None:
    """Return the source of a dataset or subset; None if its items are not image files."""
    environment = dataset
    positions = None
    while isinstance(environment, Subset):
        indices = environment.indices
        positions = indices if positions is None else [indices[i] for i in positions]
        environment = environment.dataset

    plan = get_file_plan(environment)
    return ImageSource(environment.samples, positions, plan) if plan else None


class _RequestedItems(Dataset[Any]):
    """Items of several datasets, whose random numbers depend on the request only.

    Neither the number of workers nor a restart changes an augmentation.
    """

    def __init__(self, datasets: Sequence[Any], by_plan: bool, finishes: bool) -> None:
        self._datasets = datasets
        self._sources = [find_source(dataset) if by_plan else None for dataset in datasets]
        self._finishes = finishes

    def __getitems__(self, requests: list[Request]) -> Any:
        """Read a batch (called by torch's loader).

        Images without random steps are never finished here, so that they can be kept in memory. A
        TransientError is returned, not raised, because torch would print an error of a worker
        process with a traceback.
        """
        source = self._sources[requests[0][0]]  # a batch is of one dataset
        with rng.preserve_states():
            try:
                if source is None:
                    return list(map(self._item, requests))
                batch = source.read(requests)
                return batch.finish() if self._finishes and source.plan.is_random else batch
            except TransientError as failure:
                return failure

    def _item(self, request: Request) -> Any:
        number, position, key = request
        rng.reseed(rng.derive_seed(*key))
        return self._datasets[number][position]


def load_batches(
    datasets: Sequence[Any],
    requests: Iterator[list[Request]],
    workers: int,
    *,
    by_plan: bool = False,
    on_gpu: bool = False,
) -> Generator[Any, None, None]:
    """Load a batch for each list of requests with one pool of worker processes.

    The worker processes start with the first batch, read ahead, and end when the generator is
    closed.

    Args:
        datasets: The datasets, which requests refer to by number.
        requests: Requests of a batch each, all of one dataset.
        workers: Number of worker processes; 0 loads in this process.
        by_plan: Read image files by their plan, instead of by the dataset's transforms.
        on_gpu: Return batches in pinned memory, before the second stage.

    Yields:
        (inputs, labels), or an UnfinishedBatch for images whose second stage is pending.

    Raises:
        TransientError: Data cannot be read, or processes cannot share memory.
    """
    # Without this generator, torch's loader would draw an unused seed from the global generator,
    # and change the random numbers of training.
    loader: DataLoader[Any] = DataLoader(
        _RequestedItems(datasets, by_plan, finishes=not on_gpu),
        batch_sampler=requests,
        num_workers=workers,
        pin_memory=on_gpu,
        generator=torch.Generator(),
        worker_init_fn=stopping.init_worker,
        collate_fn=_collate_batch,
    )
    with stopping.block_signals():
        earlier_children = set(multiprocessing.active_children())
        try:
            if workers:
                multiprocessing.Lock()  # fails here, where torch would leave half an iterator
            loaded = iter(loader)
        except OSError as error:  # locks are in /dev/shm; without a cause, as no disk is full
            raise _sharing_error(error) from None
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


# Shared memory
#
# Torch shares tensors through /dev/shm, which has 64 MB in a container by default, and does so in a
# thread of its queue: if that fails, the batch is lost and the job waits forever. Here the worker's
# main thread puts a batch into anonymous shared memory, and returns an error in place of the batch
# if that fails.


class _SharedBatch:
    """A batch as bytes that refer to its shared memory; unpickling it returns the batch."""

    def __init__(self, batch: Any) -> None:
        shared = pytree.tree_map_only(torch.Tensor, _in_shared_memory, batch)
        self._content = bytes(ForkingPickler.dumps(shared))

    def __reduce__(self) -> Any:
        return pickle.loads, (self._content,)


def _collate_batch(items: Any) -> Any:
    """Collate items into a batch, and share the batch if this is a worker process.

    Args:
        items: A list of items, a batch, or a TransientError.

    Returns:
        The batch. A TransientError if `items` is one, or if the batch cannot be shared.
    """
    if get_worker_info() is None:
        return default_collate(items) if isinstance(items, list) else items
    if isinstance(items, list):
        # Torch's default function would stack tensors in /dev/shm.
        items = collate(items, collate_fn_map={**default_collate_fn_map, torch.Tensor: _stack})
    if isinstance(items, TransientError):
        return items
    try:
        return _SharedBatch(items)
    except (OSError, RuntimeError) as error:
        return _sharing_error(error)


def _sharing_error(error: Exception) -> TransientError:
    """Return the error to raise if the processes of a job cannot share memory."""
    state = "cannot be read"
    hint = "Increase the container's shared memory (docker run --shm-size=1g)"

    with contextlib.suppress(OSError):
        status = os.statvfs(SHARED_MEMORY)
        free, total = (
            count * status.f_frsize >> 20 for count in (status.f_bavail, status.f_blocks)
        )
        state = f"has {free} of {total} MiB free"
        if status.f_flag & os.ST_RDONLY:
            state = "is read-only"
            hint = "Mount it writable"

    reason = " ".join(str(error).split())
    return TransientError(
        f"loader processes cannot share memory with this job ({reason}); {SHARED_MEMORY} {state}. "
        f"{hint}, or load without extra processes (--workers 0)"
    )


def _stack(tensors: list[torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.stack(tensors)


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into shared memory; raise OSError or RuntimeError if there is none."""
    is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not is_plain or tensor.device != devices.CPU or not tensor.numel():
        return tensor  # torch shares it

    size = tensor.numel() * tensor.element_size()
    try:
        descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
    except OSError:  # a sandbox without memfd_create
        _require_space(size)
        return tensor.share_memory_()

    try:
        os.posix_fallocate(descriptor, 0, size)
        untyped_storage: Any = torch.UntypedStorage  # whose stub lacks the method
        storage = untyped_storage._new_shared_fd_cpu(descriptor, size)
    finally:
        os.close(descriptor)
    shared: Any = torch.empty(0, dtype=tensor.dtype)
    shared.set_(storage, 0, tensor.shape)
    return shared.copy_(tensor)


def _require_space(size: int) -> None:
    """Raise OSError if /dev/shm is too small, which kills the process in some torch versions."""
    status = os.statvfs(SHARED_MEMORY)
    if status.f_bavail * status.f_frsize < size:
        raise OSError(f"no space for {size:,} bytes")


# Memory


class ImageMemory:
    """As many batches of constant evaluation images as fit into memory, as bytes.

    This process keeps them. In a worker process they would have to be sent again each time, and any
    of the worker processes can receive a batch, so each would have to read all images.

    Args:
        image_bytes: Dataset number -> size of an image, for datasets whose images never change.
        limit: Largest size of all images, in bytes; images beyond it are read each time.
        pinned: If True, the batches are returned in pinned memory, for copies to a GPU.
    """

    def __init__(self, image_bytes: Mapping[int, int], limit: int, pinned: bool) -> None:
        self._image_bytes = image_bytes
        self._free_bytes = limit
        self._pinned = pinned
        self._requested: set[BatchKey] = set()
        self._batches: dict[BatchKey, UnfinishedBatch] = {}

    def missing(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Yield the requests, each of a batch, that must be loaded; a loader reads them ahead."""
        for batch_requests in requests:
            key = batch_requests[0][:2]
            if key in self._requested:
                continue

            size = len(batch_requests) * self._image_bytes.get(key[0], 0)
            if size and size <= self._free_bytes:
                self._free_bytes -= size
                self._requested.add(key)
            yield batch_requests

    def batches(self, requests: Iterator[Any], loaded: Iterator[Any]) -> Iterator[Any]:
        """Yield the batch of each request, in order, from memory or from the loader.

        Args:
            requests: The same requests that are passed to `missing`.
            loaded: The loaded batches of the requests that `missing` yields.
        """
        for batch_requests in requests:
            key = batch_requests[0][:2]
            batch = self._batches.get(key)
            if batch is not None:
                yield batch.pinned() if self._pinned else batch
                continue

            batch = next(loaded)
            if key in self._requested:
                self._batches[key] = batch.copy()
            yield batch


# The device


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
    previous: tuple[Any, devices.StartedCopies] | None = None
    for batch in loaded:
        is_unfinished = isinstance(batch, UnfinishedBatch)
        copies = stream.start([batch.images, batch.labels] if is_unfinished else [*batch])
        if previous is not None:
            yield _finish_copies(*previous)
        previous = batch, copies
    if previous is not None:
        yield _finish_copies(*previous)


def _finish_copies(batch: Any, copies: devices.StartedCopies) -> Batch:
    """Make the current stream wait for a batch's copies, and return the finished batch."""
    x, y = copies.wait()
    if isinstance(batch, UnfinishedBatch):
        return batch._replace(images=x, labels=y).finish()
    return x, y


# Upstream's loaders


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
        self._batches = load_batches([dataset], requests, num_workers)

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
        return load_batches([self._dataset], requests, self._num_workers)

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)
