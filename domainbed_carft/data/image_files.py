"""Image files: safe decoding, and a search for files that cannot be decoded."""

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
from domainbed_carft.progress_bar import progress

if TYPE_CHECKING:
    from PIL import Image

# Pillow tries only these, whatever a file's name is: PostScript would be run by an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def open_image(path: str | Path) -> Image.Image:
    """Decode an image to RGB, like torchvision's loader, but only from the ``FORMATS``.

    Raises:
        OSError: if the file is not a regular file, or is truncated before the first pixel.
        Exception: any error of Pillow's.
    """
    from PIL import Image

    with files.open_regular(path) as file:
        image = Image.open(file, formats=FORMATS).convert("RGB")

        # Either the image has a single colour, or Pillow has filled in all of a truncated file.
        if image.getcolors(maxcolors=1):
            file.seek(0)
            with refuse_truncated_files():
                Image.open(file, formats=FORMATS).load()
        return image


@contextlib.contextmanager
def refuse_truncated_files() -> Iterator[None]:
    """Make Pillow raise an error for truncated files, which it fills with grey in DomainBed."""
    from PIL import ImageFile

    setting_before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = setting_before


def load_image(path: str) -> Image.Image:
    """Decode an image to RGB, like `open_image`; raise TransientError if it cannot be read."""
    try:
        return open_image(path)
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise reading_error(path, error) from error


def reading_error(path: str, error: Exception) -> TransientError:
    """Return the error to raise, with the path, if an image cannot be read because of ``error``."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return TransientError(
        f"{path} cannot be read: {reason}. Expected an image that Pillow can open; restore the "
        "file, or remove it (which changes the splits). `carft data verify --decode` lists all "
        "such files"
    )


class ImageDataset:
    """A map-style dataset of (image, label), with images in RGB or transformed.

    Attributes:
        samples: pairs of a file, or pixels (H, W, 3), uint8, and a label.
        classes: names of the labels.
        transform: function of a Pillow image, or None.
        unknown_classes: other classes in the data, whose images are not in ``samples``.
        root: name of the split, in place of a folder's.
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
        is_array = isinstance(source, np.ndarray)
        image = Image.fromarray(source) if is_array else load_image(source)
        return self.transform(image) if self.transform else image, label


@dataclass(frozen=True)
class DamagedImage:
    """An image that cannot be decoded completely."""

    path: str
    truncated: bool  # decoded with a grey rest; otherwise the image ends the job
    reason: str


def find_damaged_images(root: Path, images: Sequence[str]) -> list[DamagedImage]:
    """Decode images, given as paths below ``root``, and return the damaged ones, sorted."""
    from PIL import ImageFile

    images = sorted(images)
    setting = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings(), ThreadPool(machine.cores()) as pool:
            warnings.simplefilter("ignore")  # about unexpected metadata and large images
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
    """Return the reason why an image cannot be decoded, or "" if it can."""
    path = os.path.join(root, image)
    try:
        open_image(path)
    except Exception as error:  # Pillow's decoders raise a dozen types
        return str(error).replace(path, image) or type(error).__name__
    return ""
