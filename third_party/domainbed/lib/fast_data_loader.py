"""Batches in the order in which a job uses them, loaded by one pool of worker processes.

From top to bottom, the way of an image: a request names it, a worker process reads and crops it
and shares its batch with this process, where evaluation images can stay in memory, and the batch
goes to the device. Then come all batches of a job, and upstream's loaders (file
domainbed/lib/fast_data_loader.py at b93c22a), which start a pool for each environment and each
split.

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
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from domainbed.lib import misc, stopping
from domainbed_carft.data import image_files
from domainbed_carft.errors import TransientError
from domainbed_carft.images import loading, rng, stages
from domainbed_carft.images.image_lists import WITH_REPLACEMENT, Passes, get_file_plan
from domainbed_carft.images.plan import N_CHANNELS, ImagePlan
from domainbed_carft.machine import devices

if TYPE_CHECKING:
    from domainbed.lib.process_group import ProcessGroup

Batch = tuple[torch.Tensor, torch.Tensor]
# The number of a dataset, a position in it, and the key that seeds the item's random numbers.
Request = tuple[int, int, tuple[int, ...]]

EVALUATION_BATCH_SIZE = 64

# On a GPU an evaluation batch has up to this many times the images of a step, since evaluation
# stores no activations.
EVALUATION_FACTOR_ON_GPU = 4

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
        seed: the seed of the job's training.
        sizes: number of items of each dataset.
        weights: weights of each dataset's items, or None for equal weights.
        batch_size: number of items of a batch.
        step: the step's number.
        passes: the passes of each dataset, which replace the draws; empty for none.
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
        sizes: number of items of each dataset.
        batch_size: largest number of items of a batch.
        key: key that seeds the random numbers together with the dataset's place and the item:
            upstream augments in evaluation as well.
        first: number of the first dataset.
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
    choices: torch.Tensor  # (N, 10), from `stages.draw_choices`
    labels: torch.Tensor  # (N,)

    def copy(self) -> UnfinishedBatch:
        """Copy the batch out of the memory that is shared with a worker process."""
        return self._replace(
            images=self.images.clone(),
            choices=self.choices.clone(),
            labels=self.labels.clone(),
        )


@dataclass(frozen=True)
class ImageSource:
    """An environment, or a subset of it, whose image files are read by a plan."""

    samples: Sequence[tuple[str, int]]  # files and labels of the environment
    positions: Sequence[int] | None  # of the subset's items in the environment; None for all
    plan: ImagePlan

    def read(self, requests: Sequence[Request]) -> UnfinishedBatch:
        """Read a batch.

        Raises:
            TransientError: an image cannot be read.
        """
        squares = []
        choices = []
        labels = []
        for _, position, key in requests:
            if self.positions is not None:
                position = self.positions[position]
            path, label = self.samples[position]
            try:
                pixels = loading.decode(path)
            except Exception as error:  # Pillow's decoders raise a dozen types
                raise image_files.reading_error(path, error) from error
            if self.plan.is_random:  # the generator that torchvision's transforms use
                torch.default_generator.manual_seed(rng.derive_seed(*key))
            squares.append(stages.crop(self.plan, pixels))
            choices.append(stages.draw_choices(self.plan))
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


@dataclass(frozen=True)
class _RequestedItems(Dataset[Any]):
    """Items of several datasets, whose random numbers depend on the request only.

    Neither the number of workers nor a restart changes an augmentation.
    """

    datasets: Sequence[Any]
    sources: Sequence[ImageSource | None]  # of the datasets
    on_gpu: bool  # leaves the second stage to the GPU

    def __getitems__(self, requests: list[Request]) -> Any:
        """Read a batch (called by torch's loader).

        Images without random steps are never finished here, so that they can be kept in memory. A
        TransientError is returned, not raised, because torch would print an error of a worker
        process with a traceback.
        """
        source = self.sources[requests[0][0]]  # a batch is of one dataset
        with rng.preserve_states():
            try:
                if source is None:
                    items = [self._read_item(request) for request in requests]
                    return collate(items, collate_fn_map=_COLLATE_FUNCTIONS)
                batch = source.read(requests)
            except TransientError as failure:
                return failure
        if self.on_gpu or not source.plan.is_random:
            return batch
        return stages.second_stage(batch.plan, batch.images, batch.choices), batch.labels

    def _read_item(self, request: Request) -> Any:
        number, position, key = request
        rng.reseed(rng.derive_seed(*key))
        return self.datasets[number][position]


def _stack(tensors: list[torch.Tensor], **_: Any) -> torch.Tensor:
    return torch.stack(tensors)


# Torch's own function would stack tensors in /dev/shm in a worker process.
_COLLATE_FUNCTIONS = {**default_collate_fn_map, torch.Tensor: _stack}


# Shared memory
#
# Torch shares tensors through /dev/shm, which has 64 MB in a container by default, and does so in a
# thread of its queue: if that fails, the batch is lost and the job waits forever. Here the worker's
# main thread puts a batch into anonymous shared memory, and returns an error in place of the batch
# if that fails.


@dataclass(frozen=True)
class _SharedBatch:
    """A batch as bytes that refer to its shared memory; unpickling it returns the batch."""

    content: bytes

    def __reduce__(self) -> Any:
        return pickle.loads, (self.content,)


def _share_batch(batch: Any) -> Any:
    """Put the batch of a worker process into shared memory; a TransientError is returned as it is.

    Returns:
        The batch, or a TransientError if it cannot be shared.
    """
    if get_worker_info() is None or isinstance(batch, TransientError):
        return batch
    try:
        shared = _pytree.tree_map_only(torch.Tensor, _in_shared_memory, batch)
        return _SharedBatch(bytes(ForkingPickler.dumps(shared)))
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


# The pool of worker processes


def load_batches(
    datasets: Sequence[Any],
    requests: Iterator[list[Request]],
    workers: int,
    *,
    by_plan: bool = False,
    on_gpu: bool = False,
    evaluated: Iterable[int] = (),
    memory_limit: int = 0,
) -> Generator[Any, None, None]:
    """Load a batch for each list of requests with one pool of worker processes.

    The worker processes start with the first batch, read ahead, and end when the generator is
    closed. Constant images stay in the memory of this process. In a worker process they would have
    to be sent again each time, and any of the worker processes can receive a batch, so each would
    have to read all images.

    Args:
        datasets: the datasets, which requests refer to by number.
        requests: requests of a batch each, all of one dataset.
        workers: number of worker processes; 0 loads in this process.
        by_plan: read image files by their plan, instead of by the dataset's transforms.
        on_gpu: leave the second stage to a GPU, and return batches of the pool in pinned memory.
        evaluated: numbers of the datasets that are read in order.
        memory_limit: largest size in bytes of the images of evaluated datasets that are kept in
            memory, if they never change; images beyond it are read each time.

    Yields:
        (inputs, labels), or an UnfinishedBatch for images whose second stage is pending.

    Raises:
        TransientError: data cannot be read, or processes cannot share memory.
    """
    sources = [find_source(dataset) if by_plan else None for dataset in datasets]
    constant_sources = {
        number: source
        for number in evaluated
        if (source := sources[number]) and not source.plan.is_random
    }
    memory = _Memory(constant_sources, memory_limit)
    requests, ahead = itertools.tee(requests)  # the pool reads its requests ahead of their use
    items = _RequestedItems(datasets, sources, on_gpu)

    with _start_pool(items, memory.missing(ahead), workers) as loaded:
        for batch_requests in requests:
            key = batch_requests[0][:2]
            batch = memory.batches.get(key)
            if batch is None:
                batch = next(loaded)
                if isinstance(batch, TransientError):
                    raise batch
                if key in memory.batches:
                    memory.batches[key] = batch.copy()
            yield batch


class _Memory:
    """As many batches of images that never change as fit into memory, as bytes.

    Args:
        sources: the sources of such images, by the number of their dataset.
        limit: largest size of all images, in bytes.

    Attributes:
        batches: the batch, or None before it is loaded, by its dataset and first position there.
    """

    def __init__(self, sources: Mapping[int, ImageSource], limit: int) -> None:
        self._sources = sources
        self._free_bytes = limit
        self.batches: dict[tuple[int, int], UnfinishedBatch | None] = {}

    def missing(self, requests: Iterator[list[Request]]) -> Iterator[list[Request]]:
        """Yield the requests of batches that must be loaded, and reserve memory for them."""
        for batch_requests in requests:
            key = batch_requests[0][:2]
            if key in self.batches:
                continue

            if source := self._sources.get(key[0]):
                size = len(batch_requests) * N_CHANNELS * source.plan.size**2
                if size <= self._free_bytes:
                    self._free_bytes -= size
                    self.batches[key] = None
            yield batch_requests


@contextlib.contextmanager
def _start_pool(
    items: _RequestedItems, requests: Iterator[list[Request]], workers: int
) -> Iterator[Iterator[Any]]:
    """Start the worker processes, yield the loaded batches, and end the processes."""
    # Without this generator, torch's loader would draw an unused seed from the global generator,
    # and change the random numbers of training.
    loader: DataLoader[Any] = DataLoader(
        items,
        batch_sampler=requests,
        num_workers=workers,
        pin_memory=items.on_gpu,
        generator=torch.Generator(),
        worker_init_fn=stopping.init_worker,
        collate_fn=_share_batch,
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
        yield loaded
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


# The device


def copy_to_device(loaded: Iterator[Any], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on a device, finished.

    Args:
        loaded: (images, labels) pairs, or UnfinishedBatch objects.
        device: the CPU or a GPU.
    """
    for batch in _copy_ahead(loaded, device) if devices.is_gpu(device) else loaded:
        if isinstance(batch, UnfinishedBatch):
            images = stages.second_stage(batch.plan, batch.images, batch.choices)
            yield images, batch.labels
        else:
            yield batch


def _copy_ahead(loaded: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield the batches on a GPU; each is copied while the previous one is used."""
    stream = devices.CopyStream(device)
    copying: tuple[Any, devices.StartedCopies] | None = None
    for batch in itertools.chain(loaded, [None]):  # None after the last batch
        previous = copying
        if batch is not None:
            is_unfinished = isinstance(batch, UnfinishedBatch)
            tensors = [batch.images, batch.labels] if is_unfinished else [*batch]
            # Batches from memory are not pinned yet.
            copying = batch, stream.start([tensor.pin_memory() for tensor in tensors])
        if previous is not None:
            on_host, copies = previous
            x, y = copies.wait()
            is_unfinished = isinstance(on_host, UnfinishedBatch)
            yield on_host._replace(images=x, labels=y) if is_unfinished else (x, y)


# A job


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
    # Signals that end the wait for a loader process, and an evaluation.
    stop: stopping.StopSignals = field(default_factory=stopping.StopSignals)
    # Splits of the validation loss, by name, loaded before each evaluation without random numbers.
    validated: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._evaluation_batch_size = EVALUATION_BATCH_SIZE * self.process_group.size
        if devices.is_gpu(self.device):
            step_size = len(self.in_splits) * self.hparams["batch_size"]
            self._evaluation_batch_size = max(
                self._evaluation_batch_size, EVALUATION_FACTOR_ON_GPU * step_size
            )

        self._training_seed = draw_seed()
        self._weights: list[torch.Tensor | None] = [None for _ in self.in_splits]
        if self.hparams["class_balanced"]:
            self._weights = [
                misc.make_weights_for_balanced_classes(split) for split in self.in_splits
            ]

        sampling = self.hparams.get("sampling", WITH_REPLACEMENT)
        self._passes = [
            Passes(len(split), rng.derive_seed(self._training_seed, number))
            for number, split in enumerate(self.in_splits)
            if sampling != WITH_REPLACEMENT
        ]

    def begin(self, step: int, pending: bool, once: bool, workers: int) -> None:
        """Start loading; `close` ends it.

        Args:
            step: the first step.
            pending: if True, begin with the evaluation after the previous step.
            once: if True, evaluate only once, for algorithms that training does not change.
            workers: number of loader processes.
        """
        data = [*self.in_splits, *self.evaluated.values(), *self.validated.values()]
        full_batches = self._requests(step, pending, once)
        slices = (batch[self.process_group.get_slice(len(batch))] for batch in full_batches)
        self._n_workers = workers
        self._loaded = load_batches(
            data,
            filter(None, slices),  # a small batch can have no image for this process
            workers,
            by_plan=self.by_plan,
            on_gpu=devices.is_gpu(self.device),
            evaluated=range(len(self.in_splits), len(data)),
            memory_limit=0 if once else self.memory_limit // self.process_group.local_size,
        )
        self._batches = copy_to_device(self._loaded, self.device)

    def is_due(self, step: int) -> bool:
        """Return True if there is a checkpoint after the step."""
        return step % self.checkpoint_freq == 0 or step == self.steps - 1

    def step_batches(self) -> list[Batch]:
        """Return the batches of the next step, one of each in-split.

        Raises:
            Stopped: a signal was received while waiting for a batch.
        """
        with self._stop_while_waiting():
            return list(itertools.islice(self._batches, len(self.in_splits)))

    def split_batches(self, split: Sized) -> Iterator[Batch]:
        """Yield this process's slices of the batches of an evaluated or validated split.

        Splits must be requested in their order.

        Raises:
            Stopped: a process of the job received a signal.
        """
        for begin in range(0, len(split), self._evaluation_batch_size):
            size = min(self._evaluation_batch_size, len(split) - begin)
            part = self.process_group.get_slice(size)
            batch = None
            if part.start < part.stop:
                with self._stop_while_waiting():
                    batch = next(self._batches)
            self.stop.check()  # in all processes, also in those without an image
            if batch is not None:
                yield batch

    def _stop_while_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Raise Stopped at once if a signal arrives while the block waits for loader processes."""
        return self.stop.waiting() if self._n_workers else contextlib.nullcontext()

    def close(self) -> None:
        """End the loader processes."""
        self._loaded.close()

    def _requests(self, first: int, pending: bool, once: bool) -> Iterator[list[Request]]:
        """Yield the requests of all batches from a step on, before they are sliced."""
        if pending:
            yield from self._evaluation(0 if once else first - 1)

        sizes = [len(split) for split in self.in_splits]
        for step in range(first, self.steps):
            yield from training_requests(
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
            yield from evaluation_requests(sizes, self._evaluation_batch_size, key, first)


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
