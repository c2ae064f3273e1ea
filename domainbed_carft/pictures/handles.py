"""What this process has open of a store of pictures, and the locks that it takes there.

LMDB waits for its own locks in C, without end, and trusts its pages. So a process that opens a
store or writes to it locks a file first, for which others wait a few seconds. A reader takes no
lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

PATIENCE_S = 2.0  # how long to wait for a process that opens a store or writes to it
START_PATIENCE_S = 10.0  # how long to wait for a process that begins a store anew
POLL_S = 0.001

MOST_READERS = 2048  # processes that have a store open at a time


@dataclass(frozen=True)
class _Registration:
    """A process's use of the stores below a folder."""

    process_id: int
    descriptor: int  # of the folder's file "in-use"


_registrations: dict[Path, _Registration] = {}


@dataclass(frozen=True)
class _Handle:
    """An opened store. LMDB allows one a process, and none to be used after a fork."""

    process_id: int
    database: Any
    lock_descriptor: int  # of the file "writing"


_handles: dict[Path, _Handle] = {}


@contextlib.contextmanager
def registered(parent: Path) -> Iterator[bool]:
    """Register this process, and those that it forks, as users of the stores below ``parent``.

    Yields whether there is no other user; then no other one registers during the block. Raises
    BlockingIOError if another process is stopped in here.
    """
    registration = _registrations.get(parent)
    # A lock on an inherited descriptor would be the parent process's own.
    if registration is None or registration.process_id != os.getpid():
        opened = os.open(parent / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        registration = _Registration(os.getpid(), opened)
        _registrations[parent] = registration

    descriptor = registration.descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _take_lock(descriptor, fcntl.LOCK_SH, START_PATIENCE_S)
        yield False
        return

    try:
        yield True
    finally:
        _take_lock(descriptor, fcntl.LOCK_SH, START_PATIENCE_S)


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold an exclusive lock on a file. Raises BlockingIOError if another process holds one."""
    _take_lock(descriptor, fcntl.LOCK_EX, PATIENCE_S)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _take_lock(descriptor: int, kind: int, patience_s: float) -> None:
    """Take a lock of a ``kind`` of fcntl's; BlockingIOError if others hold the file for longer."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


def is_open(folder: Path) -> bool:
    """Whether this process has the store in ``folder`` open."""
    return folder in _handles and _handles[folder].process_id == os.getpid()


def handle(folder: Path, bound: int) -> _Handle:
    """The store in ``folder``, of at most ``bound`` bytes, opened once a process.

    Raises lmdb.Error and OSError.
    """
    if is_open(folder):
        return _handles[folder]
    close(folder)  # this process's copy of its parent's

    descriptor = os.open(folder / "writing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _locked(descriptor):
            database = _open(folder, bound)
            database.reader_check()  # frees the slots of processes that were killed
            with database.begin():  # takes this reader's slot, which it keeps
                pass
    except BaseException:
        os.close(descriptor)
        raise
    _handles[folder] = _Handle(os.getpid(), database, descriptor)

    # torch warns of memory that it must not write to, once a process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"read only", dtype=np.uint8))
    return _handles[folder]


def close(folder: Path) -> None:
    """Close the store in ``folder``, if it is open; pictures read from it become invalid."""
    if opened := _handles.pop(folder, None):
        opened.database.close()
        os.close(opened.lock_descriptor)


@contextlib.contextmanager
def reading(folder: Path, bound: int) -> Iterator[Any]:
    """A transaction that reads, and waits for no other process. Raises lmdb.Error and OSError."""
    database = handle(folder, bound).database
    try:
        transaction = database.begin(buffers=True)
    except lmdb.BadRslotError:  # a child that was forked meanwhile has given this slot away
        transaction = database.begin(buffers=True)
    with transaction:
        yield transaction


@contextlib.contextmanager
def writing(folder: Path, bound: int) -> Iterator[Any]:
    """A transaction that writes. Raises BlockingIOError if another process is stopped in one.

    Also raises lmdb.Error and OSError.
    """
    opened = handle(folder, bound)
    with (
        _locked(opened.lock_descriptor),
        opened.database.begin(write=True, buffers=True) as transaction,
    ):
        yield transaction


def used_bytes(database: Any) -> int:
    """How much of its file an opened store uses, in bytes."""
    return int((database.info()["last_pgno"] + 1) * database.stat()["psize"])


def _open(folder: Path, bound: int) -> Any:
    return lmdb.open(
        str(folder),
        map_size=bound,
        mode=0o600,
        # Nothing is flushed: after a crash of the machine the store is not used again.
        sync=False,
        metasync=False,
        meminit=False,
        max_readers=MOST_READERS,
        # A reader that keeps its slot takes no lock when it reads again.
        max_spare_txns=1,
    )
