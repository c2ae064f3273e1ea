"""Folders environment/class/image. Unlike upstream, a user's own folder can be a dataset.

A CSV file that lists images stands for a folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft.data.comparison import STRAY, require_same_classes
from domainbed_carft.data.listing import is_list, read_list
from domainbed_carft.errors import CarftError


def subfolder_names(root: str, kind: str = "environment") -> list[str]:
    """Return the sorted names of the folders in `root`, or of the environments in a list.

    Args:
        root: the folder, or a CSV file that lists images.
        kind: "environment" or "class", for messages.

    Raises:
        CarftError: there are no sub-folders, or `root` cannot be read.
    """
    if is_list(root):
        return [*read_list(Path(root))]
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
        root: the folder.
        kind: "environment" or "class", for messages.

    Raises:
        CarftError: there are no sub-folders, `root` cannot be read, or it contains folders that
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
    if is_list(root):
        require_same_classes(read_list(Path(root)))
        return
    require_same_classes(
        {name: environment_names(os.path.join(root, name), "class") for name in names}
    )
