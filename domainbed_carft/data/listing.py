"""What a folder environment/class/picture holds, and whether its pictures can be decoded.

Counts as torchvision's ImageFolder does: links are followed, nested folders belong to their class,
a picture is what has a picture's extension. Listing decodes nothing, but looks at every size: an
empty file is the usual trace of a full disk.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from domainbed_carft import machine
from domainbed_carft.errors import CarftError

if TYPE_CHECKING:
    from PIL import Image

# torchvision.datasets.folder.IMG_EXTENSIONS, without seconds of importing torch.
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Whatever a file is called, Pillow tries no others: PostScript would be given to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

CHUNK = 32  # pictures handed to a process at once


@dataclass(frozen=True)
class Listing:
    """What is below ``root``; all paths are relative to it.

    ``counts``: environment -> class -> pictures, both in sorted order, which is label order.
    ``below``: the sub-folders of each class folder ("art/cat") that has no picture of its own.
    ``pictures``: where they were asked for, all that are counted.

    The next four end a job or give it wrong pictures: files that are ``empty``, links to nothing,
    what cannot be read (folders, links in circles, pipes) and macOS's "._" files, which are no
    pictures though they have their names. ``ignored`` files lie beside the pictures.
    """

    root: Path
    pictures: list[str] | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    below: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    not_pictures: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Damaged:
    """A picture that is not whole, its path below the root.

    A ``truncated`` one is read by DomainBed all the same, with grey where its data ends; others
    end the job.
    """

    path: str
    truncated: bool
    reason: str


def read(root: Path, with_pictures: bool = False) -> Listing:
    """List ``root``. Raises CarftError where it is not a folder, or cannot be read."""
    found = Listing(root, [] if with_pictures else None)
    try:
        environments = _folders(found, "")
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected the folder whose "
            "sub-folders are the environments"
        ) from error
    pairs = []
    for environment in environments:
        found.counts[environment] = {}
        try:
            classes = _folders(found, environment)
            pairs += [(environment, name) for name in classes]
        except OSError:
            found.unreadable.append(environment)
    # Over the network the first listing of a large set takes minutes.
    for environment, name in tqdm(pairs, desc="listing", unit="class", delay=1, disable=None):
        found.counts[environment][name] = _pictures(found, f"{environment}/{name}", ())
    return found


def open_picture(path: str | Path) -> Image.Image:
    """The picture of a file in RGB; as torchvision's loader, but in the ``FORMATS`` alone."""
    from PIL import Image

    with open(path, "rb") as file:
        return Image.open(file, formats=FORMATS).convert("RGB")


def damaged(root: Path, pictures: Sequence[str]) -> list[Damaged]:
    """Decode all ``pictures`` (paths below ``root``); those that are not whole, by path.

    By all cores. Raises CarftError where one of the processes was killed.
    """
    # Not forked: the caller may have threads, torch's among them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(machine.cores(), mp_context=context) as pool:
        seen = pool.map(functools.partial(_look_at, str(root)), pictures, chunksize=CHUNK)
        bar = tqdm(seen, total=len(pictures), desc="decoding", unit="picture", disable=None)
        try:
            found = [one for one in bar if one]
        except BrokenProcessPool as error:
            raise CarftError(
                f"a process that decodes pictures of {root} was killed, most likely for lack of "
                "memory; run it on a machine with more, or with fewer cores (taskset -c 0)"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(found, key=lambda one: one.path)


def _folders(listing: Listing, inside: str) -> list[str]:
    """Sorted names of the sub-folders; pictures beside them are noted as ignored."""
    found = []
    with os.scandir(listing.root / inside) as entries:
        for entry in entries:
            try:
                if entry.is_dir():
                    found.append(entry.name)
                elif entry.name.lower().endswith(PICTURES):
                    listing.ignored.append(os.path.join(inside, entry.name))
            except OSError:  # a link in circles: torchvision ends here
                listing.unreadable.append(os.path.join(inside, entry.name))
    return sorted(found)


def _pictures(listing: Listing, inside: str, above: tuple[tuple[int, int], ...]) -> int:
    """How many pictures are in the folder ``inside`` of the root, and below it.

    ``above`` has the identities of the folders that led here.
    """
    try:
        # Entries of an open folder are looked up in it, not from the root of the file system: that
        # takes a fifth off the time.
        folder = os.open(os.path.join(listing.root, inside), os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        listing.unreadable.append(inside)
        return 0
    try:
        status = os.fstat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link to a folder above: read again and again
            listing.unreadable.append(inside)
            return 0
        found, below = _entries(listing, folder, inside)
    finally:
        os.close(folder)
    if listing.pictures is not None:
        listing.pictures.extend(f"{inside}/{name}" for name in found)
    if not above and not found:
        listing.below[inside] = below
    return len(found) + sum(
        _pictures(listing, f"{inside}/{name}", (*above, here)) for name in below
    )


def _entries(listing: Listing, folder: int, inside: str) -> tuple[list[str], list[str]]:
    """Names of the pictures, and of the sub-folders in order, of an open folder."""
    found, below = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            try:
                if entry.is_dir():
                    below.append(name)
                    continue
            except OSError:  # a link in circles, which ImageFolder takes for a file
                pass
            if not name.lower().endswith(PICTURES):
                listing.ignored.append(f"{inside}/{name}")
                continue
            found.append(name)
            try:
                status = entry.stat()
            except OSError:
                listing.broken_links.append(f"{inside}/{name}")
                continue
            if not stat.S_ISREG(status.st_mode):
                listing.unreadable.append(f"{inside}/{name}")
            elif status.st_size == 0:
                listing.empty.append(f"{inside}/{name}")
            elif name.startswith("._"):
                listing.not_pictures.append(f"{inside}/{name}")
    return found, sorted(below)


def _look_at(root: str, picture: str) -> Damaged | None:
    path = os.path.join(root, picture)
    try:
        _decode(path, forgiving=False)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        reason = str(error).replace(path, picture)
        try:
            _decode(path, forgiving=True)
        except Exception:
            return Damaged(picture, False, reason)
        return Damaged(picture, True, reason)
    return None


def _decode(path: str, forgiving: bool) -> None:
    """To the last line; ``forgiving`` as DomainBed sets it."""
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = forgiving
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, large pictures: both are read
        open_picture(path)
