"""What a folder environment/class/picture holds, read from its directories alone.

Counts as torchvision's ImageFolder does: links are followed, nested folders belong to their class,
a picture is what has a picture's extension. Nothing is decoded (``decoding``), but every size is
looked at: an empty file is the usual trace of a full disk.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageFile
from tqdm import tqdm

from domainbed_carft import machine
from domainbed_carft.errors import CarftError

CHUNK = 32  # pictures handed to a process at once

# torchvision.datasets.folder.IMG_EXTENSIONS, without seconds of importing torch.
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass
class Oddities:
    """Paths, relative to the root, of what is not as ImageFolder would like it.

    ``empty`` files, ``broken_links``, ``irregular`` files (pipes, sockets, devices) and
    ``resource_forks`` (macOS's "._" files) have a picture's name and fail when read.
    ``other_files`` have none and are not read, as ``loose`` pictures, which are in no class folder.
    ``nested`` folders lie below a class; all pictures of an ``only_below`` class are in those.
    ``loops`` are links to a folder above them, ``unreadable`` folders that cannot be opened, and
    links in the place of a folder that cannot be followed.
    """

    empty: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    resource_forks: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    only_below: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """``counts``: environment -> class -> pictures, both in sorted order, which is label order.

    ``pictures``: their paths below ``root``, where they were asked for.
    """

    root: Path
    counts: Mapping[str, Mapping[str, int]]
    oddities: Oddities
    pictures: tuple[str, ...] = ()


def read(root: Path, with_pictures: bool = False) -> Listing:
    """List ``root``. Raises CarftError where it is no folder, or cannot be read."""
    odd = Oddities()
    try:
        environments = _folders(root, "", odd)
    except OSError as error:
        raise CarftError(
            f"{root} cannot be read as a folder ({error.strerror}); expected the folder whose "
            "sub-folders are the environments"
        ) from error
    classes: dict[str, list[str]] = {}
    for environment in environments:
        classes[environment] = _folders_or_none(root, environment, odd)
    pictures: list[str] | None = [] if with_pictures else None
    counts: dict[str, dict[str, int]] = {environment: {} for environment in environments}
    pairs = [(e, c) for e in environments for c in classes[e]]
    # Over the network the first listing of a large set takes minutes.
    for environment, name in tqdm(pairs, desc="listing", unit="class", delay=1, disable=None):
        inside = f"{environment}/{name}"
        counts[environment][name] = _pictures(str(root), inside, odd, pictures, ())
    return Listing(root, counts, odd, tuple(pictures or ()))


def _folders_or_none(root: Path, inside: str, odd: Oddities) -> list[str]:
    try:
        return _folders(root, inside, odd)
    except OSError:
        odd.unreadable.append(inside)
        return []


def _folders(root: Path, inside: str, odd: Oddities) -> list[str]:
    """Sorted names of the sub-folders; pictures beside them are noted as loose."""
    found = []
    with os.scandir(root / inside) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if is_folder:
                found.append(entry.name)
            elif is_folder is None:  # torchvision ends here
                odd.unreadable.append(os.path.join(inside, entry.name))
            elif entry.name.lower().endswith(PICTURES):
                odd.loose.append(os.path.join(inside, entry.name))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether a folder is there; None for a link in circles, or to where one may not look."""
    try:
        return entry.is_dir()
    except OSError:
        return None


def _pictures(
    root: str, inside: str, odd: Oddities, pictures: list[str] | None, above: tuple[object, ...]
) -> int:
    """How many pictures are in the folder ``inside`` of ``root``, and below it.

    ``above`` has the identities of the folders that led here.
    """
    try:
        # Entries of an open folder are looked up in it, not from the root of the file system: that
        # takes a fifth off the time.
        folder = os.open(os.path.join(root, inside), os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        odd.unreadable.append(inside)
        return 0
    try:
        status = os.fstat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            odd.loops.append(inside)
            return 0
        found, below = _entries(folder, inside, odd)
    finally:
        os.close(folder)
    if pictures is not None:
        pictures.extend(f"{inside}/{name}" for name in found)
    count = len(found)
    for name in sorted(below):
        odd.nested.append(f"{inside}/{name}")
        count += _pictures(root, f"{inside}/{name}", odd, pictures, (*above, here))
    if not above and count and not found:
        odd.only_below.append(inside)
    return count


def _entries(folder: int, inside: str, odd: Oddities) -> tuple[list[str], list[str]]:
    """Names of the pictures and of the sub-folders of an open folder."""
    found, below = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                below.append(name)
                continue
            if not name.lower().endswith(PICTURES):
                odd.other_files.append(f"{inside}/{name}")
                continue
            found.append(name)
            try:
                status = entry.stat()
            except OSError:
                odd.broken_links.append(f"{inside}/{name}")
                continue
            if not stat.S_ISREG(status.st_mode):
                odd.irregular.append(f"{inside}/{name}")
            elif status.st_size == 0:
                odd.empty.append(f"{inside}/{name}")
            elif name.startswith("._"):
                odd.resource_forks.append(f"{inside}/{name}")
    return found, below


@dataclass(frozen=True)
class Damaged:
    """A picture that is not whole, its path below the root.

    A ``truncated`` one is read by DomainBed all the same, with grey where its data ends; others
    end the job.
    """

    path: str
    truncated: bool
    reason: str


def damaged(root: Path, pictures: Sequence[str], workers: int | None = None) -> list[Damaged]:
    """Decode all ``pictures`` (paths below ``root``); those that are not whole, by path.

    ``workers`` processes, as many as there are cores for this one unless given. Raises CarftError
    where one of them was killed.
    """
    workers = workers or machine.cores()
    look = functools.partial(_look_at, str(root))
    # Not forked: the caller may have threads, torch's among them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        seen = pool.map(look, pictures, chunksize=CHUNK)
        bar = tqdm(seen, total=len(pictures), desc="decoding", unit="picture", disable=None)
        try:
            found = [one for one in bar if one]
        except BrokenProcessPool as error:
            raise CarftError(
                f"a process that decodes pictures of {root} was killed, most likely for want of "
                "memory; run it again on a machine with more, or with fewer cores (taskset -c 0)"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(found, key=lambda one: one.path)


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
    """As torchvision's loader does it; ``forgiving`` as DomainBed sets it."""
    ImageFile.LOAD_TRUNCATED_IMAGES = forgiving
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, large pictures: both are read
        with open(path, "rb") as file:
            Image.open(file).convert("RGB")
