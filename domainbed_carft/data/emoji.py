"""Where the embedded benchmark's pictures are: unpacked from the package on first use."""

from __future__ import annotations

import os
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from domainbed_carft import files
from domainbed_carft.errors import PassingError
from domainbed_carft.files import weights

ARCHIVE = "emoji_styles.zip"


def unpacked() -> Path:
    """The folder domain/class/picture.png, unpacked from the package on first use.

    Unpacked beside its place, then renamed, so that jobs that start at once never see half of it.
    Raises CarftError where the cache folder cannot be written.
    """
    with resources.as_file(resources.files("domainbed_carft") / "assets" / ARCHIVE) as archive:
        target = files.cache_folder() / "emoji_styles" / weights.sha256(archive)[:16]
        if target.is_dir():
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as beside:
                with zipfile.ZipFile(archive) as pictures:
                    pictures.extractall(Path(beside, "pictures"))
                os.rename(Path(beside, "pictures"), target)
        except OSError as error:
            if not target.is_dir():  # else another job was faster, and its copy is as good
                raise PassingError(
                    f"EmojiStyles cannot be unpacked to {target}: {error}; set "
                    "DOMAINBED_CARFT_CACHE to a writable folder on a disk with free space"
                ) from error
    return target
