"""The embedded datasets, unpacked from the package at their first use.

EmojiStyles has the styles that `tiny` has seen in pre-training, and EmojiUnseen the styles that it
has not seen. EmojiShift has one of the seen styles: two thirds of its things for training and the
rest for testing, with the three other styles as shifted test sets.
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
    """Return the folder environment/class/image.png of an embedded dataset."""
    if name == UNSEEN:
        return style_folders(emoji_styles.NEVER_SEEN)
    return shift_folders() / "train" if name == SHIFT else style_folders()


def style_folders(label: str = emoji_styles.SEEN) -> Path:
    """Return the folder style/class/image.png of all styles with a label of `emoji_styles`."""
    if label == emoji_styles.SEEN:
        return _unpack_archive(ARCHIVE)
    return _unpack_archive(FURTHER_ARCHIVE) / emoji_styles.folder(label)


def _unpack_archive(name: str) -> Path:
    """Return the folder with the files of an archive of the package."""
    with resources.as_file(resources.files("domainbed_carft") / "assets" / name) as archive:

        def unpack(folder: Path) -> None:
            with zipfile.ZipFile(archive) as images:
                images.extractall(folder)

        return _fill_once(Path(archive.stem, weights.sha256(archive)[:16]), unpack)


def shift_folders() -> Path:
    """Return the folder of EmojiShift: train/noto/class/image.png and test/..., by a fixed draw."""
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

    return _fill_once(Path("emoji_shift", f"{styles.name}-{TRAINED_SHARE:.3f}"), divide)


def _fill_once(path: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder below the cache folder, and let ``fill`` create it if it is missing.

    Raises:
        TransientError: if the folder cannot be written.
    """
    target = files.cache_folder() / path
    if target.is_dir():
        return target

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Filled under another name, so that another job never sees a part of the files.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as temporary:
            fill(Path(temporary, "images"))
            os.rename(Path(temporary, "images"), target)
    except OSError as error:
        if not target.is_dir():  # otherwise another job was faster
            raise TransientError(
                f"the embedded images cannot be unpacked to {target}: {error}; set "
                f"{process_variables.CACHE.name} to a writable folder on a disk with free space"
            ) from error
    return target
