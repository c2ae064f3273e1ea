"""Evaluation images that a job keeps in memory, as bytes, from their first evaluation on.

The process that trains keeps them, as its loader processes delivered them. A loader process could
keep only what it has read itself, while any of them may get a batch; and the images would have to
be sent again each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from domainbed.lib.image_batches import UnfinishedBatch
from domainbed_carft import machine, process_variables
from domainbed_carft.errors import CarftError

# Where a batch begins: its dataset's number, and its first position there.
Beginning = tuple[int, int]


class ImageMemory:
    """Batches of evaluation images that are the same each time, as many as fit.

    ``image_bytes``: the bytes of an image of each dataset that may be kept, by its number.
    ``limit``: the bytes of all images that are kept. The others are read each time.
    """

    def __init__(self, image_bytes: Mapping[int, int], limit: int, pinned: bool) -> None:
        self._image_bytes = image_bytes
        self._free_bytes = limit
        self._pinned = pinned  # whether to hand batches on in memory from which a GPU copies
        self._requested: set[Beginning] = set()
        self._batches: dict[Beginning, UnfinishedBatch] = {}

    def missing(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Those of the requests, each for a batch, that have to be loaded, in their order.

        A loader asks for them ahead of `batches`.
        """
        for batch_requests in requests:
            beginning = batch_requests[0][:2]
            if beginning in self._requested:
                continue

            size = len(batch_requests) * self._image_bytes.get(beginning[0], 0)
            if size and size <= self._free_bytes:
                self._free_bytes -= size
                self._requested.add(beginning)
            yield batch_requests

    def batches(self, requests: Iterator[Any], loaded: Iterator[Any]) -> Iterator[Any]:
        """The batch of each request, in order: from memory, else the next one of ``loaded``.

        ``requests`` are those that `missing` gets, ``loaded`` what a loader makes of its result.
        """
        for batch_requests in requests:
            beginning = batch_requests[0][:2]
            batch = self._batches.get(beginning)
            if batch is not None:
                yield batch.pinned() if self._pinned else batch
                continue

            batch = next(loaded)
            if beginning in self._requested:
                self._batches[beginning] = batch.copy()
            yield batch


def memory_limit(text: str | None) -> int:
    """The bytes by ``--image_memory``, such as "8G" or "500M"; by default a share of the memory.

    Raises CarftError for other text.
    """
    if text is None:
        return machine.image_memory()

    size = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not size:
        raise CarftError(
            f"--image_memory is {text!r}, expected a size such as 8G or 500M, or 0 to keep "
            f"nothing (by default it is ${process_variables.IMAGE_MEMORY.name})"
        )
    return int(float(size[1]) * 1024 ** " KMGT".index(size[2].upper() or " "))


def describe(limit: int) -> str:
    """What a job keeps of its evaluation images, in words."""
    if not limit:
        return "evaluation images are read each time"
    size = f"{limit / 2**30:.1f}G" if limit >= 2**30 else f"{limit / 2**20:.0f}M"
    return f"evaluation images stay in memory, at most {size}"
