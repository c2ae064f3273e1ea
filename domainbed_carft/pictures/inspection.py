"""Whether a picture store that is found on the disk can be used.

LMDB trusts its pages, and a wrong one may end the process that follows it. So a process of its own
looks for damage.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import lmdb

from domainbed_carft.pictures import handles

INSPECTION_S = 60.0  # for walking through all keys of a store, on a slow disk
FULL_SHARE = 0.95  # of the bound: a picture may be too large for the last pages

# What LMDB raises for pages that it did not write.
DAMAGE_ERRORS = (
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)


class StoreState(enum.Enum):
    """What an inspection finds a store to be."""

    WHOLE = enum.auto()
    DAMAGED = enum.auto()
    FOREIGN = enum.auto()  # full, and more than half of its pictures are of other data


def inspect(folder: Path, bound: int, prefix: bytes) -> StoreState:
    """Walk through all keys of the store in ``folder``, which this process does not have open.

    ``prefix`` is how the keys of the caller's own pictures begin. Raises OSError if the store
    cannot be opened, or inspected in time.
    """
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    inspector = fork.Process(target=_send_state, args=(sending, folder, bound, prefix))
    inspector.daemon = True
    inspector.start()
    sending.close()

    try:
        if not receiving.poll(INSPECTION_S):
            raise TimeoutError(f"{folder} could not be checked within {INSPECTION_S:.0f} s")
        state = receiving.recv()
    except EOFError:
        return StoreState.DAMAGED
    finally:
        inspector.kill()
        inspector.join()
        receiving.close()

    if isinstance(state, Exception):
        raise state
    return StoreState(state)


def _send_state(sending: Connection, folder: Path, bound: int, prefix: bytes) -> None:
    """Send the store's state, or an OSError; if neither comes, the store has ended this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sending.send(_inspected_state(folder, bound, prefix))
    except OSError as error:
        sending.send(error)
    except DAMAGE_ERRORS:
        sending.send(StoreState.DAMAGED)
    except lmdb.Error as error:
        sending.send(OSError(str(error)))


def _inspected_state(folder: Path, bound: int, prefix: bytes) -> StoreState:
    database = handles.handle(folder, bound).database
    with database.begin() as transaction:
        # Pages that are missing would end this process.
        if handles.used_bytes(database) > os.stat(folder / "data.mdb").st_size:
            return StoreState.DAMAGED

        count = 0
        matching = 0
        previous_key = b""
        for key in transaction.cursor().iternext(keys=True, values=False):
            if key <= previous_key:
                return StoreState.DAMAGED
            previous_key = key
            count += 1
            matching += key.startswith(prefix)

        if count != transaction.stat(database.open_db())["entries"]:
            return StoreState.DAMAGED

    is_full = handles.used_bytes(database) > FULL_SHARE * bound
    return StoreState.FOREIGN if is_full and 2 * matching < count else StoreState.WHOLE
