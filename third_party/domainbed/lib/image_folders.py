"""Datasets of images under environment/class/.

Uses the transforms of upstream file domainbed/datasets.py at b93c22a. Unlike upstream, the path of
a user's own folder can be the name of a dataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageFile

from domainbed_carft.data import image_files
from domainbed_carft.data.comparison import STRAY, quote_names
from domainbed_carft.errors import CarftError
from domainbed_carft.images.image_lists import ImageList, ListedFolder

# Upstream reads truncated images instead of failing; its splits contain them.
ImageFile.LOAD_TRUNCATED_IMAGES = True


def subfolder_names(root: str, kind: str = "environment") -> list[str]:
    """Return the sorted names of the folders in `root`.

    Args:
        root: The folder.
        kind: "environment" or "class", for messages.

    Raises:
        CarftError: There are no sub-folders, or `root` cannot be read.
    """
    try:
        entries = os.scandir(root) if os.path.isdir(root) else ()
        names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise CarftError(f"{root} cannot be read ({error.strerror})") from error

    if not names:
        raise CarftError(
            f"{root} has no sub-folders; expected a folder with one sub-folder per {kind}"
        )
    return names


def environment_names(root: str, kind: str = "environment") -> list[str]:
    """Return the sorted names of the folders in a user's own folder.

    Args:
        root: The folder.
        kind: "environment" or "class", for messages.

    Raises:
        CarftError: There are no sub-folders, `root` cannot be read, or it contains folders that
            unpackers and notebooks leave behind, such as __MACOSX.
    """
    names = subfolder_names(root, kind)
    stray = [name for name in names if STRAY.match(name)]
    if stray:
        raise CarftError(
            f"{root} contains {', '.join(stray)}, which would count as another {kind}; delete it "
            "or move it away"
        )
    return names


def require_valid_folders(root: str, names: Sequence[str]) -> None:
    """Raise CarftError if the environments of a user's own data do not have the same classes."""
    require_same_classes(
        names, [environment_names(os.path.join(root, name), "class") for name in names]
    )


def read_environment(
    path: str, images: Mapping[str, Sequence[str]], transform: Any
) -> ListedFolder:
    """Build the dataset of an environment's folder.

    Args:
        path: The environment's folder.
        images: Class -> listed images.
        transform: Transform of the images.

    Raises:
        CarftError: A class has no images.
    """
    try:
        return ListedFolder(path, images, transform=transform, loader=_image)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CarftError(
            f"{path} has classes without images; expected one sub-folder of images per class "
            f"({reason})"
        ) from error


def is_image_folder(dataset: Any) -> bool:
    """Return True if a dataset reads its items in the same way as `read_environment`."""
    return type(dataset) is ImageList or (
        type(dataset) is ListedFolder
        and dataset.loader is _image
        and dataset.target_transform is None
    )


def _image(path: str) -> Any:
    return image_files.read_image(image_files.open_image, path)


def require_same_classes(environments: Sequence[str], classes: Sequence[Sequence[str]]) -> None:
    """Raise CarftError if an environment's class folders differ from the first environment's."""
    for environment, class_names in zip(environments, classes, strict=True):
        differing = sorted(set(class_names) ^ set(classes[0]))
        if differing:
            raise CarftError(
                f"environments {environments[0]!r} and {environment!r} must have the same class "
                f"folders; only one of them has {quote_names(differing)}"
            )
