"""Archives from the internet, unpacked without trusting them."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from domainbed_carft.errors import CarftError
from domainbed_carft.text import progress


class BadFile(CarftError):
    """A file of a data set, called ``name`` in its sources, is not what it should be."""

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"{path} {fault}; download the file again")
        self.name = Path(path).name
        self.fault = fault


def check(path: Path, is_archive: bool) -> None:
    """Raise BadFile for a file that is empty, a web page, or not the archive that it should be."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise BadFile(path, "is empty")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise BadFile(path, "is a web page, not the file")

    with contextlib.suppress(Exception):  # a dozen kinds, of archives that are damaged
        if not is_archive or zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            return
    raise BadFile(path, "is not a zip or tar archive, or is cut off")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into ``folder``, which is made, and deleted if that fails.

    Raises BadFile for any other or damaged file, CarftError for members outside ``folder``.
    """
    check(archive, is_archive=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _unpack(archive, folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CarftError | OSError) or not isinstance(error, Exception):
            raise
        if isinstance(error, getattr(tarfile, "FilterError", ())):  # a link to elsewhere
            raise _unsafe(archive, str(error)) from error
        raise BadFile(archive, f"is damaged or cut off ({error})") from error


def _unpack(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            for zip_member in _safe_members(archive, zip_file.infolist()):
                zip_file.extract(zip_member, folder)
        return

    if not hasattr(tarfile, "data_filter"):
        raise CarftError(
            "this Python cannot unpack tar archives safely; use 3.10.12, 3.11.4 or later"
        )
    with tarfile.open(archive) as tar_file:
        for tar_member in _safe_members(archive, tar_file.getmembers()):
            tar_file.extract(tar_member, folder, filter="data")


_Member = TypeVar("_Member", zipfile.ZipInfo, tarfile.TarInfo)


def _safe_members(archive: Path, members: Sequence[_Member]) -> Iterable[_Member]:
    """The members to unpack, with a progress bar. Raises CarftError if one leaves the folder."""
    for member in members:
        name = _name(member)
        # zipfile would drop the `..` and write elsewhere than the archive says.
        path = name.replace("\\", "/")
        if path.startswith("/") or ".." in path.split("/"):
            raise _unsafe(archive, f"{name!r} would be written outside the folder")

    selected = [member for member in members if not _is_macos_leftover(member)]
    return progress(selected, description=f"unpacking {archive.name}", unit="file", delay=1)


def _name(member: zipfile.ZipInfo | tarfile.TarInfo) -> str:
    return member.filename if isinstance(member, zipfile.ZipInfo) else member.name


def _is_macos_leftover(member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    """Whether a member has macOS's attributes of another file: in __MACOSX, or called ``._x``."""
    parts = Path(_name(member)).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))


def _unsafe(archive: Path, reason: str) -> CarftError:
    return CarftError(
        f"{archive} is not safe to unpack ({reason}); nothing was unpacked. Do not use this archive"
    )
