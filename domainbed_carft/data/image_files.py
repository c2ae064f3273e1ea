"""Files of images: opening them safely, and finding those that cannot be decoded."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed_carft import files, machine
from domainbed_carft.errors import TransientError
from domainbed_carft.text import progress

if TYPE_CHECKING:
    from PIL import Image

# Whatever a file is called, Pillow tries no others: PostScript would be given to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def open_image(path: str | Path) -> Image.Image:
    """The image of a file in RGB; as torchvision's loader, but only of the ``FORMATS``.

    Raises OSError if it is no regular file, or cut off before anything of the image, and what
    Pillow raises.
    """
    from PIL import Image

    with files.open_regular(path) as file:
        image = Image.open(file, formats=FORMATS).convert("RGB")

        # It is of one colour, or nothing of it is left and Pillow has filled it up.
        if image.getcolors(maxcolors=1):
            file.seek(0)
            with refuse_truncated_files():
                Image.open(file, formats=FORMATS).load()
        return image


@contextlib.contextmanager
def refuse_truncated_files() -> Iterator[None]:
    """Have Pillow refuse files that are cut off, which DomainBed has it fill up with grey."""
    from PIL import ImageFile

    setting_before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = setting_before


def read_image(reader: Callable[[Any], Any], path: str) -> Any:
    """What ``reader`` returns for an image; TransientError, with its path, if that fails."""
    try:
        return reader(path)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TransientError(
            f"{path} cannot be read: {reason}. Expected an image that Pillow opens; restore the "
            "file, or remove it (which changes the splits). `carft data verify --decode` lists "
            "all such files"
        ) from error


class ImageDataset:
    """A map-style dataset of (image, label): in RGB, or what ``transform`` makes of that.

    ``samples``: an image's file, or its pixels (H, W, 3) in bytes, and its label; ``classes``: the
    labels' names; ``root``: the split's name, as a folder's would be; ``unknown_classes``: the
    names of other classes in the data, whose images are left out.
    """

    root = "test"

    def __init__(
        self,
        samples: Sequence[tuple[Any, int]],
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
        unknown_classes: Sequence[str] = (),
    ) -> None:
        self.samples = samples
        self.classes = list(classes)
        self.transform = transform
        self.unknown_classes = unknown_classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        source, label = self.samples[index]
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            image = read_image(open_image, source)
        return self.transform(image) if self.transform else image, label


@dataclass(frozen=True)
class DamagedImage:
    """An image that ends the job; a ``truncated`` one is only grey where its data ends."""

    path: str
    truncated: bool
    reason: str


def find_damaged_images(root: Path, images: Sequence[str]) -> list[DamagedImage]:
    """Decode all ``images`` (paths below ``root``); returns those that are not whole, sorted."""
    from PIL import ImageFile

    images = sorted(images)
    setting = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings(), ThreadPool(machine.cores()) as pool:
            warnings.simplefilter("ignore")  # of odd metadata and large images; both are read
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            # Threads suffice: Pillow decodes without the interpreter's lock.
            faults = pool.imap(functools.partial(_decoding_fault, root), images, chunksize=32)
            bar = progress(faults, total=len(images), description="decoding", unit="image", delay=1)
            damaged = [(path, fault) for path, fault in zip(images, bar) if fault]

            ImageFile.LOAD_TRUNCATED_IMAGES = True  # as DomainBed sets it
            return [
                DamagedImage(path, truncated=not _decoding_fault(root, path), reason=fault)
                for path, fault in damaged
            ]
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = setting


def _decoding_fault(root: Path, image: str) -> str:
    """Why an image cannot be decoded, "" if it can."""
    path = os.path.join(root, image)
    try:
        open_image(path)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        return str(error).replace(path, image) or type(error).__name__
    return ""
