"""Whether decoded pictures are kept, where, and how many bytes of them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import lmdb

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures import store
from domainbed_carft.pictures.store import Store

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Ours: at most this without --picture_cache, and a quarter of the memory; below the least, nothing.
MOST = 8 << 30
LEAST = 16 << 20

NETWORK = re.compile(
    r"(nfs\d?|lustre|gpfs|beegfs|ceph|cifs|smb\d?|smbfs|afs|9p|glusterfs|orangefs|panfs|wekafs|fuse\..*)"
)


def size(text: str) -> int:
    """Bytes: of "8G", "500M", "0". Raises CarftError for other text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise CarftError(
            f"--picture_cache is {text!r}, expected a size such as 8G or 500M, or 0 to keep nothing"
        )
    return int(float(found[1]) * UNITS[found[2].upper()])


def open_store(
    wanted: str | None, data: str = "", root: Path = Path("/")
) -> tuple[Store | None, str]:
    """The store of decoded pictures, or None; and a line for the log, which says why.

    Args:
        wanted: as ``--picture_cache`` has it; None keeps pictures unless under SLURM or with the
            temporary folder on a network's file system.
        data: the folder whose pictures are to be read; an old store of others may make room.
        root: where /proc and /sys are.

    Raises:
        CarftError: ``wanted`` is no size.
    """
    parent = Path(tempfile.gettempdir()) / f"domainbed-carft-{os.geteuid()}"
    kind = _file_system(parent.parent, root)
    if wanted is not None:
        bound, why = size(wanted), "as --picture_cache asks"
        if not bound:
            return _off("--picture_cache is 0")
    elif "SLURM_JOB_ID" in os.environ:
        return _off("under SLURM only if --picture_cache asks")
    elif NETWORK.fullmatch(kind):
        return _off(f"{parent.parent} is on a network ({kind}); only if --picture_cache asks")
    else:
        bound, why = min(machine.memory(root) // 4, MOST), "a quarter of the memory, at most 8G"
    try:
        room = (shutil.disk_usage(parent.parent).free + _used(parent)) // 2
        if room < bound:
            bound, why = room, "half of what is free there"
        if bound < LEAST:
            return _off(f"{_shown(bound)} is too little ({why})")
        opened = store.opened(
            parent, bound // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE"), data
        )
    except (CarftError, OSError, lmdb.Error) as error:
        return _off(str(error))
    return opened, f"decoded pictures are kept in {opened.folder}, at most {_shown(bound)} ({why})"


def _off(why: str) -> tuple[None, str]:
    return None, f"decoded pictures are not kept: {why}"


def _shown(count: int) -> str:
    return f"{count / UNITS['G']:.1f}G" if count >= UNITS["G"] else f"{count / UNITS['M']:.0f}M"


def _used(folder: Path) -> int:
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))


def _file_system(folder: Path, root: Path) -> str:
    """The type of the file system that a folder is on, "" if it cannot be told."""
    try:
        listed = (root / "proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    mounts = {}
    for line in listed.splitlines():
        _, point, kind, *_ = line.split(" ")
        spelled = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point)
        mounts[Path(spelled)] = kind  # a later one covers an earlier one
    resolved = folder.resolve()
    return next((mounts[at] for at in (resolved, *resolved.parents) if at in mounts), "")
