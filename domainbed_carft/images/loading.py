"""The first stage from a file.

Torchvision decodes plain JPEGs to Pillow's pixels, without Pillow's copies; Pillow the rest.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import io

from domainbed_carft import files
from domainbed_carft.data import image_files
from domainbed_carft.images import augmentation
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.stages import first_stage

JPEG_BEGINNING = b"\xff\xd8\xff"
MARKER_PREFIX = 0xFF
# The markers of a frame, which has the size.
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Those that may stand before it: tables, comments and other programs' data.
SKIPPED_MARKERS = {0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
HEADER_BYTES = 1 << 20  # where the frame begins at the latest, else Pillow judges

# The choices, (10,), that `first_stage` returns for a plan without random steps.
NO_AUGMENTATION = torch.tensor(
    [0, *range(augmentation.N_OPERATIONS), *augmentation.UNCHANGED, 0], dtype=torch.float32
)


def load(plan: ImagePlan, path: str) -> tuple[Tensor, Tensor]:
    """A file's square (S, S, 3), uint8, and the random choices for it, (10,), as `first_stage`.

    Raises what Pillow raises for a file that it cannot read.
    """
    return first_stage(plan, decode(path))


def decode(path: str) -> Tensor:
    """The image of a file in RGB, (H, W, 3), uint8: that of `image_files.open_image`.

    An orientation in its EXIF data is ignored. Raises OSError, and what Pillow raises.
    """
    content = _jpeg_content(path)
    if content is not None and _is_within_limit(content):
        try:
            pixels = io.decode_jpeg(torch.from_numpy(content))
        except RuntimeError:  # cut off, damaged, or of a kind it does not know
            pass
        else:
            # Four channels are printer's inks, which each library turns into RGB in its own way.
            if len(pixels) < 4:
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return decode_with_pillow(path)


def _jpeg_content(path: str) -> np.ndarray | None:
    """The bytes of a file, None if they do not begin as a JPEG's."""
    with files.open_regular(path) as file:
        beginning = file.read(len(JPEG_BEGINNING))
        if beginning != JPEG_BEGINNING:
            return None
        content = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8)
        content[: len(beginning)] = np.frombuffer(beginning, dtype=np.uint8)
        count = file.readinto(content[len(beginning) :].data)
    return content[: len(beginning) + count]


def _is_within_limit(content: np.ndarray) -> bool:
    """Whether Pillow would decode a JPEG of this size without a word.

    False as well for a JPEG whose header is unusual: Pillow then judges it.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is None:  # the user's choice
        return True

    header = content[:HEADER_BYTES].tobytes()
    start = 2
    while len(header) >= start + 9 and header[start] == MARKER_PREFIX:
        marker = header[start + 1]
        length, _, height, width = struct.unpack_from(">HBHH", header, start + 2)
        if marker in FRAME_MARKERS:
            return bool(height * width <= limit)
        if marker not in SKIPPED_MARKERS:
            return False
        start += 2 + length
    return False


def decode_with_pillow(path: str) -> Tensor:
    """The image of a file in RGB, (H, W, 3), uint8, by Pillow. Raises what Pillow raises."""
    return torch.from_numpy(np.array(image_files.open_image(path)))
