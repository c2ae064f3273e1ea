"""Evaluation images that a job keeps in memory as bytes after their first evaluation.

The training process keeps them. In a loader process they would have to be sent again each time, and
any of the loader processes can receive a batch, so each would have to read all images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from domainbed.lib.image_batches import UnfinishedBatch
from domainbed_carft import machine, process_variables
from domainbed_carft.errors import CarftError

# The key of a batch: the number of its dataset, and its first position there.
BatchKey = tuple[int, int]


class ImageMemory:
    """As many batches of constant evaluation images as fit into memory.

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


def memory_limit(text: str | None) -> int:
    """Parse `--image_memory`.

    Args:
        text: A size such as "8G" or "500M"; None for the default, a share of the memory.

    Returns:
        The size in bytes.

    Raises:
        CarftError: The text is not a size.
    """
    if text is None:
        return machine.image_memory()

    size = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not size:
        raise CarftError(
            f"--image_memory is {text!r}, expected a size such as 8G or 500M, or 0 to keep "
            f"no images (the default is ${process_variables.IMAGE_MEMORY.name})"
        )
    return int(float(size[1]) * 1024 ** " KMGT".index(size[2].upper() or " "))


def describe(limit: int) -> str:
    """Describe the limit in words."""
    if not limit:
        return "evaluation images are read each time"
    size = f"{limit / 2**30:.1f}G" if limit >= 2**30 else f"{limit / 2**20:.0f}M"
    return f"evaluation images are kept in memory, at most {size}"
