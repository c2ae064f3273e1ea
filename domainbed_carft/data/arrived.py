"""What was fetched, or put there by hand: is it a file of the kind that it should be?"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

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
