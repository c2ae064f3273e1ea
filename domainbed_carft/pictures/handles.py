"""What this process has open of a store of pictures, and the locks that it takes there.

LMDB waits for its own locks in C, without end, and trusts its pages. So a process that opens a
store or writes to it locks a file first, for which others wait a few seconds. A reader takes no
lock. A process of its own looks for damage.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

PATIENCE_S = 2.0  # how long to wait for a process that opens a store or writes to it
START_PATIENCE_S = 10.0  # and for one that begins a store anew
POLL_S = 0.001
INSPECTION_S = 60.0  # for walking through all keys of a store, on a slow disk

FULL = 0.95  # of the bound: a picture may be too large for the last pages

# What LMDB raises for pages that it has not written so.
DAMAGE = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)

# By folder the process that opened its lock file "in-use", and the descriptor.
_registrations: dict[Path, tuple[int, int]] = {}


@dataclass(frozen=True)
class _Handle:
    """An opened store. LMDB allows one a process, and none to be used after a fork."""

    process_id: int
    database: Any
    lock_descriptor: int  # of the file "writing"


_handles: dict[Path, _Handle] = {}


class StoreState(enum.Enum):
    """What a store is found to be."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    FOREIGN = enum.auto()  # full, and more than half of it are other data's pictures


@contextlib.contextmanager
def registered(parent: Path) -> Iterator[bool]:
    """Register this process, and those that it forks, as users of the stores below ``parent``.

    Inside, whether there is no other user; if so, none comes meanwhile. Raises BlockingIOError if
    another process is stopped in here.
    """
    process_id, descriptor = _registrations.get(parent, (0, 0))
    if (
        process_id != os.getpid()
    ):  # an inherited one would take the lock of the parent's for its own
        descriptor = os.open(parent / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _registrations[parent] = os.getpid(), descriptor

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
    """Hold an exclusive lock on a file. Raises BlockingIOError if another process keeps it."""
    _take_lock(descriptor, fcntl.LOCK_EX, PATIENCE_S)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _take_lock(descriptor: int, kind: int, patience_s: float) -> None:
    """Take a lock of this kind on a file. Raises BlockingIOError if it is not to be had in time."""
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
    """The store in ``folder``, opened once a process. Raises lmdb.Error and OSError."""
    if is_open(folder):
        return _handles[folder]
    close(folder)  # this process's copy of its parent's

    descriptor = os.open(folder / "writing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with _locked(descriptor):
            database = _open(folder, bound)
            database.reader_check()  # frees the places of processes that were killed
            with database.begin():  # takes this reader's place, which it keeps
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
    """Close the store in ``folder``, if it is open; what was read from it is gone."""
    if opened := _handles.pop(folder, None):
        opened.database.close()
        os.close(opened.lock_descriptor)


@contextlib.contextmanager
def reading(folder: Path, bound: int) -> Iterator[Any]:
    """A transaction that reads, and waits for nobody."""
    database = handle(folder, bound).database
    try:
        transaction = database.begin(buffers=True)
    except lmdb.BadRslotError:  # a child that was forked meanwhile has given this place away
        transaction = database.begin(buffers=True)
    with transaction:
        yield transaction


@contextlib.contextmanager
def writing(folder: Path, bound: int) -> Iterator[Any]:
    """A transaction that writes. Raises BlockingIOError if another process is stopped in one."""
    opened = handle(folder, bound)
    with _locked(opened.lock_descriptor), opened.database.begin(write=True, buffers=True) as new:
        yield new


def used_bytes(database: Any) -> int:
    """The bytes of the file that the pages of an opened store take."""
    return int((database.info()["last_pgno"] + 1) * database.stat()["psize"])


def inspect(folder: Path, bound: int, names_begin: bytes) -> StoreState:
    """Walk through all keys of the store in ``folder``, which this process does not have open.

    ``names_begin`` is how the keys of one's own pictures begin. Raises OSError or lmdb.Error if the
    store cannot be opened now.
    """
    # In a process of its own, since a wrong page may end the process that follows it.
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    inspector = fork.Process(target=_send_verdict, args=(sending, folder, bound, names_begin))
    inspector.daemon = True
    inspector.start()
    sending.close()
    try:
        if not receiving.poll(INSPECTION_S):
            raise TimeoutError(f"{folder} could not be checked within {INSPECTION_S:.0f} s")
        verdict = receiving.recv()
    except EOFError:
        return StoreState.DAMAGED
    finally:
        inspector.kill()
        inspector.join()
        receiving.close()

    if isinstance(verdict, Exception):
        raise verdict
    return StoreState(verdict)


def _send_verdict(sending: Connection, folder: Path, bound: int, names_begin: bytes) -> None:
    """Send a verdict, or why there is none; without either the store has ended this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sending.send(_verdict(folder, bound, names_begin))
    except OSError as error:
        sending.send(error)
    except DAMAGE:
        sending.send(StoreState.DAMAGED)
    except lmdb.Error as error:
        sending.send(OSError(str(error)))


def _verdict(folder: Path, bound: int, names_begin: bytes) -> StoreState:
    database = handle(folder, bound).database
    with database.begin() as transaction:
        if used_bytes(database) > os.stat(folder / "data.mdb").st_size:
            return StoreState.DAMAGED

        count = 0
        matching = 0
        before = b""
        for name in transaction.cursor().iternext(keys=True, values=False):
            if name <= before:
                return StoreState.DAMAGED
            before = name
            count += 1
            matching += name.startswith(names_begin)
        if count != transaction.stat(database.open_db())["entries"]:
            return StoreState.DAMAGED

    is_full = used_bytes(database) > FULL * bound
    return StoreState.FOREIGN if is_full and 2 * matching < count else StoreState.WHOLE


def _open(folder: Path, bound: int) -> Any:
    return lmdb.open(
        str(folder),
        map_size=bound,
        mode=0o600,
        # Nothing is flushed: after a crash of the machine the store is not used again.
        sync=False,
        metasync=False,
        meminit=False,
        max_readers=2048,
        # A reader that keeps its place takes no lock when it reads again.
        max_spare_txns=1,
    )
