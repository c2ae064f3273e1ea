"""The first stage from a file, or from what the store has of it."""

from __future__ import annotations

import PIL
import torch
import torchvision
from torch import Tensor

from domainbed_carft.pictures import store
from domainbed_carft.pictures.decoding import decode
from domainbed_carft.pictures.plan import Plan, first
from domainbed_carft.pictures.store import Store

# Other versions may round otherwise, and are other environments on the same machine.
MADE_BY = f"torch {torch.__version__} torchvision {torchvision.__version__} PIL {PIL.__version__}"

# What `first` says of a picture that nothing is drawn for.
NOTHING_DRAWN = torch.tensor([0, 0, 1, 2, 3, 1, 1, 1, 0, 0], dtype=torch.float32)


def load(plan: Plan, path: str, kept: Store | None = None) -> tuple[Tensor, Tensor]:
    """As ``first`` of the file's picture. Raises what Pillow raises for what it cannot read.

    Where the plan draws nothing the squares are kept; else whole pictures, since crops differ.
    """
    if kept is None:
        return first(plan, decode(path))
    if plan.draws:
        key = store.key(path, f"whole {MADE_BY}")
        picture = kept.get(key)
        if picture is None:
            picture = decode(path)
            kept.put(key, picture)
        return first(plan, picture)
    key = store.key(path, f"{plan.size} {plan.interpolation} {plan.resize} {MADE_BY}")
    square = kept.get(key)
    if square is None:
        square, _ = first(plan, decode(path))
        kept.put(key, square)
    return square, NOTHING_DRAWN
