"""Listing of a folder environment/class/image.

Images are counted in the same way as by torchvision's ImageFolder: links are followed, nested
folders belong to their class, and an image is a file with an image's extension.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from domainbed_carft.data.comparison import quote_names
from domainbed_carft.errors import CarftError
from domainbed_carft.text import progress, quantity

# A copy of torchvision.datasets.folder.IMG_EXTENSIONS, because to import torch takes seconds.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Kinds of files that end a job or give it wrong images, with hints.
FAULT_KINDS = {
    "empty file": "(download again)",
    "link": "to nothing (restore the target)",
    "path": "that cannot be read (repair or delete)",
    "macOS file": "with an image's name (delete)",
}


@dataclass(frozen=True)
class Listing:
    """The contents of a folder; all paths are relative to ``root``."""

    root: Path
    counts: dict[str, dict[str, int]]  # environment -> class -> number of images; in label order
    images: list[str]  # all counted images, class by class, in ImageFolder's order
    faults: dict[str, list[str]]  # paths of faulty files, by FAULT_KINDS

    def paths(self) -> dict[str, dict[str, list[str]]]:
        """Return the full paths of the images, by environment and class."""
        prefix = os.path.join(self.root, "")
        paths = (prefix + image for image in self.images)
        return {
            environment: {name: list(islice(paths, count)) for name, count in classes.items()}
            for environment, classes in self.counts.items()
        }

    @property
    def problems(self) -> list[str]:
        """Sentences, one for each kind of fault."""
        return [
            f"{quantity(len(paths), kind)} {FAULT_KINDS[kind]}: {quote_names(paths)}"
            for kind, paths in self.faults.items()
            if paths
        ]


def list_environments(root: Path) -> Listing:
    """List a folder environment/class/image; raise CarftError if it cannot be read."""
    counts: dict[str, dict[str, int]] = {}
    faults: dict[str, list[str]] = {kind: [] for kind in FAULT_KINDS}
    pairs = []
    for environment in _list_subfolders(root, "environment"):
        counts[environment] = {}
        try:
            class_names, _ = _list_entries(root / environment)
        except OSError:
            faults["path"].append(environment)
        else:
            pairs += [(environment, name) for name in class_names]
    return _list_images(Listing(root, counts, [], faults), pairs)


def list_classes(root: Path, names: Container[str] | None = None) -> Listing:
    """List a folder class/image as a single environment ""; only the classes ``names``, if given.

    Raises:
        CarftError: if the folder cannot be read.
    """
    selected = [name for name in _list_subfolders(root, "class") if names is None or name in names]
    listing = Listing(root, {"": {}}, [], {kind: [] for kind in FAULT_KINDS})
    return _list_images(listing, [("", name) for name in selected])


def _list_subfolders(root: Path, kind: str) -> list[str]:
    """Return the sorted names of sub-folders; raise CarftError if ``root`` cannot be read."""
    try:
        names, _ = _list_entries(root)
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected a folder with one "
            f"sub-folder per {kind}"
        ) from error
    return names


def count_loose_images(root: Path) -> int:
    """Return the number of images directly in ``root``."""
    _, images = _list_entries(root)
    return len(images)


def _list_images(listing: Listing, pairs: Sequence[tuple[str, str]]) -> Listing:
    """Add the images of pairs (environment, class) to a listing, and return it."""
    # With a progress bar, because on a network drive a large dataset takes minutes.
    description = f"listing {listing.root.name}"
    for environment, name in progress(pairs, description=description, unit="class", delay=1):
        before = len(listing.images)
        _add_images(listing, os.path.join(environment, name), ())
        # By folder, then by name, which is ImageFolder's order.
        listing.images[before:] = sorted(
            listing.images[before:], key=lambda path: path.rpartition("/")
        )
        listing.counts[environment][name] = len(listing.images) - before
    return listing


def _add_images(listing: Listing, folder: str, ancestors: tuple[str, ...]) -> None:
    """Add the images in and below ``folder``, whose parents have the real paths ``ancestors``."""
    real_path = os.path.realpath(listing.root / folder)
    try:
        if real_path in ancestors:  # torchvision would follow such a link endlessly
            raise OSError
        folders, files = _list_entries(listing.root / folder)
    except OSError:
        listing.faults["path"].append(folder)
        return

    for entry in files:
        path = f"{folder}/{entry.name}"
        listing.images.append(path)
        kind = _fault_kind(entry)
        if kind:
            listing.faults[kind].append(path)
    for name in folders:
        _add_images(listing, f"{folder}/{name}", (*ancestors, real_path))


def _fault_kind(entry: os.DirEntry[str]) -> str:
    """Return one of FAULT_KINDS, or "" for a sound file."""
    try:
        status = entry.stat()
    except PermissionError:
        return "path"
    except OSError:
        return "link"

    if not stat.S_ISREG(status.st_mode):
        return "path"
    if not status.st_size:
        return "empty file"
    return "macOS file" if entry.name.startswith("._") else ""


def _list_entries(folder: Path) -> tuple[list[str], list[os.DirEntry[str]]]:
    """Return the sorted names of sub-folders, and the entries with an image's extension."""
    folders = []
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.isdir(entry.path):
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                images.append(entry)
    return sorted(folders), images
