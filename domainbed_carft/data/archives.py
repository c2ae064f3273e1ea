"""Archives from the internet, unpacked without trusting them."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from domainbed_carft.errors import CarftError
from domainbed_carft.text import size_of

# What the libraries raise for archives that are damaged, encrypted or packed in unknown ways.
DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    UnicodeError,
    RuntimeError,
    NotImplementedError,
)

# What a disk says of names that are too long, and of a file and a folder of one name.
OF_THE_NAMES = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY)


class BadFile(CarftError):
    """A file of a data set, called ``name`` in its sources, is not what it should be."""

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"{path} {fault}; fetch it again")
        self.name, self.fault = Path(path).name, fault


def check(path: Path, is_archive: bool) -> None:
    """Raise BadFile for a file that is empty, a web page, or no archive where it should be one.

    Only the file's beginning and end are read: an archive that passes may be damaged all the same.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise BadFile(path, "is empty")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise BadFile(path, "is a web page in place of the file")
    if is_archive and not (zipfile.is_zipfile(path) or _is_tar(path)):
        raise BadFile(path, "is neither a zip nor a tar archive, or is cut off")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar ``archive`` into ``folder``, which is made.

    All of it or nothing: it is unpacked beside ``folder`` first, and not begun where the disk has
    less room than the archive says it needs. Raises BadFile for a file that is neither or is
    damaged, CarftError for a member that would lie outside ``folder``, by its path or through a
    link, and for a disk that is full.
    """
    check(archive, is_archive=True)
    beside = folder.with_name(f"{folder.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir()
    except OSError as error:
        raise _not_unpacked(archive, folder, error) from error
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, beside)
        else:
            _unpack_tar(archive, beside)
        _move_all(beside, folder)
    except (*DAMAGES, OSError) as error:
        number = getattr(error, "errno", None)
        if number in OF_THE_NAMES:
            raise BadFile(archive, f"has names that no disk can hold ({error})") from error
        if number is not None:
            raise _not_unpacked(archive, folder, error) from error
        raise BadFile(archive, f"is damaged or cut off ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        # zipfile would drop the `..` and write elsewhere than the archive says.
        _require_inside(archive, (member.filename for member in members))
        _require_room(archive, folder, sum(member.file_size for member in members))
        for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file"):
            file.extract(member, folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise CarftError(
            "this Python cannot unpack tar archives safely; use 3.10.12, 3.11.4 or later of each"
        )
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _require_inside(archive, (member.name for member in members))
        _require_room(archive, folder, sum(member.size for member in members))
        try:
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file"):
                file.extract(member, folder, filter="data")  # which refuses links to elsewhere
        except tarfile.FilterError as error:
            raise _unsafe(archive, str(error)) from error


def _require_inside(archive: Path, names: Iterable[str]) -> None:
    for name in names:
        plain = name.replace("\\", "/")
        if plain.startswith("/") or ".." in plain.split("/"):
            raise _unsafe(archive, f"{name!r} would be written outside the folder")


def _require_room(archive: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CarftError(
            f"{archive} needs {size_of(size)} to unpack, but {folder.parent} has {size_of(free)} "
            "free; make room, and run the command again"
        )


def _move_all(source: Path, target: Path) -> None:
    """Into ``target``, where folders of the same name become one."""
    for path in source.iterdir():
        place = target / path.name
        if all(one.is_dir() and not one.is_symlink() for one in (path, place)):
            _move_all(path, place)
        else:
            os.replace(path, place)


def _is_tar(path: Path) -> bool:
    """Whether it begins as a tar archive does, packed or not."""
    try:
        return tarfile.is_tarfile(path)
    except DAMAGES:
        return False


def _unsafe(archive: Path, why: str) -> CarftError:
    return CarftError(
        f"{archive} is not safe to unpack ({why}); nothing was unpacked. Do not use this archive"
    )


def _not_unpacked(archive: Path, folder: Path, error: Exception) -> CarftError:
    return CarftError(
        f"{archive} cannot be unpacked to {folder}: {error}. Make room there, or see that the "
        "folder can be written to, and run the command again; the archive is kept"
    )
