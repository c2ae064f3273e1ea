"""Batches for training without end, and for evaluation split by split.

Each serves all environments from one pool of worker processes, where upstream's loaders (file
domainbed/lib/fast_data_loader.py at b93c22a) start a pool for each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from domainbed.lib import drawing, stopping
from domainbed_carft.errors import PassingError

Batch = tuple[torch.Tensor, torch.Tensor]
# A data set's number, a position in it, and the key of the random numbers drawn on the way.
Request = tuple[int, int, tuple[int, ...]]


class _RequestedItems(Dataset[Any]):
    """Items of several data sets, each read with random numbers of its own.

    So what an augmentation draws depends neither on the process that reads the item nor on what
    that process has read before: the number of workers and a restart change no picture.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self._datasets = datasets

    def __getitems__(self, requests: list[Request]) -> Any:
        """Read a batch; torch's loader asks so, and the generators are put back once a batch.

        A failure is what comes instead of a batch: raised in a worker, it would reach the user as
        torch's account of it, a traceback.
        """
        items = []
        with drawing.kept():
            for number, position, key in requests:
                drawing.reseed(drawing.seed_of(*key))
                try:
                    items.append(self._datasets[number][position])
                except PassingError as failure:
                    return failure
        return items


def _collated(items: Any) -> Any:
    return items if isinstance(items, PassingError) else default_collate(items)


def _unless_failed(batch: Any) -> Any:
    if isinstance(batch, PassingError):
        raise batch
    return batch


def _batches(
    datasets: Sequence[Any], requests: Iterator[list[Request]], workers: int
) -> Generator[Any, None, None]:
    """The batches; once closed, or at the end, no worker is left."""
    # A generator of its own: it draws a seed for the workers, which nobody uses, from the global
    # one otherwise, and the training draws from that.
    loader: DataLoader[Any] = DataLoader(
        _RequestedItems(datasets),
        batch_sampler=requests,  # type: ignore[arg-type]
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=stopping.serve_on,
        collate_fn=_collated,
    )
    with stopping.held():
        loaded = iter(loader)
    try:
        yield from map(_unless_failed, loaded)
    finally:
        # Torch's iterator stops its workers as it goes. Were it left to the collector of cycles,
        # its queues could go first, and each worker would be waited for in vain, 5 s.
        del loaded


def _endless_draws(
    seed: int,
    sizes: Sequence[int],
    weights: Sequence[torch.Tensor | None],
    batch_size: int,
    first_step: int,
) -> Iterator[list[Request]]:
    """Endless batches of requests, one of each data set a step.

    Items are drawn with replacement, as upstream does, so a data set smaller than the batch
    serves as well as any. What is drawn is a function of seed, data set, step, place in the batch.
    """
    for step in itertools.count(first_step):
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            key = (seed, number, step)
            generator = torch.Generator().manual_seed(drawing.seed_of(*key))
            if weight is None:
                drawn = torch.randint(size, (batch_size,), generator=generator)
            else:
                drawn = torch.multinomial(weight, batch_size, True, generator=generator)
            yield [
                (number, position, (*key, place)) for place, position in enumerate(drawn.tolist())
            ]


class EnvironmentBatches:
    """Endless iterator; each item is a list with one batch of each data set.

    Args:
        datasets: the data sets, none of them empty.
        weights: for each data set its items' weights, or None to draw uniformly.
        batch_size: items per batch.
        num_workers: processes that load for all data sets together; 0 loads in this one.
        first_step: the item to begin with, to resume an earlier iterator.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[torch.Tensor | None],
        batch_size: int,
        num_workers: int,
        first_step: int = 0,
    ) -> None:
        sizes = [len(dataset) for dataset in datasets]
        # Drawn now: which items come must not depend on random numbers used after this.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        draws = _endless_draws(seed, sizes, weights, batch_size, first_step)
        self._per_item = len(datasets)
        self._batches = _batches(datasets, draws, num_workers)

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        return [next(self._batches) for _ in range(self._per_item)]

    def close(self) -> None:
        """End the worker processes; there are no more batches."""
        self._batches.close()


class InfiniteDataLoader:
    """Endless batches of one data set: upstream's name, which scripts and algorithms import."""

    def __init__(
        self, dataset: Any, weights: torch.Tensor | None, batch_size: int, num_workers: int
    ) -> None:
        self._batches = EnvironmentBatches([dataset], [weights], batch_size, num_workers)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for (batch,) in self._batches)


class EvaluationBatches:
    """One pass over several data sets in order; each item iterates over one data set's batches.

    An item has to be used up before the next is asked for. No batch mixes two data sets, and the
    worker processes live as long as the pass, which can be closed.

    Args:
        datasets: the data sets.
        batch_size: items per batch; the last batch of a data set may have fewer.
        num_workers: processes that load for all data sets together; 0 loads in this one.
        key: what the random numbers depend on beside the data set and the item. Upstream
            augments the pictures of training environments in evaluation as well.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        batch_size: int,
        num_workers: int,
        key: Sequence[int] = (),
    ) -> None:
        self._datasets = datasets
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._key = key

    def __iter__(self) -> Generator[Iterator[Batch], None, None]:
        sizes = [len(dataset) for dataset in self._datasets]
        requests = _one_pass(sizes, self._batch_size, self._key)
        with contextlib.closing(_batches(self._datasets, requests, self._num_workers)) as batches:
            for dataset in self._datasets:
                yield itertools.islice(batches, -(-len(dataset) // self._batch_size))


class FastDataLoader:
    """One pass over one data set an iteration: upstream's name, as `InfiniteDataLoader` is."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int) -> None:
        self._passes = EvaluationBatches([dataset], batch_size, num_workers)
        self._length = -(-len(dataset) // batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return itertools.chain.from_iterable(self._passes)

    def __len__(self) -> int:
        return self._length


def _one_pass(sizes: Sequence[int], batch_size: int, key: Sequence[int]) -> Iterator[list[Request]]:
    """Batches of requests for every item once; made one by one, since there may be a million."""
    for number, size in enumerate(sizes):
        for first in range(0, size, batch_size):
            yield [
                (number, position, (*key, number, position))
                for position in range(first, min(first + batch_size, size))
            ]
