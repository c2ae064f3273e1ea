"""Where the embedded pictures are: unpacked from the package on first use, divided for EmojiShift.

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

from domainbed_carft import files
from domainbed_carft.data import emoji_styles
from domainbed_carft.errors import PassingError
from domainbed_carft.files import weights

ARCHIVE = "emoji_styles.zip"
FURTHER_ARCHIVE = "emoji_further_styles.zip"
UNSEEN = "EmojiUnseen"
SHIFT = "EmojiShift"
TRAINED_STYLE = "noto"
TRAINED_SHARE = 2 / 3  # of the things of each class; chosen by test results, see docs/measured.md


def environments(name: str) -> Path:
    """The folder environment/class/picture.png of the embedded data set ``name``."""
    if name == UNSEEN:
        return styles_folder(emoji_styles.NEVER_SEEN)
    return shift() / "train" if name == SHIFT else unpacked()


def styles_folder(label: str) -> Path:
    """The folder style/class/picture.png of all styles with this label of `emoji_styles`."""
    if label == emoji_styles.SEEN:
        return unpacked()
    return unpacked(FURTHER_ARCHIVE) / emoji_styles.folder(label)


def unpacked(name: str = ARCHIVE) -> Path:
    """The folder style/class/picture.png; of FURTHER_ARCHIVE label/style/class/picture.png.

    Raises CarftError without a cache folder to write to.
    """
    with resources.as_file(resources.files("domainbed_carft") / "assets" / name) as archive:

        def unpack(folder: Path) -> None:
            with zipfile.ZipFile(archive) as pictures:
                pictures.extractall(folder)

        return _made(Path(archive.stem, weights.sha256(archive)[:16]), unpack)


def shift() -> Path:
    """The folders train/noto/class/picture.png and test/... of EmojiShift, by a fixed draw."""
    styles = unpacked()

    def divide(folder: Path) -> None:
        generator = np.random.RandomState(0)
        for of_class in sorted((styles / TRAINED_STYLE).iterdir()):
            pictures = sorted(of_class.iterdir())
            order = generator.permutation(len(pictures)).tolist()
            for rank, place in enumerate(order):
                side = "train" if rank < TRAINED_SHARE * len(order) else "test"
                target = folder / side / TRAINED_STYLE / of_class.name
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(pictures[place], target)

    return _made(Path("emoji_shift", f"{styles.name}-{TRAINED_SHARE:.3f}"), divide)


def _made(place: Path, fill: Callable[[Path], None]) -> Path:
    """A folder in the cache; filled beside it and renamed, so that no job sees half of it."""
    target = files.cache_folder() / place
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as beside:
            fill(Path(beside, "pictures"))
            os.rename(Path(beside, "pictures"), target)
    except OSError as error:
        if not target.is_dir():  # else another job was faster, and its copy is as good
            raise PassingError(
                f"the embedded pictures cannot be unpacked to {target}: {error}; set "
                "DOMAINBED_CARFT_CACHE to a writable folder on a disk with free space"
            ) from error
    return target
