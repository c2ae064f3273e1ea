"""Archives from the internet, unpacked without trusting them."""

from __future__ import annotations

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


class BadFile(CarftError):
    """A file of a data set, called ``name`` in its sources, is not what it should be."""

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(f"{path} {fault}; it has to be fetched again")
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
    if is_archive and not (zipfile.is_zipfile(path) or is_tar(path)):
        raise BadFile(path, "is neither a zip nor a tar archive, or is cut off")


def is_tar(path: Path) -> bool:
    """Whether it begins as a tar archive does, packed or not."""
    try:
        return tarfile.is_tarfile(path)
    except DAMAGES:
        return False


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar ``archive`` into ``folder``, which is made.

    All of it or nothing: it is unpacked beside ``folder`` first. Raises ``BadFile`` for a
    file that is neither or is cut off, CarftError for a member that would lie outside ``folder``,
    by its path or through a link, and for a disk that is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}.partial")
    try:
        check(archive, is_archive=True)
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
        beside.mkdir()
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, beside)
        else:
            _unpack_tar(archive, beside)
        _move_all(beside, folder)
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise CarftError(
                f"{archive} cannot be unpacked to {folder}: {error}. The archive is kept; make "
                "room there, or see that the folder can be written to, and run the command again"
            ) from error
        raise BadFile(archive, f"is damaged or cut off ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move_all(source: Path, target: Path) -> None:
    """Into ``target``, where folders of the same name become one."""
    for path in source.iterdir():
        place = target / path.name
        if all(one.is_dir() and not one.is_symlink() for one in (path, place)):
            _move_all(path, place)
        else:
            os.replace(path, place)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        # zipfile would drop the `..` and write elsewhere than the archive says.
        _refuse_outsiders(archive, folder, (member.filename for member in members))
        for member in _progress(members, archive):
            file.extract(member, folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise CarftError(
            "this Python cannot unpack tar archives safely; use 3.10.12, 3.11.4 or later of each"
        )
    with tarfile.open(archive) as file:
        members = file.getmembers()
        _refuse_outsiders(archive, folder, (member.name for member in members))
        for member in members:
            _refuse_by_the_filter(archive, member, folder)
        for member in _progress(members, archive):
            try:
                file.extract(member, folder, filter="data")
            except tarfile.FilterError as error:  # a link that leads outside through another link
                raise _unsafe(archive, member, error) from error


def _refuse_outsiders(archive: Path, folder: Path, names: Iterable[str]) -> None:
    root = os.path.realpath(folder)
    for name in names:
        place = os.path.normpath(os.path.join(root, name.replace("\\", "/")))
        if place != root and not place.startswith(root + os.sep):
            raise CarftError(
                f"{archive} has a member {name!r}, which would be written outside the folder that "
                "it is unpacked to; nothing was unpacked. Do not use this archive"
            )


def _refuse_by_the_filter(archive: Path, member: tarfile.TarInfo, folder: Path) -> None:
    """Links that lead outside, devices, and whatever else Python's own filter refuses."""
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise _unsafe(archive, member, error) from error


def _unsafe(archive: Path, member: tarfile.TarInfo, error: Exception) -> CarftError:
    return CarftError(
        f"{archive} has a member {member.name!r} that is not safe to unpack ({error}); nothing "
        "was unpacked. Do not use this archive"
    )


def _progress(members: list, archive: Path) -> Iterable:  # type: ignore[type-arg]
    return tqdm(members, desc=f"unpacking {archive.name}", unit="file", mininterval=1)
