"""Decoded pictures, stored on a local disk for all processes of this user on this machine.

An LMDB database that grows to its bound and then stays as it is. No entry is ever changed or
deleted, so that pictures are read in place. `store_folder` chooses and cleans its folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch
import xxhash
from torch import Tensor

from domainbed_carft.pictures import handles

LAYOUT = 2  # of keys and values; another one is another store
LONGEST_PATH = 400  # bytes of a path in a key, which LMDB limits to 511 bytes
LARGEST_PAGE = 1 << 16  # bytes, on any machine; LMDB moves values that are smaller than a page

# The bytes of a value: the checksum of the key and of all that follows, the shape, the pixels.
CHECKSUM = slice(0, 8)
SHAPE = slice(8, 20)
HEADER_SIZE = 24

# The ends of the keys under which a value may be. A damaged one is never overwritten: the picture
# is stored anew under the next of them.
KEY_SUFFIXES = (b"\0", b"\1", b"\2")

# After a wait in vain for another process; each pause is twice as long as the last.
FIRST_PAUSE_S = 60.0


class Store:
    """Pictures (H, W, 3), uint8, by keys that `picture_key` makes.

    Each process opens it at its first access, so it may be pickled, and used after a fork. Faults
    of the store or the disk are never raised: callers then decode the picture themselves.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder
        self.bound = bound
        self._is_writable = True
        self._pause_s = FIRST_PAUSE_S
        self._paused_until = 0.0

    def get(self, key: bytes) -> Tensor | None:
        """The picture (H, W, 3) that was put, or None if it is missing or damaged.

        It is in the store's own memory: do not write to it.
        """
        if not handles.is_open(self.folder) and self._is_paused():
            return None

        try:
            with handles.reading(self.folder, self.bound) as transaction:
                return _find(transaction, key).picture
        except BlockingIOError:
            self._pause()
        except (lmdb.Error, OSError):
            pass
        return None

    def put(self, key: bytes, picture: Tensor) -> None:
        """Store the picture (H, W, 3), uint8, if there is room and it is not stored yet.

        If a process is stopped while it writes, this one waits for some seconds and then pauses.
        """
        if not self._is_writable or self._is_paused():
            return

        value = _pack(key, picture)
        try:
            with handles.writing(self.folder, self.bound) as transaction:
                entry = _find(transaction, key)
                if entry.picture is None and entry.key is not None:
                    transaction.put(entry.key, value, overwrite=False)
        except BlockingIOError:
            self._pause()
        except (lmdb.Error, OSError):  # the store is full, or the disk
            self._is_writable = False

    def size(self) -> int:
        """The store's size on the disk, in bytes."""
        return handles.used_bytes(handles.handle(self.folder, self.bound).database)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + self._pause_s
        self._pause_s *= 2


def picture_key(path: str, form: str) -> bytes:
    """The key of a file's picture in some ``form``, as "whole" or a size, made by some decoder.

    It consists of the path and a digest of all that identifies the file and the form. Raises
    OSError if the file does not exist.
    """
    status = os.stat(path)
    folder, _, name = path.rpartition("/")
    absolute, real = _spellings(f"{folder}/" if path.startswith("/") else folder)
    facts = (
        f"{real}/{name}\0{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} "
        f"{status.st_ctime_ns} {form}"
    )
    digest = hashlib.blake2b(os.fsencode(facts), digest_size=16).digest()
    return os.fsencode(f"{absolute}/{name}")[:LONGEST_PATH] + b"\0" + digest


def key_prefix(folder: str) -> bytes:
    """How the keys of all pictures below a folder begin."""
    return os.fsencode(os.path.join(os.path.abspath(folder), ""))[:LONGEST_PATH]


@functools.lru_cache(maxsize=1 << 16)
def _spellings(folder: str) -> tuple[str, str]:
    """A folder's absolute path, and its path without symbolic links.

    Both are cached: if a link is switched later, the files behind it have other inodes.
    """
    return os.path.abspath(folder).rstrip("/"), os.path.realpath(folder).rstrip("/")


class _Entry(NamedTuple):
    """What the store has for a key."""

    picture: Tensor | None  # (H, W, 3), uint8
    key: bytes | None  # the picture's key with suffix; else the first free one, None if none is


def _find(transaction: Any, key: bytes) -> _Entry:
    for suffix in KEY_SUFFIXES:
        value = transaction.get(key + suffix)
        if value is None:
            return _Entry(None, key + suffix)
        picture = _unpack(key, value)
        if picture is not None:
            return _Entry(picture, key + suffix)
    return _Entry(None, None)


def _pack(key: bytes, picture: Tensor) -> np.ndarray:
    """The value, (bytes,), uint8, under which a picture (H, W, 3) is stored."""
    value = np.zeros(HEADER_SIZE + picture.numel(), dtype=np.uint8)
    value[SHAPE].view(np.uint32)[:] = picture.shape
    value[HEADER_SIZE:].reshape(picture.shape)[:] = picture.numpy()
    value[CHECKSUM].view(np.uint64)[0] = checksum(key, value[CHECKSUM.stop :])
    return value


def _unpack(key: bytes, value: Any) -> Tensor | None:
    """The picture (H, W, 3) of a value; None unless `_pack` made the value for this key."""
    if len(value) < HEADER_SIZE:
        return None
    content = np.frombuffer(value, dtype=np.uint8)
    if len(content) < LARGEST_PAGE:
        content = content.copy()

    height, width, channels = content[SHAPE].view(np.uint32).tolist()
    if channels != 3 or HEADER_SIZE + height * width * channels != len(content):
        return None
    if content[CHECKSUM].view(np.uint64)[0] != checksum(key, content[CHECKSUM.stop :]):
        return None
    return torch.from_numpy(content[HEADER_SIZE:]).view(height, width, channels)


def checksum(key: bytes, content: np.ndarray) -> int:
    """A 64-bit checksum of a key and its content, at about the speed of memory."""
    return xxhash.xxh3_64_intdigest(content.data, seed=xxhash.xxh3_64_intdigest(key))
