"""Where the embedded images are: unpacked from the package on first use, divided for EmojiShift.

EmojiStyles has the styles that `tiny` has seen in pre-training, EmojiUnseen those that it has not.
EmojiShift has one style, two thirds of its things to train on, the others to test on, and the three
other styles as shifted test sets.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from domainbed_carft import files, process_variables
from domainbed_carft.data import emoji_styles
from domainbed_carft.errors import TransientError
from domainbed_carft.files import weights

ARCHIVE = "emoji_styles.zip"
FURTHER_ARCHIVE = "emoji_further_styles.zip"
UNSEEN = "EmojiUnseen"
SHIFT = "EmojiShift"
TRAINED_STYLE = "noto"
TRAINED_SHARE = 2 / 3  # of the things of each class; chosen after looking at test results


def environment_folder(name: str) -> Path:
    """The folder environment/class/image.png of the embedded dataset ``name``."""
    if name == UNSEEN:
        return style_folders(emoji_styles.NEVER_SEEN)
    return shift_folders() / "train" if name == SHIFT else style_folders()


def style_folders(label: str = emoji_styles.SEEN) -> Path:
    """The folder style/class/image.png of all styles with this label of `emoji_styles`.

    Raises CarftError without a cache folder to write to.
    """
    if label == emoji_styles.SEEN:
        return _unpacked_archive(ARCHIVE)
    return _unpacked_archive(FURTHER_ARCHIVE) / emoji_styles.folder(label)


def _unpacked_archive(name: str) -> Path:
    """The folder with the files of one of the package's archives."""
    with resources.as_file(resources.files("domainbed_carft") / "assets" / name) as archive:

        def unpack(folder: Path) -> None:
            with zipfile.ZipFile(archive) as images:
                images.extractall(folder)

        return _cached_folder(Path(archive.stem, weights.sha256(archive)[:16]), unpack)


def shift_folders() -> Path:
    """The folders train/noto/class/image.png and test/... of EmojiShift, by a fixed draw."""
    styles = style_folders()

    def divide(folder: Path) -> None:
        generator = np.random.RandomState(0)
        for class_folder in sorted((styles / TRAINED_STYLE).iterdir()):
            images = sorted(class_folder.iterdir())
            order = generator.permutation(len(images)).tolist()
            for rank, position in enumerate(order):
                side = "train" if rank < TRAINED_SHARE * len(order) else "test"
                target = folder / side / TRAINED_STYLE / class_folder.name
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(images[position], target)

    return _cached_folder(Path("emoji_shift", f"{styles.name}-{TRAINED_SHARE:.3f}"), divide)


def _cached_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """The folder at ``path`` below the cache folder; ``fill`` makes it if it is not there.

    It is filled under another name and then renamed, so that no job sees half of it. Raises
    TransientError if it cannot be written.
    """
    target = files.cache_folder() / path
    if target.is_dir():
        return target

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as temporary:
            fill(Path(temporary, "images"))
            os.rename(Path(temporary, "images"), target)
    except OSError as error:
        if not target.is_dir():  # else another job was faster, and its copy is as good
            raise TransientError(
                f"the embedded images cannot be unpacked to {target}: {error}; set "
                f"{process_variables.CACHE.name} to a writable folder on a disk with free space"
            ) from error
    return target
