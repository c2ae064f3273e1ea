"""MNIST's digits and what is made of them: rotated ones and coloured ones.

The draws and the arithmetic are those of upstream file domainbed/datasets.py at b93c22a, so the
same seed of torch gives the same pictures and labels in the same order.
"""

from __future__ import annotations

import math
import os
import struct

import torch
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pictures

from domainbed.lib import errors


def read(root: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all 70,000 pictures (n, 28, 28) and labels (n,), training digits before test digits.

    Files that are not under root/MNIST/raw are downloaded.

    Raises:
        Failure: they could not be downloaded; the message names files and folder.
        UsageError: one is damaged, or cannot be read, or they do not belong together.
    """
    folder = os.path.join(root, "MNIST", "raw")
    names = [os.path.splitext(os.path.basename(url))[0] for url, _ in MNIST.resources]
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    present = [os.path.join(folder, name) for name in names if name not in missing]
    if damaged := [problem for path in present for problem in _damages(path)]:
        raise errors.UsageError(damaged)
    if missing:
        print(f"MNIST: not in {folder}: {', '.join(missing)}. Downloading.")
    try:
        parts = [MNIST(root, train=train, download=bool(missing)) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        remedy = (
            f"Put {', '.join(names)} into {folder}, or give the --data_dir whose MNIST/raw holds "
            "them."
        )
        if missing:
            text = f"MNIST's files could not be downloaded ({reason}). {remedy}"
            raise errors.Failure(text) from error
        raise errors.UsageError(
            [f"MNIST's files in {folder} cannot be read ({reason}). {remedy}"]
        ) from error
    for part in parts:
        if len(part.data) != len(part.targets):
            raise errors.UsageError(
                [
                    f"MNIST's files in {folder} do not belong together: {len(part.data)} pictures "
                    f"and {len(part.targets)} labels. Delete them, and they are downloaded when a "
                    "job starts; or put the right ones there."
                ]
            )
    return torch.cat([part.data for part in parts]), torch.cat([part.targets for part in parts])


def _damages(path: str) -> list[str]:
    """Say if a file is not as long as its head says (http://yann.lecun.com/exdb/mnist/)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        magic = file.read(4)
        dimensions = magic[3] if len(magic) == 4 else 0
        sizes = file.read(4 * dimensions)
    if magic[:3] != b"\0\0\x08" or len(sizes) != 4 * dimensions:
        what = f"{size} bytes, which do not begin as MNIST's"
    elif (wanted := 4 + len(sizes) + math.prod(struct.unpack(f">{dimensions}I", sizes))) != size:
        what = f"{size} bytes in place of {wanted}"
    else:
        return []
    return [
        f"MNIST's file {path} is damaged: it has {what}. Delete it, and it is downloaded when a "
        "job starts; or put a whole one there."
    ]


def rotated(images: torch.Tensor, labels: torch.Tensor, angle: float) -> TensorDataset:
    """Turn the pictures counter-clockwise; return float pictures (n, 1, 28, 28) and labels.

    By way of PIL, one by one: interpolating tensors gives other values than upstream's.
    """
    turned = [
        pictures.to_tensor(
            pictures.rotate(
                pictures.to_pil_image(image), angle, InterpolationMode.BILINEAR, fill=[0]
            )
        )
        for image in images
    ]
    return TensorDataset(torch.stack(turned), labels)


def coloured(images: torch.Tensor, labels: torch.Tensor, disagreement: float) -> TensorDataset:
    """Return pictures (n, 2, 28, 28), of one of two colours, and labels: is the digit below 5?

    A quarter of the labels is wrong; the share `disagreement` of the colours is not the label's.
    """
    is_small = (labels < 5) ^ (torch.rand(len(labels)) < 0.25)
    is_second = is_small ^ (torch.rand(len(labels)) < disagreement)
    channels = torch.stack([~is_second, is_second], dim=1).view(-1, 2, 1, 1)
    return TensorDataset(images.unsqueeze(1) * channels / 255, is_small.long())
