"""Pictures under environment/class/: finding them, checking them, turning them into tensors.

Transforms of upstream file domainbed/datasets.py at b93c22a.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from PIL import ImageFile
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from domainbed.lib import errors

# Upstream reads cut-off pictures instead of failing on them; the splits count on it.
ImageFile.LOAD_TRUNCATED_IMAGES = True

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PictureError(errors.Failure, OSError):
    """A picture cannot be read; an OSError, as Pillow's own are for the most part."""


def subfolders(root: str) -> list[str]:
    """Return the sorted names of the folders in `root`, of which there must be one."""
    if not os.path.isdir(root):
        raise errors.UsageError([f"Expected a folder with one sub-folder an environment: {root}"])
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not found:
        raise errors.UsageError([f"Expected one sub-folder an environment, found none in {root}"])
    return found


def read(path: str, transform: Any) -> ImageFolder:
    """Return an environment's pictures; refuse one with an empty class or without any."""
    try:
        return ImageFolder(path, transform=transform, loader=_picture)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise errors.UsageError(
            [f"Expected a folder with one sub-folder a class, pictures in each: {path} ({reason})."]
        ) from error


def _picture(path: str) -> Any:
    try:
        return default_loader(path)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(
            f"{path} cannot be read: {reason}. Expected a picture that Pillow opens; put back the "
            "right file, or take it away (which changes the splits). `carft data verify --decode` "
            "finds all such files of a data set."
        ) from error


def require_same_classes(environments: Sequence[str], classes: Sequence[Sequence[str]]) -> None:
    """Refuse environments whose class folders are not those of the first."""
    for environment, found in zip(environments, classes, strict=True):
        if found != classes[0]:
            differing = sorted(set(found) ^ set(classes[0]))
            raise errors.UsageError(
                [
                    f"Environments {environments[0]!r} and {environment!r} must have the same "
                    f"class folders; only one of them has: {', '.join(differing)}"
                ]
            )


def plain_transform() -> Any:
    """What test pictures go through: squeezed to 224 x 224, ImageNet's mean and deviation."""
    return transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def augmenting_transform() -> Any:
    """What training pictures go through when data_augmentation is on."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
