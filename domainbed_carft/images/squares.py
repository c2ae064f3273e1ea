"""Images between the two stages of a plan without random steps, and a memory for them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from domainbed_carft import process_variables
from domainbed_carft.arguments import parse_memory_limit
from domainbed_carft.data import image_files
from domainbed_carft.errors import CarftError
from domainbed_carft.images import loading, stages
from domainbed_carft.images.plan import ImagePlan

# The path of an image, and how it is made square.
ImageKey = tuple[str, str]


@dataclass(frozen=True)
class Squares(Dataset[Any]):
    """A torch dataset of square images (S, S, 3), uint8, before normalisation.

    Attributes:
        samples: paths or arrays (H, W, 3), with labels.
        plan: makes an image square; has no random steps.
        border: pixels to cut off each side, see `TestSet`.
        is_resized_by_pillow: see `TestSet`.
        accepts_truncated: fill truncated files with grey, as DomainBed does.
    """

    samples: Sequence[tuple[Any, int]]
    plan: ImagePlan
    border: int = 0
    is_resized_by_pillow: bool = False
    accepts_truncated: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Tensor:
        sample, _ = self.samples[position]
        if not isinstance(sample, str):
            return self._make_square(torch.as_tensor(sample))

        refuse_truncated = image_files.refuse_truncated_files
        try:
            with contextlib.nullcontext() if self.accepts_truncated else refuse_truncated():
                return self._make_square(loading.decode(sample))
        except Exception as error:  # Pillow's decoders raise a dozen types
            raise image_files.reading_error(sample, error) from error

    def get_keys(self) -> list[ImageKey | None]:
        """Return a key of each image for `ImageMemory`, or None if it needs no decoding."""
        kind = repr((self.plan, self.border, self.is_resized_by_pillow, self.accepts_truncated))
        return [(path, kind) if isinstance(path, str) else None for path, _ in self.samples]

    def _make_square(self, pixels: Tensor) -> Tensor:
        """Remove the border of an image (H, W, 3), then crop and resize it."""
        height, width = pixels.shape[:2]
        if min(height, width) <= 2 * self.border:
            raise CarftError(
                f"the image has {width} x {height} pixels, too small to remove a border of "
                f"{self.border} pixels from each side"
            )

        inside = pixels[self.border : height - self.border, self.border : width - self.border]
        if self.is_resized_by_pillow:
            return stages.resize_by_pillow(self.plan, inside)
        return stages.crop(self.plan, inside)


class ImageMemory:
    """Decoded images, so that the next run on the same images does not decode them again.

    As many images are kept as fit. The others are decoded for each run.

    Args:
        limit: bytes of all images. Default: the limit of this process.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = parse_memory_limit(process_variables.IMAGE_MEMORY.read() or None)
        self._free_bytes = limit
        self._squares: dict[ImageKey | None, Tensor] = {}

    def get(self, key: ImageKey | None) -> Tensor | None:
        """Return the image with a key, or None if it is not kept."""
        return self._squares.get(key)

    def keep(self, key: ImageKey | None, square: Tensor) -> None:
        """Keep a copy of an image (S, S, 3), uint8, if it fits."""
        if key is not None and square.nbytes <= self._free_bytes:
            self._free_bytes -= square.nbytes
            self._squares[key] = square.clone()


@functools.lru_cache(maxsize=1)
def get_memory(images: str) -> ImageMemory:
    """Return the memory of this process for the images of a dataset or suite, the latest one."""
    return ImageMemory()
