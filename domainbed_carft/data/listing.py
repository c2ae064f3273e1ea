"""Listing of a folder environment/class/image, or of a CSV file with a line for each image.

Images are counted in the same way as by torchvision's ImageFolder: links are followed, nested
folders belong to their class, and an image is a file with an image's extension. A CSV file can list
images in any folder.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import stat
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from domainbed_carft.data.comparison import quote_names
from domainbed_carft.errors import CarftError
from domainbed_carft.files import read_regular
from domainbed_carft.progress_bar import progress
from domainbed_carft.wording import quantity

# A copy of torchvision.datasets.folder.IMG_EXTENSIONS, because to import torch takes seconds.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# The required columns of a CSV file. The path is absolute or relative to the file.
LIST_COLUMNS = ("path", "environment", "class")

# Kinds of files that end a job or give it wrong images, with hints.
FAULT_KINDS = {
    "empty file": "(restore the original)",
    "link": "to nothing (restore the target)",
    "path": "that cannot be read (repair or delete)",
    "macOS file": "with an image's name (delete)",
}


@dataclass(frozen=True)
class Listing:
    """The contents of a folder or a list; paths are relative to ``root``, or absolute in a list."""

    root: Path
    counts: dict[str, dict[str, int]]  # environment -> class -> number of images; in label order
    images: list[str]  # all counted images, class by class, in ImageFolder's order
    faults: dict[str, list[str]]  # paths of faulty files, by FAULT_KINDS
    skipped: Counter[str] = field(default_factory=Counter)  # other files in folders, by extension

    def paths(self) -> dict[str, dict[str, list[str]]]:
        """Return the full paths of the images, by environment and class."""
        prefix = os.path.join(self.root, "")
        paths = (image if image[0] == os.sep else prefix + image for image in self.images)
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

    @property
    def notes(self) -> list[str]:
        """A sentence about the skipped files, if there are any."""
        if not self.skipped:
            return []
        count = quantity(self.skipped.total(), "file")
        verb = "is" if self.skipped.total() == 1 else "are"
        by_number = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{number:,} {name or 'without extension'}" for name, number in by_number]
        return [
            f"{count} without an image's extension {verb} skipped: {', '.join(kinds)}. Images end "
            f"in {', '.join(IMAGE_EXTENSIONS)}; convert other images"
        ]


def list_environments(root: Path) -> Listing:
    """List a folder environment/class/image or a CSV file; raise CarftError if it is invalid."""
    if is_list(root):
        return _list_file(root)
    counts: dict[str, dict[str, int]] = {}
    faults: dict[str, list[str]] = {kind: [] for kind in FAULT_KINDS}
    pairs = []
    for environment in _list_subfolders(root, "environment"):
        counts[environment] = {}
        try:
            class_names = _list_entries(root / environment).folders
        except OSError:
            faults["path"].append(environment)
        else:
            pairs += [(environment, name) for name in class_names]
    return _list_images(Listing(root, counts, [], faults), pairs)


def is_list(name: str | Path) -> bool:
    """Return True if a dataset is a CSV file that lists its images, by its name."""
    return str(name).endswith(".csv") and not os.path.isdir(name)


def read_list(file: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Read a CSV file that lists a dataset's images, without looking at the images.

    A job asks several times, so the file is parsed again only if its content has changed.

    Returns:
        Environment -> class -> path of an image -> line. Environments and classes are sorted.

    Raises:
        CarftError: if the file cannot be read, or one of its lines is invalid.
    """
    return _parse_list(file, _read_text(file))


@functools.lru_cache(maxsize=1)
def _parse_list(file: Path, text: str) -> dict[str, dict[str, dict[str, int]]]:
    """Parse the text of a list, see `read_list`."""
    lines: dict[str, int] = {}
    environments: dict[str, dict[str, dict[str, int]]] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in LIST_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise CarftError(
                f"{file}:1: missing {', '.join(missing)}; expected a first line with the columns "
                f"{', '.join(LIST_COLUMNS)}"
            )
        for row in reader:
            line = reader.line_num
            path, environment, class_name = (row[name] for name in LIST_COLUMNS)
            if not (path and environment and class_name) or None in row or "\0" in path:
                values = [value for value in row.values() if value is not None]
                raise CarftError(
                    f"{file}:{line}: got {values!r:.200}, expected a value for each column: "
                    f"{', '.join(reader.fieldnames or ())}"
                )
            if not path.lower().endswith(IMAGE_EXTENSIONS):
                raise CarftError(
                    f"{file}:{line}: {path!r} does not end in {', '.join(IMAGE_EXTENSIONS)}; only "
                    "these files are images, as in folders. Convert or rename it, or remove the "
                    "line"
                )
            path = os.path.normpath(path)
            if lines.setdefault(path, line) != line:
                raise CarftError(
                    f"{file}:{line}: {path!r} is also in line {lines[path]}; list each image once"
                )
            environments.setdefault(environment, {}).setdefault(class_name, {})[path] = line
    except csv.Error as error:
        raise CarftError(f"{file}:{reader.line_num}: {error}; expected a CSV file") from error
    if not environments:
        raise CarftError(f"{file} lists no images; expected a line for each image")
    return {name: dict(sorted(classes.items())) for name, classes in sorted(environments.items())}


def _require_distinct_images(file: Path, lines: Mapping[str, int]) -> None:
    """Raise CarftError if two paths lead to one image, such as a relative and an absolute one.

    Args:
        file: the CSV file.
        lines: path of each image -> line.
    """
    resolve_folder = functools.cache(os.path.realpath)  # many images are in one folder
    paths: dict[str, str] = {}  # path without links -> path in the list
    for path, line in sorted(lines.items(), key=lambda item: item[1]):
        folder, name = os.path.split(os.path.join(file.parent, path))
        resolved = os.path.join(resolve_folder(folder), name)
        if os.path.islink(resolved):
            resolved = os.path.realpath(resolved)
        earlier_path = paths.setdefault(resolved, path)
        if earlier_path != path:
            raise CarftError(
                f"{file}:{line}: {path!r} is the same image as {earlier_path!r} in line "
                f"{lines[earlier_path]}; list each image once"
            )


def _read_text(file: Path) -> str:
    """Return the text of a UTF-8 file; raise CarftError if it cannot be read."""
    try:
        content = read_regular(file)
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CarftError(f"{file}:{line}: {error.reason}; save the file as UTF-8") from error
    except OSError as error:
        raise CarftError(f"{file} cannot be read ({error.strerror})") from error


def _list_file(file: Path) -> Listing:
    """List the images of a CSV file; raise CarftError if it is invalid or an image is missing.

    Images have the order of the same images in folders, for the same splits.
    """
    environments = read_list(file)
    class_names = sorted({name for classes in environments.values() for name in classes})
    listing = Listing(file.parent, {}, [], {kind: [] for kind in FAULT_KINDS})
    missing = []
    all_lines: dict[str, int] = {}
    for environment, classes in environments.items():
        listing.counts[environment] = {name: len(classes.get(name, ())) for name in class_names}
        for lines in classes.values():
            all_lines |= lines
            listing.images.extend(sorted(lines, key=lambda path: path.rpartition("/")))
            for path, line in lines.items():
                kind = _fault_kind(file.parent / path)
                if kind == "link":
                    missing.append(f"line {line}: {path}")
                elif kind:
                    listing.faults[kind].append(path)
    if missing:
        raise CarftError(
            f"{file}: {quantity(len(missing), 'image')} not found; correct the paths, which are "
            f"relative to the folder of the file: {quote_names(missing)}"
        )
    _require_distinct_images(file, all_lines)
    return listing


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
        return _list_entries(root).folders
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected a folder with one "
            f"sub-folder per {kind}"
        ) from error


def count_loose_images(root: Path) -> int:
    """Return the number of images directly in ``root``."""
    return len(_list_entries(root).images)


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
        entries = _list_entries(listing.root / folder)
    except OSError:
        listing.faults["path"].append(folder)
        return

    listing.skipped.update(Path(name).suffix.lower() for name in entries.other_files)
    for entry in entries.images:
        path = f"{folder}/{entry.name}"
        listing.images.append(path)
        kind = _fault_kind(entry)
        if kind:
            listing.faults[kind].append(path)
    for name in entries.folders:
        _add_images(listing, f"{folder}/{name}", (*ancestors, real_path))


def _fault_kind(entry: os.DirEntry[str] | Path) -> str:
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


class _Entries(NamedTuple):
    folders: list[str]  # sorted names of sub-folders
    images: list[os.DirEntry[str]]  # with an image's extension
    other_files: list[str]  # names


def _list_entries(folder: Path) -> _Entries:
    """Return the content of a folder."""
    folders = []
    images = []
    other_files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.isdir(entry.path):
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                images.append(entry)
            else:
                other_files.append(entry.name)
    return _Entries(sorted(folders), images, other_files)
