"""Batches for training without end, and for evaluation split by split.

InfiniteDataLoader and FastDataLoader have the interface of upstream file
domainbed/lib/fast_data_loader.py at b93c22a. The two other classes are what `train` uses: each
serves all environments from one pool of worker processes, where upstream starts a pool for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Sampler

Batch = tuple[torch.Tensor, torch.Tensor]


class _EndlessDraws(Sampler[list[int]]):
    """Endless batches of positions in a concatenation of data sets, one data set after another.

    Items are drawn with replacement, as upstream does, so a data set smaller than the batch
    serves as well as any.

    Args:
        sizes: how many items each data set has.
        weights: for each data set its items' weights, or None to draw uniformly.
        batch_size: how many positions a batch has.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[torch.Tensor | None], batch_size: int
    ) -> None:
        if 0 in sizes:
            raise ValueError("cannot draw batches from an empty data set")
        self._starts = [0, *itertools.accumulate(sizes)][:-1]
        self._sizes = sizes
        self._weights = weights
        self._batch_size = batch_size
        # Drawn now: which items come must not depend on random numbers used after this.
        self._seed = int(torch.empty((), dtype=torch.int64).random_())

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            for start, size, weights in zip(self._starts, self._sizes, self._weights, strict=True):
                shape = (self._batch_size,)
                if weights is None:
                    drawn = torch.randint(size, shape, generator=generator)
                else:
                    drawn = torch.multinomial(weights, *shape, True, generator=generator)
                yield (drawn + start).tolist()


class EnvironmentBatches:
    """Endless iterator; each item is a list with one batch of each data set.

    Args:
        datasets: the data sets, none of them empty.
        weights: for each data set its items' weights, or None to draw uniformly.
        batch_size: items per batch.
        num_workers: processes that load for all data sets together; 0 loads in this one.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[torch.Tensor | None],
        batch_size: int,
        num_workers: int,
    ) -> None:
        draws = _EndlessDraws([len(dataset) for dataset in datasets], weights, batch_size)
        self._per_item = len(datasets)
        self._batches = iter(
            DataLoader(ConcatDataset(datasets), batch_sampler=draws, num_workers=num_workers)
        )

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        return [next(self._batches) for _ in range(self._per_item)]


class EvaluationBatches:
    """One pass over several data sets in order; each item iterates over one data set's batches.

    An item has to be used up before the next is asked for. No batch mixes two data sets, and the
    worker processes live as long as the pass.

    Args:
        datasets: the data sets.
        batch_size: items per batch; the last batch of a data set may have fewer.
        num_workers: processes that load for all data sets together; 0 loads in this one.
    """

    def __init__(self, datasets: Sequence[Any], batch_size: int, num_workers: int) -> None:
        self._datasets = datasets
        self._borders = [0, *itertools.accumulate(len(dataset) for dataset in datasets)]
        self._batch_size = batch_size
        self._num_workers = num_workers

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        positions = [
            list(range(first, min(first + self._batch_size, end)))
            for start, end in itertools.pairwise(self._borders)
            for first in range(start, end, self._batch_size)
        ]
        loader: DataLoader[Any] = DataLoader(
            ConcatDataset(self._datasets), batch_sampler=positions, num_workers=self._num_workers
        )
        batches = iter(loader)
        for start, end in itertools.pairwise(self._borders):
            yield itertools.islice(batches, -(-(end - start) // self._batch_size))


class InfiniteDataLoader:
    """Endless batches of one data set, drawn with replacement."""

    def __init__(
        self, dataset: Any, weights: torch.Tensor | None, batch_size: int, num_workers: int
    ) -> None:
        self._batches = EnvironmentBatches([dataset], [weights], batch_size, num_workers)

    def __iter__(self) -> Iterator[Batch]:
        return (only for (only,) in self._batches)

    def __len__(self) -> int:
        raise ValueError("an endless loader has no length")


class FastDataLoader:
    """Shuffled passes over one data set; worker processes survive from pass to pass."""

    def __init__(self, dataset: Any, batch_size: int, num_workers: int) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)
