"""The first stage from a file, or from what the store has of it.

Torchvision decodes plain JPEGs to Pillow's pixels, without Pillow's copies; Pillow the rest.
"""

from __future__ import annotations

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor
from torchvision import io

from domainbed_carft.data import listing
from domainbed_carft.data.listing import Member
from domainbed_carft.pictures import store
from domainbed_carft.pictures.plan import Plan, first
from domainbed_carft.pictures.store import Store

# Other versions may round otherwise.
MADE_BY = f"torch {torch.__version__} torchvision {torchvision.__version__} PIL {PIL.__version__}"

# What `first` says of a picture that nothing is drawn for.
NOTHING_DRAWN = torch.tensor([0, 0, 1, 2, 3, 1, 1, 1, 0, 0], dtype=torch.float32)


def load(plan: Plan, path: str | Member, kept: Store | None = None) -> tuple[Tensor, Tensor]:
    """As ``first`` of the file's picture. Raises what Pillow raises for what it cannot read.

    Kept are whole pictures, or squares where the plan draws nothing.
    """
    if kept is None:
        return first(plan, decode(path))
    kind = "whole" if plan.draws else f"{plan.size} {plan.interpolation} {plan.resize}"
    what = f"{kind} {MADE_BY}"
    if isinstance(path, Member):
        key = store.key(path.path, f"{path.offset} {what}")
    else:
        key = store.key(path, what)
    picture = kept.get(key)
    if picture is None:
        picture = decode(path) if plan.draws else first(plan, decode(path))[0]
        kept.put(key, picture)
    return first(plan, picture) if plan.draws else (picture, NOTHING_DRAWN)


def decode(path: str | Member) -> Tensor:
    """The picture of a file in RGB: (H, W, 3), uint8, equal to ``listing.open_picture``'s.

    As there, an orientation in its EXIF is not followed. Raises what that raises.
    """
    part = path if isinstance(path, Member) else Member(path, 0, -1)
    listing.require_regular_file(part.path)
    content = np.fromfile(part.path, dtype=np.uint8, count=part.size, offset=part.offset)
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


def by_pillow(path: str | Member) -> Tensor:
    """The same for all that Pillow reads."""
    return torch.from_numpy(np.array(listing.open_picture(path)))
