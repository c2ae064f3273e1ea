"""Decoded pictures, kept on a local disk for all processes of this user on this machine.

An LMDB environment that grows to its bound and then keeps what it has, so that pictures are read in
place. Nothing is flushed: its folder's name has the boot's id, and what an earlier boot left, maybe
half written, is removed unread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor

from domainbed_carft import machine
from domainbed_carft.errors import CarftError

# Ours: at most this without --picture_cache, and a quarter of the memory; below the least, nothing.
MOST, LEAST = 8 << 30, 16 << 20

NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\d?|smbfs|afs|9p|glusterfs|orangefs|panfs|wekafs|fuse\..*"
)

LAYOUT = 1  # of keys and values; another one is another store
LONGEST_PATH = 400  # of a key, which LMDB wants below 511 bytes: tells whose pictures they are
FULL = 0.95  # of the bound: a picture may be too large for the last pages
LARGEST_PAGE = 1 << 16  # on any machine; LMDB moves values that are smaller than a page

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
        self.folder, self.bound, self._keeps = folder, bound, True

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
    """The key of a file, with its size and time of change, and of ``what`` is kept of it."""
    status = os.stat(path)
    name = os.fsencode(os.path.abspath(path))
    told = name + f"\0{status.st_size} {status.st_mtime_ns} {what}".encode()
    return name[:LONGEST_PATH] + b"\0" + hashlib.blake2b(told, digest_size=16).digest()


def size(text: str) -> int:
    """Bytes: of "8G", "500M", "0". Raises CarftError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise CarftError(
            f"--picture_cache is {text!r}, expected a size such as 8G or 500M, or 0 to keep nothing"
        )
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def open_store(wanted: str | None, data: str = "") -> tuple[Store | None, str]:
    """The store of decoded pictures, or None; and a line for the log, which says why.

    ``wanted`` is as ``--picture_cache`` has it: None keeps pictures unless under SLURM or with the
    temporary folder on a network's file system. ``data`` is the folder whose pictures are to be
    read; a full store of others may make room. Raises CarftError if ``wanted`` is no size.
    """
    parent = Path(tempfile.gettempdir()) / f"domainbed-carft-{os.geteuid()}"
    bound, why = MOST if wanted is None else size(wanted), "as --picture_cache asks"
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
        used = sum(512 * path.lstat().st_blocks for path in parent.rglob("*"))
        if (room := (shutil.disk_usage(parent.parent).free + used) // 2) < bound:
            bound, why = room, "half of what is free there"
        if bound < LEAST:
            return _off(f"{_shown(bound)} is too little ({why})")
        found = _opened_below(parent, bound - bound % os.sysconf("SC_PAGE_SIZE"), data)
    except (CarftError, OSError, lmdb.Error) as error:
        return _off(str(error))
    return found, f"decoded pictures are kept in {found.folder}, at most {_shown(bound)} ({why})"


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


def _opened_below(parent: Path, bound: int, data: str) -> Store:
    """The store below ``parent``, which is made, readable by this user alone.

    If no other process has it open and it `_is_of_others`, it is begun anew. Raises CarftError
    where ``parent`` is not ours alone, OSError where it cannot be written, lmdb.Error.
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
    """Whether it is full, and half of its pictures or more are not below ``data``; or damaged."""
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
    alone = False
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
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
    unflushed: dict[str, Any] = {"sync": False, "metasync": False, "meminit": False}
    # A reader's place that is kept for the next transaction would be lost to a fork.
    readers: dict[str, Any] = {"max_readers": 2048, "max_spare_txns": 0}
    return lmdb.open(str(folder), map_size=bound, mode=0o600, **unflushed, **readers)


def _size(environment: Any) -> int:
    return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])
