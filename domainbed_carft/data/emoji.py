"""Where the embedded benchmark's pictures are: unpacked from the package on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import PassingError

ARCHIVE = "emoji_styles.zip"


def unpacked() -> Path:
    """The folder domain/class/picture.png, unpacked from the package on first use.

    Unpacked beside its place, then renamed, so that jobs that start at once never see half of it.
    Raises CarftError where the cache folder cannot be written.
    """
    with resources.as_file(resources.files("domainbed_carft") / "assets" / ARCHIVE) as archive:
        stat = archive.stat()
        with zipfile.ZipFile(archive) as pictures:
            version = f"{_checksum(pictures):08x}-{stat.st_size}"
            target = files.cache_folder() / "emoji_styles" / version
            if not target.is_dir():
                _unpack(pictures, target)
    return target


def _checksum(pictures: zipfile.ZipFile) -> int:
    """Changes with any picture: a mix of the CRCs that the archive's directory already holds."""
    mixed = 0
    for info in pictures.infolist():
        mixed = (mixed * 31 + info.CRC) % 2**32
    return mixed


def _unpack(pictures: zipfile.ZipFile, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-")
    except OSError as error:
        raise PassingError(
            f"EmojiStyles is unpacked to {target}, which cannot be written ({error}); set "
            "DOMAINBED_CARFT_CACHE to a folder that can"
        ) from error
    try:
        pictures.extractall(temporary)
        os.rename(temporary, target)
    except OSError as error:
        if not target.is_dir():  # else another job was faster, and its copy is as good
            raise PassingError(f"EmojiStyles cannot be unpacked to {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
