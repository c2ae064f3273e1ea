"""Pictures in webdataset's shards, which are tar archives: where each one is, and its label.

`shard_reading` reads headers and labels, once; the index is kept in the cache folder, for exactly
these files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.data import shard_reading
from domainbed_carft.data.picture_files import ByteRange
from domainbed_carft.errors import CarftError, PassingError

LAYOUT = 2  # of the cached index; another one is another file
IDENTIFYING_BYTES = 1 << 14  # at the start and at the end, where tar writes up to 10,240 zeros
TAR_BLOCK = 512  # bytes; each picture has a header of one block

# A row of an index's table: shard, offset, size, label.
_ENTRY = np.dtype("<i8")
_COLUMNS = 4
_LOCATION = slice(0, 3)
_LABEL = 3


@dataclass(frozen=True)
class Index(Sequence[tuple[ByteRange, int]]):
    """The pictures of some shards, sorted by label and then by name, as folders list them."""

    shards: Sequence[str]  # their paths
    locations: np.ndarray  # (N, 3), int64: the shard's number, and offset and size in bytes
    labels: np.ndarray  # (N,), int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        shard, offset, size = self.locations[position].tolist()
        return ByteRange(self.shards[shard], offset, size), int(self.labels[position])


def index(shards: Sequence[Path], classes: Sequence[str]) -> Index:
    """The index of the ``shards``, from the cache or read anew; ``classes`` are in label order.

    A label in a shard is a number from 0 on, or a class's name. Raises CarftError for other
    archives, and for a sample that appears twice; PassingError for a shard that cannot be read.
    """
    with ThreadPool(shard_reading.THREADS) as pool:
        identities = pool.map(_identity, shards)
    layout = [LAYOUT, list(classes), identities]
    key = hashlib.sha256(json.dumps(layout).encode("utf-8", "surrogateescape")).digest()
    cache_path = files.cache_folder() / "shards" / f"{key.hex()[:32]}.index"
    largest = sum(path.stat().st_size for path in shards) // TAR_BLOCK * _COLUMNS * _ENTRY.itemsize

    table = _load_table(cache_path, key, largest)
    if table is None:
        labels = {name: label for label, name in enumerate(classes)}
        samples = shard_reading.read_samples(shards, labels)
        rows = [(sample.shard, sample.offset, sample.size, sample.label) for sample in samples]
        table = np.array(rows, _ENTRY).reshape(-1, _COLUMNS)
        _save_table(cache_path, key, table)

    return Index(
        [str(path) for path in shards],
        np.ascontiguousarray(table[:, _LOCATION]),
        np.ascontiguousarray(table[:, _LABEL]),
    )


def _identity(path: Path) -> list[str | int]:
    """What tells a shard from any other file: path, inode, times, size, and a digest of its ends.

    Raises PassingError if it is no regular file, or cannot be read.
    """
    try:
        real_path = path.resolve(strict=True)
        with files.open_regular(real_path) as file:
            status = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(IDENTIFYING_BYTES))
            file.seek(max(0, status.st_size - IDENTIFYING_BYTES))
            ends.update(file.read(IDENTIFYING_BYTES))
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        raise PassingError(f"{path} cannot be read: {error}; restore the shard") from error

    times = [status.st_mtime_ns, status.st_ctime_ns]
    return [str(real_path), status.st_ino, *times, status.st_size, ends.hexdigest()]


def _checksum(key: bytes, content: bytes) -> bytes:
    """The SHA-256 of an index's content and of the ``key`` of its shards and classes."""
    return hashlib.sha256(key + content).digest()


def _save_table(path: Path, key: bytes, table: np.ndarray) -> None:
    """Write a table to the cache; a full cache costs time, but never ends a job."""
    content = table.tobytes()
    with contextlib.suppress(CarftError):
        files.save(path, lambda new: new.write_bytes(_checksum(key, content) + content))


def _load_table(path: Path, key: bytes, largest: int) -> np.ndarray | None:
    """The table (N, 4) that is cached at ``path``; None unless it is whole and of these shards.

    ``largest``: the bytes of a table of all pictures that fit into the shards.
    """
    try:
        with files.open_regular(path, largest + len(key)) as file:
            content = file.read()
    except OSError:
        return None

    rows = content[len(key) :]
    if content[: len(key)] != _checksum(key, rows) or len(rows) % (_COLUMNS * _ENTRY.itemsize):
        return None
    return np.frombuffer(rows, _ENTRY).reshape(-1, _COLUMNS)
