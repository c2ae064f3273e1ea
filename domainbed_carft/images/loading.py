"""Image decoding.

torchvision decodes plain JPEGs to the same pixels as Pillow, with fewer copies. Pillow decodes all
other files.
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

JPEG_SIGNATURE = b"\xff\xd8\xff"
MARKER_PREFIX = 0xFF
# Markers of a frame header, which contains the size.
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Markers that can precede the frame header: tables, comments and other programs' data.
SKIPPED_MARKERS = {0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
HEADER_BYTES = 1 << 20  # Pillow decodes a JPEG without a frame header in these

# Random choices, (10,), returned by `first_stage` for a plan without random steps.
NO_AUGMENTATION = torch.tensor(
    [0, *range(augmentation.N_OPERATIONS), *augmentation.UNCHANGED, 0], dtype=torch.float32
)


def decode(path: str) -> Tensor:
    """Decode an image to the pixels of `image_files.open_image`, ignoring an EXIF orientation.

    Returns:
        RGB pixels (H, W, 3), uint8.

    Raises:
        Exception: OSError, or any error of Pillow's.
    """
    content = _jpeg_content(path)
    if content is not None and _is_within_limit(content):
        try:
            pixels = io.decode_jpeg(torch.from_numpy(content))
        except RuntimeError:  # truncated, damaged, or unsupported
            pass
        else:
            # Four channels are CMYK, which torchvision and Pillow convert to RGB differently.
            if len(pixels) < 4:
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return decode_with_pillow(path)


def _jpeg_content(path: str) -> np.ndarray | None:
    """Read a JPEG file, (bytes,), uint8; return None for any other file."""
    with files.open_regular(path) as file:
        signature = file.read(len(JPEG_SIGNATURE))
        if signature != JPEG_SIGNATURE:
            return None
        content = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8)
        content[: len(signature)] = np.frombuffer(signature, dtype=np.uint8)
        count = file.readinto(content[len(signature) :].data)
    return content[: len(signature) + count]


def _is_within_limit(content: np.ndarray) -> bool:
    """Return True if Pillow would decode a JPEG of this size without a warning.

    Returns False also for an unusual header, so that Pillow decides.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is None:  # the user has disabled the limit
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
    """Decode an image with Pillow to RGB pixels, (H, W, 3), uint8."""
    return torch.from_numpy(np.array(image_files.open_image(path)))
