"""Safe unpacking of untrusted archives."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from domainbed_carft.errors import CarftError
from domainbed_carft.progress_bar import progress

# Errors of names that are too long, or used for both a file and a folder.
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)

_OUTSIDE = "would be written outside the folder"
_ENCRYPTED = 1  # bit of a zip member's flags
_MAX_NAME_LENGTH = 100  # characters of a member's name in a message
_COPY_SIZE = 1 << 20  # bytes


class BadFile(CarftError):
    """A dataset's file is empty, damaged, or not the expected file.

    Attributes:
        name: name of the file in the dataset's sources.
        fault: end of a sentence whose subject is the file.
    """

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"{path} {fault}; download the file again")
        self.name = Path(path).name
        self.fault = fault


def check(path: Path, is_archive: bool) -> None:
    """Raise BadFile for a file that is empty, a web page, or not an archive if it should be one."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise BadFile(path, "is empty")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise BadFile(path, "is a web page, not the file")

    with contextlib.suppress(Exception):  # a dozen types, for damaged archives
        if not is_archive or zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            return
    raise BadFile(path, "is not a zip or tar archive, or is cut off")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a new folder, which is deleted if that fails.

    Raises:
        BadFile: if the file is damaged or not an archive.
        CarftError: if a member is encrypted, is neither a regular file nor a folder, or would be
            written outside the folder.
    """
    check(archive, is_archive=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _unpack(archive, folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CarftError) or not isinstance(error, Exception):
            raise
        number = getattr(error, "errno", None)  # gzip and bz2 raise an OSError without one
        if number in _NAME_ERRORS:
            raise _unpacking_error(archive, str(error)) from error
        if number is not None:
            raise
        raise BadFile(archive, f"is damaged or cut off ({error})") from error


def _unpack(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            for zip_member, path in _safe_members(archive, zip_file.infolist(), folder):
                _write(path, None if zip_member.is_dir() else zip_file.open(zip_member))
        return

    with tarfile.open(archive) as tar_file:
        for tar_member, path in _safe_members(archive, tar_file.getmembers(), folder):
            _write(path, tar_file.extractfile(tar_member))  # None for a folder


def _write(path: Path, content: IO[bytes] | None) -> None:
    """Create a file with this content, or a folder without one."""
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file, _COPY_SIZE)


_Member = TypeVar("_Member", zipfile.ZipInfo, tarfile.TarInfo)


def _safe_members(
    archive: Path, members: Sequence[_Member], folder: Path
) -> Iterator[tuple[_Member, Path]]:
    """Yield the members to unpack and their paths in ``folder``, with a progress bar.

    Raises:
        CarftError: for the first unsafe member, before anything is unpacked.
    """
    for member in members:
        if fault := _fault(member):
            raise _unpacking_error(
                archive, f"the member {_name(member)[:_MAX_NAME_LENGTH]!r} {fault}"
            )

    root = os.path.realpath(folder)
    selected = [member for member in members if not _is_macos_metadata(member)]
    for member in progress(selected, description=f"unpacking {archive.name}", unit="file", delay=1):
        path = folder / _name(member)
        # No member is a link, but the folder can contain links from before.
        if os.path.commonpath([root, os.path.realpath(path)]) != root:
            raise _unpacking_error(archive, f"the member {_name(member)!r} {_OUTSIDE}")
        yield member, path


def _fault(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    """Return the fault of a member as the end of a sentence, or "" if it is safe to unpack."""
    path = _name(member).replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/"):
        return _OUTSIDE
    if isinstance(member, tarfile.TarInfo):
        is_supported = member.isfile() or member.isdir()
    else:
        if member.flag_bits & _ENCRYPTED:
            return "is encrypted"
        # The Unix mode; a member without one is a regular file or a folder.
        is_supported = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
    return "" if is_supported else "is neither a regular file nor a folder"


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name


def _is_macos_metadata(member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    """Return True for macOS's attributes of another file: in __MACOSX, or named ``._x``."""
    parts = Path(_name(member)).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))


def _unpacking_error(archive: Path, reason: str) -> CarftError:
    quoted = shlex.quote(str(archive))
    return CarftError(
        f"{archive} cannot be unpacked: {reason}. Nothing was unpacked. If you trust the archive, "
        "unpack it by hand into a new folder NEW, and replace it with one of regular files: "
        f"tar -chf {quoted} --hard-dereference -C NEW ."
    )
