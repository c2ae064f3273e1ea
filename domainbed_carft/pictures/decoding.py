"""From a picture's file to its pixels: torchvision's decoder for plain JPEGs, Pillow for the rest.

Both are libjpeg-turbo and give the same pixels; torchvision's spares Pillow's copies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision import io

from domainbed_carft.data import listing


def decode(path: str) -> Tensor:
    """The picture of a file in RGB: (H, W, 3), uint8, equal to ``listing.open_picture``'s.

    As there, an orientation in its EXIF is not followed. Raises what that raises.
    """
    content = np.fromfile(path, dtype=np.uint8)
    if content[:3].tobytes() == b"\xff\xd8\xff":
        try:
            pixels = io.decode_jpeg(torch.from_numpy(content))
        except RuntimeError:  # cut off, damaged, or of a kind it does not know
            pass
        else:
            # Four channels are printer's inks, which each library turns into RGB in its own way.
            if len(pixels) < 4:
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    return by_pillow(path)


def by_pillow(path: str) -> Tensor:
    """The same for all that Pillow reads."""
    return torch.from_numpy(np.array(listing.open_picture(path)))
