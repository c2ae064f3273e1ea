"""Decoded pictures, kept on a local disk for all processes of this user on this machine.

An LMDB environment that grows to its bound and then keeps what it has. Nothing in it is changed or
deleted, so that pictures are read in place. Nothing is flushed: its folder's name has the boot's
id, and what an earlier boot left, maybe half written, is removed unread.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
import xxhash
from torch import Tensor

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures import handles
from domainbed_carft.pictures.handles import StoreState

# Ours: at most this without --picture_cache, and a quarter of the memory; below the least, nothing.
MOST, LEAST = 8 << 30, 16 << 20

NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\d?|smbfs|afs|9p|glusterfs|orangefs|panfs|wekafs|fuse\..*"
)

LAYOUT = 2  # of keys and values; another one is another store
LONGEST_PATH = 400  # of a key, which LMDB wants below 511 bytes: tells whose pictures they are
LARGEST_PAGE = 1 << 16  # on any machine; LMDB moves values that are smaller than a page

# A value: the checksum of the rest and of the key, the shape, and the pixels.
CHECKSUM = slice(0, 8)
SHAPE = slice(8, 20)
HEADER_SIZE = 24

# A damaged value stays where it is, and the right one is kept in the next of so many places.
PLACES = (b"\0", b"\1", b"\2")

FIRST_PAUSE_S = 60.0  # after a wait in vain for another process; each is twice as long as the last


class Store:
    """Pictures (H, W, 3), uint8, by keys that `picture_key` makes.

    Each process opens it when it first asks, so it may be pickled, and used after a fork. All that
    fails only ends the keeping: pictures can be had without it.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder
        self.bound = bound
        self._keeps = True
        self._pause_s = FIRST_PAUSE_S
        self._paused_until = 0.0

    def get(self, key: bytes) -> Tensor | None:
        """The picture as it was put, None if it is not kept or what is kept of it is damaged.

        It is in the store's own memory: do not write to it.
        """
        if not handles.is_open(self.folder) and self._is_paused():
            return None
        try:
            with handles.reading(self.folder, self.bound) as transaction:
                return _find(transaction, key)[0]
        except BlockingIOError:
            self._pause()
        except (lmdb.Error, OSError):
            pass
        return None

    def put(self, key: bytes, picture: Tensor) -> None:
        """Keep the picture, if there is room; one that is kept already stays.

        A process that is stopped while it writes costs the others a few seconds: they do without.
        """
        if not self._keeps or self._is_paused():
            return
        value = _packed(key, picture)
        try:
            with handles.writing(self.folder, self.bound) as transaction:
                kept, place = _find(transaction, key)
                if kept is None and place:
                    transaction.put(key + place, value, overwrite=False)
        except BlockingIOError:
            self._pause()
        except (lmdb.Error, OSError):  # the store is full, or the disk
            self._keeps = False

    def size(self) -> int:
        """Bytes on the disk."""
        return handles.used_bytes(handles.handle(self.folder, self.bound).database)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + self._pause_s
        self._pause_s *= 2


def picture_key(path: str, what: str) -> bytes:
    """The key of ``what`` is kept of a file: its path, and a digest of all that identifies it."""
    status = os.stat(path)
    folder, _, name = path.rpartition("/")
    absolute, real = _spellings(f"{folder}/" if path.startswith("/") else folder)
    facts = (
        f"{real}/{name}\0{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} "
        f"{status.st_ctime_ns} {what}"
    )
    digest = hashlib.blake2b(os.fsencode(facts), digest_size=16).digest()
    return os.fsencode(f"{absolute}/{name}")[:LONGEST_PATH] + b"\0" + digest


@functools.lru_cache(maxsize=1 << 16)
def _spellings(folder: str) -> tuple[str, str]:
    """A folder's path from the root, and the same without links.

    A link that is switched later leads to files of other inodes.
    """
    return os.path.abspath(folder).rstrip("/"), os.path.realpath(folder).rstrip("/")


def _find(transaction: Any, key: bytes) -> tuple[Tensor | None, bytes]:
    """The picture of a key, or None and the place where it can be put, which is b"" for none."""
    for place in PLACES:
        value = transaction.get(key + place)
        if value is None:
            return None, place
        if (picture := _unpacked(key, value)) is not None:
            return picture, place
    return None, b""


def _packed(key: bytes, picture: Tensor) -> np.ndarray:
    value = np.zeros(HEADER_SIZE + picture.numel(), dtype=np.uint8)
    value[SHAPE].view(np.uint32)[:] = picture.shape
    value[HEADER_SIZE:].reshape(picture.shape)[:] = picture.numpy()
    value[CHECKSUM].view(np.uint64)[0] = checksum(key, value[CHECKSUM.stop :])
    return value


def _unpacked(key: bytes, value: Any) -> Tensor | None:
    """The picture of a value, None if it is not what `_packed` has made for this key."""
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
    """64 bits of a key and its content, at about the speed of memory."""
    return xxhash.xxh3_64_intdigest(content.data, seed=xxhash.xxh3_64_intdigest(key))


def parse_size(text: str) -> int:
    """Bytes: of "8G", "500M", "0". Raises CarftError for other text."""
    parts = re.fullmatch(
        r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not parts:
        raise CarftError(
            f"--picture_cache is {text!r}, expected a size such as 8G or 500M, or 0 to keep nothing"
        )
    return int(float(parts[1]) * 1024 ** " KMGT".index(parts[2].upper() or " "))


def open_store(wanted: str | None, data: str = "") -> tuple[Store | None, str]:
    """The store of decoded pictures, or None; and a line for the log, which says why.

    ``wanted`` is as ``--picture_cache`` has it: None keeps pictures unless under SLURM or with the
    temporary folder on a network's file system. ``data`` is the folder whose pictures are to be
    read; a full store of others may make room. Raises CarftError if ``wanted`` is no size.
    """
    parent = Path(tempfile.gettempdir()) / f"domainbed-carft-{os.geteuid()}"
    bound, why = MOST if wanted is None else parse_size(wanted), "as --picture_cache asks"
    if not bound:
        return _off("--picture_cache is 0")
    if wanted is None and "SLURM_JOB_ID" in os.environ:
        return _off("under SLURM only if --picture_cache asks")
    try:
        if wanted is None:
            if NETWORK.fullmatch(kind := _file_system(parent.parent)):
                where = f"{parent.parent} is on a network ({kind})"
                return _off(f"{where}; only if --picture_cache asks")
            bound, why = min(machine.memory() // 4, MOST), "a quarter of the memory, at most 8G"
        _make_private(parent)
        used = sum(512 * path.lstat().st_blocks for path in parent.rglob("*"))
        if (room := (shutil.disk_usage(parent).free + used) // 2) < bound:
            bound, why = room, "half of what is free there"
        if bound < LEAST:
            return _off(f"{_shown(bound)} is too little ({why})")
        store, note = _open_below(parent, bound - bound % os.sysconf("SC_PAGE_SIZE"), data)
    except BlockingIOError:
        return _off(f"another process, which may be stopped, has {parent} locked")
    except (CarftError, OSError, lmdb.Error) as error:
        return _off(str(error))
    line = f"decoded pictures are kept in {store.folder}, at most {_shown(bound)} ({why})"
    return store, line + note


def _off(why: str) -> tuple[None, str]:
    return None, f"decoded pictures are not kept: {why}"


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f}G" if count >= 2**30 else f"{count / 2**20:.0f}M"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, "" if it cannot be told."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0]
    return ""


def _make_private(folder: Path) -> None:
    """Make a folder that this user alone can read. Raises CarftError if another thing is there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise CarftError(
            f"{folder} is not a folder of this user alone; expected one with mode 700; remove it"
        )


def _open_below(parent: Path, bound: int, data: str) -> tuple[Store, str]:
    """The store below ``parent``, and what to add to the line about it.

    If no other process uses one, stores of earlier boots are deleted, as is a store that is damaged
    or full of other pictures. Raises CarftError if it is damaged and in use, OSError, lmdb.Error.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    folder = parent / f"pictures-{LAYOUT}-{boot}"
    names_begin = os.fsencode(os.path.join(os.path.abspath(data), ""))[:LONGEST_PATH]
    note = ""
    with handles.registered(parent) as is_alone:
        for other in set(parent.iterdir()) - {folder} if is_alone else ():
            if other.is_dir():
                shutil.rmtree(other)

        if folder.exists() and not handles.is_open(folder):
            verdict = handles.inspect(folder, bound, names_begin)
            if verdict is StoreState.DAMAGED and not is_alone:
                raise CarftError(
                    f"{folder} is damaged and in use; the first job that starts once no other runs "
                    "deletes it"
                )
            if verdict is StoreState.DAMAGED:
                note = "; a damaged store was deleted"
            if verdict is not StoreState.WHOLE and is_alone:
                shutil.rmtree(folder)

        folder.mkdir(mode=0o700, exist_ok=True)
        if not handles.is_open(folder):
            # Raises what is wrong with it now. The processes that load pictures open it themselves.
            handles.handle(folder, bound)
            handles.close(folder)
    return Store(folder, bound), note
