"""Which folder the picture store is in, how large it may become, and when it is deleted.

The store is in the temporary folder. Nothing in it is flushed to the disk: its folder's name has
the boot's id, and stores of earlier boots, which may be half written, are deleted unread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

import lmdb

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures import handles, inspection
from domainbed_carft.pictures.inspection import StoreState
from domainbed_carft.pictures.store import LAYOUT, Store, key_prefix

LARGEST_DEFAULT = 8 << 30  # bytes; without --picture_cache also at most a quarter of the memory
SMALLEST = 16 << 20  # bytes; a smaller store is not worth its files

NETWORK = re.compile(
    r"nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\d?|smbfs|afs|9p|glusterfs|orangefs|panfs|wekafs|fuse\..*"
)

BLOCK = 512  # bytes, of st_blocks


class Limit(NamedTuple):
    """How large a store may become, and why."""

    size: int  # bytes
    reason: str


class _NoStore(Exception):
    """Decoded pictures are not cached; the message says why."""


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


def open_store(requested_size: str | None, data: str = "") -> tuple[Store | None, str]:
    """The store of decoded pictures, or None; and a line for the log, which says why.

    ``requested_size`` is the value of ``--picture_cache``. None means the default: a store unless
    under SLURM, or if the temporary folder is on a network's file system. ``data`` is the folder
    whose pictures will be read; a full store of other pictures may make room for them. Raises
    CarftError if ``requested_size`` is no size.
    """
    requested = None if requested_size is None else parse_size(requested_size)
    parent = Path(tempfile.gettempdir()) / f"domainbed-carft-{os.geteuid()}"
    try:
        limit = _requested_limit(requested, parent.parent)
        _make_private(parent)
        limit = _affordable_limit(limit, parent)
        page_size = os.sysconf("SC_PAGE_SIZE")
        store, note = _open_below(parent, limit.size - limit.size % page_size, data)
    except BlockingIOError:
        return None, _refusal(f"another process, which may be stopped, has {parent} locked")
    except (_NoStore, CarftError, OSError, lmdb.Error) as error:
        return None, _refusal(str(error))

    size = _readable_size(limit.size)
    return store, (
        f"decoded pictures are kept in {store.folder}, at most {size} ({limit.reason}){note}"
    )


def _requested_limit(requested: int | None, temporary: Path) -> Limit:
    """The limit by --picture_cache, in bytes, or by default. Raises _NoStore, OSError."""
    if requested == 0:
        raise _NoStore("--picture_cache is 0")
    if requested is not None:
        return Limit(requested, "as --picture_cache asks")

    if "SLURM_JOB_ID" in os.environ:
        raise _NoStore("under SLURM only if --picture_cache asks")
    kind = _file_system(temporary)
    if NETWORK.fullmatch(kind):
        raise _NoStore(f"{temporary} is on a network ({kind}); only if --picture_cache asks")
    size = min(machine.memory() // 4, LARGEST_DEFAULT)
    return Limit(size, "a quarter of the memory, at most 8G")


def _affordable_limit(limit: Limit, parent: Path) -> Limit:
    """The limit, or half of the space that stores may take. Raises _NoStore if that is little."""
    used = sum(BLOCK * path.lstat().st_blocks for path in parent.rglob("*"))
    available = (shutil.disk_usage(parent).free + used) // 2
    if available < limit.size:
        limit = Limit(available, "half of what is free there")
    if limit.size < SMALLEST:
        raise _NoStore(f"{_readable_size(limit.size)} is too little ({limit.reason})")
    return limit


def _refusal(reason: str) -> str:
    return f"decoded pictures are not kept: {reason}"


def _readable_size(size: int) -> str:
    return f"{size / 2**30:.1f}G" if size >= 2**30 else f"{size / 2**20:.0f}M"


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, "" if the system does not say."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0]
    return ""


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can read. Raises CarftError if anything else is there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise CarftError(
            f"{folder} is not a folder of this user alone; expected one with mode 700; remove it"
        )


def _open_below(parent: Path, bound: int, data: str) -> tuple[Store, str]:
    """The store of ``bound`` bytes below ``parent``, and what to add to the line about it.

    If no other process uses one, stores of earlier boots are deleted, as is a store that is damaged
    or full of other pictures. Raises CarftError if it is damaged and in use, OSError, lmdb.Error.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    folder = parent / f"pictures-{LAYOUT}-{boot}"
    note = ""
    with handles.registered(parent) as is_alone:
        if is_alone:
            _delete_other_stores(parent, folder)
        if folder.exists() and not handles.is_open(folder):
            note = _delete_if_unusable(folder, bound, key_prefix(data), is_alone)

        folder.mkdir(mode=0o700, exist_ok=True)
        if not handles.is_open(folder):
            # Raises now if it cannot be opened. The processes that load pictures open it later.
            handles.handle(folder, bound)
            handles.close(folder)
    return Store(folder, bound), note


def _delete_other_stores(parent: Path, folder: Path) -> None:
    """Delete all folders in ``parent`` but ``folder``: stores of earlier boots and layouts."""
    for path in set(parent.iterdir()) - {folder}:
        if path.is_dir():
            shutil.rmtree(path)


def _delete_if_unusable(folder: Path, bound: int, prefix: bytes, is_alone: bool) -> str:
    """Delete a store that is damaged or full of others' pictures; returns a note for the log.

    ``prefix`` is how the keys of our pictures begin. A store that others use stays: CarftError if
    it is damaged.
    """
    state = inspection.inspect(folder, bound, prefix)
    if state is StoreState.DAMAGED and not is_alone:
        raise CarftError(
            f"{folder} is damaged and in use; the first job that starts once no other runs "
            "deletes it"
        )
    if state is not StoreState.WHOLE and is_alone:
        shutil.rmtree(folder)
    return "; a damaged store was deleted" if state is StoreState.DAMAGED else ""
