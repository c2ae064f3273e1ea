"""What a folder environment/class/picture holds, and whether its pictures can be decoded.

Counts as torchvision's ImageFolder does: links are followed, nested folders belong to their class,
a picture is what has a picture's extension.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from domainbed_carft import machine
from domainbed_carft.data.comparison import quoted_names
from domainbed_carft.errors import CarftError, PassingError
from domainbed_carft.text import counted, progress

if TYPE_CHECKING:
    from PIL import Image

# torchvision.datasets.folder.IMG_EXTENSIONS, without seconds of importing torch.
PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Whatever a file is called, Pillow tries no others: PostScript would be given to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

# Of a picture, in bytes: more than Pillow's limit of pixels takes without compression. Pillow reads
# files of some formats whole, before it knows how many pixels they have.
LARGEST_FILE = 1 << 30

# What ends a job or gives it wrong pictures, and what to do about it.
FAULT_KINDS = {
    "empty file": "(download again)",
    "link": "to nothing (restore the target)",
    "path": "that cannot be read (repair or delete)",
    "macOS file": "with a picture's name (delete)",
}


@dataclass(frozen=True)
class Listing:
    """What is below ``root``; all paths are relative to it."""

    root: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # sorted, which is label order
    pictures: list[str] = field(default_factory=list)  # all that are counted
    faults: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in FAULT_KINDS})

    @property
    def problems(self) -> list[str]:
        """A sentence for each kind that is there."""
        odd = {kind: paths for kind, paths in self.faults.items() if paths}
        return [f"{counted(len(odd[k]), k)} {FAULT_KINDS[k]}: {quoted_names(odd[k])}" for k in odd]


@dataclass(frozen=True)
class DamagedPicture:
    """A picture that ends the job; a ``truncated`` one is only grey where its data ends."""

    path: str
    truncated: bool
    reason: str


def list_environments(root: Path) -> Listing:
    """List ``root``. Raises CarftError where it is not a folder, or cannot be read."""
    found = Listing(root)
    try:
        environments, _ = _entries(root)
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected a folder with one "
            "sub-folder per environment"
        ) from error
    pairs = []
    for environment in environments:
        found.counts[environment] = {}
        try:
            pairs += [(environment, name) for name in _entries(root / environment)[0]]
        except OSError:
            found.faults["path"].append(environment)
    return _filled(found, pairs)


def list_classes(root: Path, names: Container[str] | None = None) -> Listing:
    """List a folder class/picture, as its one environment ""; of the classes ``names``, or all.

    Raises CarftError where it is not a folder, or cannot be read.
    """
    found = Listing(root, counts={"": {}})
    try:
        classes, _ = _entries(root)
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected a folder with one "
            "sub-folder per class"
        ) from error
    chosen = [name for name in classes if names is None or name in names]
    return _filled(found, [("", name) for name in chosen])


def loose_pictures(root: Path) -> int:
    """The number of files with a picture's extension that lie in ``root`` itself."""
    return len(_entries(root)[1])


def _filled(found: Listing, pairs: Sequence[tuple[str, str]]) -> Listing:
    """With the pictures of these classes; over the network a large set takes minutes."""
    about = f"listing {found.root.name}"
    for environment, name in progress(pairs, description=about, unit="class", delay=1):
        before = len(found.pictures)
        _add_pictures(found, os.path.join(environment, name), ())
        found.counts[environment][name] = len(found.pictures) - before
    return found


class Member(NamedTuple):
    """A part of a file: ``size`` bytes from ``offset`` on."""

    path: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.path} (bytes {self.offset:,} to {self.offset + self.size:,})"


@contextlib.contextmanager
def open_regular(path: str | Path | Member) -> Iterator[tuple[BufferedReader, int]]:
    """Open a picture's file at its first byte; with it, how many bytes belong to the picture.

    Waits for no pipe. Raises OSError if it is no regular file, or larger than LARGEST_FILE.
    """
    name = path.path if isinstance(path, Member) else path
    with open(name, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is a pipe, a socket or a device, expected a regular file")
        size = status.st_size
        if isinstance(path, Member):
            file.seek(path.offset)
            size = min(path.size, max(0, size - path.offset))
        if size > LARGEST_FILE:
            raise OSError(f"it has {size:,} bytes, expected at most {LARGEST_FILE:,}")
        yield file, size


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def open_picture(path: str | Path | Member) -> Image.Image:
    """The picture of a file in RGB; as torchvision's loader, but in the ``FORMATS`` alone.

    Raises OSError if it is no regular file, or larger than LARGEST_FILE; what Pillow raises.
    """
    from PIL import Image

    with open_regular(path) as (whole, size):
        file: IO[bytes] = whole
        if isinstance(path, Member):
            file = io.BytesIO(whole.read(size))
        return Image.open(file, formats=FORMATS).convert("RGB")


def read_picture(reader: Callable[[Any], Any], path: str | Member) -> Any:
    """What `reader` makes of a picture. Raises PassingError, naming it, for one it cannot read."""
    try:
        return reader(path)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PassingError(
            f"{path} cannot be read: {reason}. Expected a picture that Pillow opens; restore the "
            "file, or remove it (which changes the splits). `carft data verify --decode` lists "
            "all such files"
        ) from error


def damaged_pictures(root: Path, pictures: Sequence[str]) -> list[DamagedPicture]:
    """Decode all ``pictures`` (paths below ``root``); those that are not whole, sorted."""
    from PIL import ImageFile

    pictures = sorted(pictures)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings(), ThreadPool(machine.cores()) as pool:
            warnings.simplefilter("ignore")  # odd metadata, large pictures: both are read
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            # Threads suffice: Pillow decodes without the interpreter's lock.
            faults = pool.imap(functools.partial(_fault, root), pictures, chunksize=32)
            bar = progress(
                faults, total=len(pictures), description="decoding", unit="picture", delay=1
            )
            bad = [(path, fault) for path, fault in zip(pictures, bar) if fault]
            ImageFile.LOAD_TRUNCATED_IMAGES = True  # as DomainBed sets it
            return [DamagedPicture(path, not _fault(root, path), fault) for path, fault in bad]
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _fault(root: Path, picture: str) -> str:
    """Why a picture cannot be decoded, "" if it can."""
    path = os.path.join(root, picture)
    try:
        open_picture(path)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        return str(error).replace(path, picture) or type(error).__name__
    return ""


def _add_pictures(found: Listing, inside: str, above: tuple[str, ...]) -> None:
    """Those of the folder ``inside``, and below it; ``above`` are the folders that led here."""
    here = os.path.realpath(found.root / inside)
    try:
        if here in above:  # a link to a folder above: torchvision reads it again and again
            raise OSError
        folders, files = _entries(found.root / inside)
    except OSError:
        found.faults["path"].append(inside)
        return
    for entry in files:
        path = f"{inside}/{entry.name}"
        found.pictures.append(path)
        if kind := _odd(entry):
            found.faults[kind].append(path)
    for name in folders:
        _add_pictures(found, f"{inside}/{name}", (*above, here))


def _odd(entry: os.DirEntry[str]) -> str:
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


def _entries(folder: Path) -> tuple[list[str], list[os.DirEntry[str]]]:
    """Sorted names of the sub-folders, and the entries that have a picture's extension."""
    folders, pictures = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.isdir(entry.path):
                folders.append(entry.name)
            elif entry.name.lower().endswith(PICTURE_EXTENSIONS):
                pictures.append(entry)
    return sorted(folders), pictures
