"""Decoded pictures, kept on a local disk for all processes of this user on this machine.

An LMDB environment, which nothing is ever deleted from: it grows to its bound, and then keeps what
it has. So what it holds stays where it is, and is read in place, without a copy.

Its folder's name has the boot's id. Nothing is flushed, which is as safe as can be while the
machine runs; what an earlier boot left may be half written, and is removed unread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor

from domainbed_carft.errors import CarftError

# Part of the folder's name: another layout of keys or values is another store.
LAYOUT = 1

# LMDB's limit for a key is 511 bytes; the beginning of the path tells whose pictures they are.
LONGEST_PATH = 400

# The store counts as full before its last pages, which a picture may be too large for.
FULL = 0.95

# LMDB moves values that are smaller than a page, of no more than this on any machine, and leaves
# larger ones in their place.
LARGEST_PAGE = 1 << 16

# By folder the process that opened it, and what it opened. LMDB allows one environment a process,
# and none to be used after a fork.
_environments: dict[str, tuple[int, Any]] = {}
_locks: dict[str, tuple[int, int]] = {}


class Store:
    """Pictures (H, W, 3), uint8, by keys that `key` makes.

    Each process opens it when it first asks, so it may be pickled, and used after a fork. All that
    fails only ends the keeping: pictures can be had without it.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder
        self.bound = bound
        self._keeps = True

    def get(self, key: bytes) -> Tensor | None:
        """The picture, if it is kept. It is in the store's own memory: do not write to it."""
        try:
            with _environment(self.folder, self.bound).begin(buffers=True) as transaction:
                value = transaction.get(key)
                if value is None:
                    return None
                content = np.frombuffer(value, dtype=np.uint8)
                if len(content) < LARGEST_PAGE:
                    content = content.copy()
        except (lmdb.Error, OSError):
            return None
        return torch.from_numpy(content[12:]).view(*content[:12].view(np.uint32).tolist())

    def put(self, key: bytes, picture: Tensor) -> None:
        """Keep the picture, if there is room; one that is kept already stays."""
        if not self._keeps:
            return
        value = np.empty(12 + picture.numel(), dtype=np.uint8)
        value[:12].view(np.uint32)[:] = picture.shape
        value[12:].reshape(picture.shape)[:] = picture.numpy()
        try:
            with _environment(self.folder, self.bound).begin(write=True) as transaction:
                transaction.put(key, value, overwrite=False)
        except (lmdb.Error, OSError):  # the store is full, or the disk
            self._keeps = False

    def size(self) -> int:
        """Bytes on the disk."""
        return _size(_environment(self.folder, self.bound))


def key(path: str, what: str) -> bytes:
    """The key of a file as it is now, and of ``what`` is kept of it.

    A changed file has another size or time of change. Raises OSError without the file.
    """
    status = os.stat(path)
    name = os.fsencode(os.path.abspath(path))
    told = f"{status.st_size} {status.st_mtime_ns} {what}".encode()
    return (
        name[:LONGEST_PATH] + b"\0" + hashlib.blake2b(name + b"\0" + told, digest_size=16).digest()
    )


def opened(parent: Path, bound: int, data: str = "") -> Store:
    """The store below ``parent``, which is made, readable by this user alone.

    If it is full, other processes do not have it open, and less than half of it is of pictures
    below the folder ``data``, it is begun anew. Raises CarftError where ``parent`` is not ours
    alone, OSError where it cannot be written, lmdb.Error where LMDB cannot use it.
    """
    with contextlib.suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CarftError(
            f"{parent} is not a folder of this user alone; expected one with mode 700; remove it"
        )
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    folder = parent / f"pictures-{LAYOUT}-{boot}"
    with _alone(parent) as alone:
        if alone and str(folder) not in _environments:
            for other in parent.iterdir():
                if other.is_dir() and (other != folder or _is_of_others(folder, bound, data)):
                    shutil.rmtree(other)
    folder.mkdir(mode=0o700, exist_ok=True)
    _environment(folder, bound)
    return Store(folder, bound)


def _is_of_others(folder: Path, bound: int, data: str) -> bool:
    """Whether it is full, and mostly of pictures that are not below ``data``; or damaged."""
    below = os.fsencode(os.path.join(os.path.abspath(data), ""))[:LONGEST_PATH]
    try:
        with _opened(folder, bound) as environment, environment.begin() as transaction:
            names = transaction.cursor().iternext(keys=True, values=False)
            ours = sum(name.startswith(below) for name in names)
            return _size(environment) > FULL * bound and 2 * ours < environment.stat()["entries"]
    except lmdb.Error:
        return True


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[bool]:
    """Whether no other process uses a store below ``parent``; if so, none opens one meanwhile.

    Afterwards this process is one that does, as are those it forks.
    """
    process, descriptor = _locks.get(str(parent), (0, 0))
    if process != os.getpid():  # an inherited one would take the lock of the parent's for its own
        descriptor = os.open(parent / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _locks[str(parent)] = os.getpid(), descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    try:
        yield alone
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _environment(folder: Path, bound: int) -> Any:
    """The environment in ``folder``, opened once a process."""
    process, environment = _environments.get(str(folder), (0, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()  # this process's copy of its parent's
        environment = _opened(folder, bound)
        _environments[str(folder)] = (os.getpid(), environment)
        # torch warns of memory that it must not write to, once a process.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(b"read only", dtype=np.uint8))
    return environment


def _opened(folder: Path, bound: int) -> Any:
    return lmdb.open(
        str(folder),
        map_size=bound,
        mode=0o600,
        sync=False,
        metasync=False,
        meminit=False,
        max_readers=2048,
        # A reader's place that is kept for the next transaction would be lost to a fork.
        max_spare_txns=0,
    )


def _size(environment: Any) -> int:
    return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])
