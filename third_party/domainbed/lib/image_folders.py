"""Images under environment/class/: where they are, and how they become tensors.

Transforms of upstream file domainbed/datasets.py at b93c22a. Unlike upstream, the path of a user's
own folder may be the name of a dataset.
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

# Upstream reads cut-off images instead of failing on them; the splits count on it.
ImageFile.LOAD_TRUNCATED_IMAGES = True


def subfolder_names(root: str, kind: str = "environment") -> list[str]:
    """The sorted names of the folders in ``root``, each an environment or a class (``kind``).

    Raises CarftError if there are none, or ``root`` cannot be read.
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
    """The sorted names of the folders in a user's own folder, each an environment or a class.

    Raises CarftError if there are none, if ``root`` cannot be read, and for folders that unpackers
    and notebooks leave behind, such as __MACOSX.
    """
    names = subfolder_names(root, kind)
    stray = [name for name in names if STRAY.match(name)]
    if stray:
        raise CarftError(
            f"{root} contains {', '.join(stray)}, which would count as one more {kind}; delete it "
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
    """The environment in a folder, by class -> listed images. CarftError if a class has none."""
    try:
        return ListedFolder(path, images, transform=transform, loader=_image)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CarftError(
            f"{path} lacks images; expected one sub-folder of images per class ({reason})"
        ) from error


def is_image_folder(dataset: Any) -> bool:
    """Whether a dataset's items are as `read_environment` makes them."""
    return type(dataset) is ImageList or (
        type(dataset) is ListedFolder
        and dataset.loader is _image
        and dataset.target_transform is None
    )


def _image(path: str) -> Any:
    return image_files.read_image(image_files.open_image, path)


def require_same_classes(environments: Sequence[str], classes: Sequence[Sequence[str]]) -> None:
    """Raise CarftError for environments whose class folders are not those of the first."""
    for environment, class_names in zip(environments, classes, strict=True):
        differing = sorted(set(class_names) ^ set(classes[0]))
        if differing:
            raise CarftError(
                f"environments {environments[0]!r} and {environment!r} must have the same class "
                f"folders; only one of them has {quote_names(differing)}"
            )
