"""Archives from the internet, unpacked without trusting them."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.text import progress


class BadFile(CarftError):
    """A file of a data set, called ``name`` in its sources, is not what it should be."""

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"{path} {fault}; download the file again")
        self.name, self.fault = Path(path).name, fault


def check(path: Path, is_archive: bool) -> None:
    """Raise BadFile where a file's ends show nothing, a web page, or not the archive wanted."""
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
    is_zip = zipfile.is_zipfile(archive)
    if not (is_zip or hasattr(tarfile, "data_filter")):
        raise CarftError(
            "this Python cannot unpack tar archives safely; use 3.10.12, 3.11.4 or later"
        )
    packed: Any
    with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as packed:
        members = packed.infolist() if is_zip else packed.getmembers()
        for member in members:
            name = member.filename if is_zip else member.name
            plain = name.replace("\\", "/")
            # zipfile would drop the `..` and write elsewhere than the archive says.
            if plain.startswith("/") or ".." in plain.split("/"):
                raise _unsafe(archive, f"{name!r} would be written outside the folder")
        members = [member for member in members if not _is_macos_leftover(member)]
        about = f"unpacking {archive.name}"
        for member in progress(members, description=about, unit="file", delay=1):
            packed.extract(member, folder, **({} if is_zip else {"filter": "data"}))


def _is_macos_leftover(member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    """Whether a member holds macOS's own attributes of another: in __MACOSX, or called ``._x``."""
    name = member.filename if isinstance(member, zipfile.ZipInfo) else member.name
    parts = Path(name).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1].startswith("._"))


def _unsafe(archive: Path, why: str) -> CarftError:
    return CarftError(
        f"{archive} is not safe to unpack ({why}); nothing was unpacked. Do not use this archive"
    )
