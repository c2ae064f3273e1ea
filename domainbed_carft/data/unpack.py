"""Archives from the internet, unpacked without trusting them."""

from __future__ import annotations

import lzma
import os
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
    RuntimeError,
    NotImplementedError,
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar ``archive`` into ``folder``, which is made.

    Raises CarftError for a file that is neither or is cut off, and, before anything is written, for
    a member that would lie outside ``folder``, by its path or through a link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            raise CarftError(
                f"{archive} is neither a zip nor a tar archive; it is damaged, or a web page in "
                "place of the file. Delete it and fetch it again"
            )
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise CarftError(f"{archive} cannot be unpacked to {folder}: {error}") from error
        raise CarftError(
            f"{archive} is damaged or cut off ({error}); delete it and fetch it again"
        ) from error


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
            file.extract(member, folder, filter="data")


def _refuse_outsiders(archive: Path, folder: Path, names: Iterable[str]) -> None:
    root = os.path.realpath(folder)
    for name in names:
        place = os.path.normpath(os.path.join(root, name.replace("\\", "/")))
        if place != root and not place.startswith(root + os.sep):
            raise CarftError(
                f"{archive} has a member {name!r}, which would be written outside {folder}; "
                "nothing was unpacked. Do not use this archive"
            )


def _refuse_by_the_filter(archive: Path, member: tarfile.TarInfo, folder: Path) -> None:
    """Links that lead outside, devices, and whatever else Python's own filter refuses."""
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError as error:
        raise CarftError(
            f"{archive} has a member {member.name!r} that is not safe to unpack ({error}); nothing "
            "was unpacked. Do not use this archive"
        ) from error


def _progress(members: list, archive: Path) -> Iterable:  # type: ignore[type-arg]
    return tqdm(members, desc=f"unpacking {archive.name}", unit="file", mininterval=1)
