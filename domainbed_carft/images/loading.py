"""Image decoding.

torchvision decodes plain JPEGs to the same pixels as Pillow, with fewer copies. Pillow decodes all
other files.
"""

from __future__ import annotations

import contextlib
import os
import struct

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import io

from domainbed_carft import files
from domainbed_carft.data import image_files

JPEG_SIGNATURE = b"\xff\xd8\xff"
MARKER_PREFIX = 0xFF
# Markers of a frame header, which contains the size.
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Markers that can precede the frame header: tables, comments and other programs' data.
SKIPPED_MARKERS = {0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
HEADER_BYTES = 1 << 20  # Pillow decodes a JPEG without a frame header in these


def decode(path: str) -> Tensor:
    """Decode an image to the pixels of `image_files.open_image`, ignoring an EXIF orientation.

    Returns:
        RGB pixels (H, W, 3), uint8.

    Raises:
        Exception: OSError, or any error of Pillow's.
    """
    with files.open_regular(path) as file:
        if file.read(len(JPEG_SIGNATURE)) == JPEG_SIGNATURE:
            file.seek(0)
            content = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8)
            content = content[: file.readinto(content.data)]
            if _is_within_limit(content):
                with contextlib.suppress(RuntimeError):  # truncated, damaged, or unsupported
                    pixels = io.decode_jpeg(torch.from_numpy(content))
                    # Four channels are CMYK, which torchvision converts in another way.
                    if len(pixels) < 4:
                        return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous()

    return torch.from_numpy(np.array(image_files.open_image(path)))


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
