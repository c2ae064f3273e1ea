"""Pictures in webdataset's shards, which are tar archives: where each one is, and its label.

What belongs to a sample is webdataset's own rule. Only headers and labels are read, once; the index
is kept in the cache folder, for exactly these files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from domainbed_carft import files
from domainbed_carft.data import listing
from domainbed_carft.data.picture_files import Member
from domainbed_carft.errors import CarftError, PassingError
from domainbed_carft.files import parsing
from domainbed_carft.text import progress

LAYOUT = 2
THREADS = 16  # they wait for the storage most of the time
LABELLED = (".cls", ".id", ".json")  # what may say a label
LABELS = ("cls", "id", "label")  # extensions, or keys in a JSON object, of what may say the label
IDENTIFYING_BYTES = 1 << 14  # at the start and at the end, where tar writes up to 10,240 zeros
TAR_BLOCK = 512  # bytes; each picture has a header of one block
LARGEST_READ = 1 << 20  # bytes of a header or a label

_ENTRY = np.dtype(
    "<i8"
)  # of an index: the shard's number, offset, size and label, one after another
_COLUMNS = 4


@dataclass(frozen=True)
class Index(Sequence[tuple[Member, int]]):
    """The pictures of some shards, sorted by label and then by name, as folders list them.

    ``locations``, (N, 3), int64: the number of the shard, offset and size in bytes; ``labels``,
    (N,), int64.
    """

    shards: Sequence[str]
    locations: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        shard, offset, size = self.locations[position].tolist()
        return Member(self.shards[shard], offset, size), int(self.labels[position])


class _Sample(NamedTuple):
    """A picture with its label. Sorts as the files of class folders are listed."""

    label: int
    name: str
    shard: int
    offset: int
    size: int
    key: str  # with its folders in the archive


def index(shards: Sequence[Path], classes: Sequence[str]) -> Index:
    """The index of the ``shards``, made unless it is kept; ``classes`` are in label order.

    A label is a number from 0 on, or a class's name. Raises CarftError for other archives, and for
    a sample that is there twice.
    """
    with ThreadPool(THREADS) as pool:
        identities = pool.map(_identity, shards)
    layout = [LAYOUT, list(classes), identities]
    key = hashlib.sha256(json.dumps(layout).encode("utf-8", "surrogateescape")).digest()
    cached = files.cache_folder() / "shards" / f"{key.hex()[:32]}.index"
    sizes = np.array([path.stat().st_size for path in shards], _ENTRY)

    table = _cached(cached, key, sizes, len(classes))
    if table is None:
        table = _made(shards, {name: label for label, name in enumerate(classes)})
        content = table.tobytes()
        with contextlib.suppress(CarftError):  # a full cache costs time, never a job
            files.save(cached, lambda new: new.write_bytes(_checksum(key, content) + content))
    places, labels = (np.ascontiguousarray(part) for part in (table[:, :3], table[:, 3]))
    return Index([str(path) for path in shards], places, labels)


def _identity(path: Path) -> list[str | int]:
    """What tells a shard from any other file: place, inode, times, size, and its two ends."""
    try:
        place = path.resolve(strict=True)
        if not place.is_file():  # a pipe would be waited for
            raise CarftError(f"{path} is not a file; shards are files, so mount what is elsewhere")
        with place.open("rb") as file:
            status = os.fstat(file.fileno())
            ends = hashlib.sha256(file.read(IDENTIFYING_BYTES))
            file.seek(max(0, status.st_size - IDENTIFYING_BYTES))
            ends.update(file.read(IDENTIFYING_BYTES))
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        raise PassingError(f"{path} cannot be read: {error}; restore the shard") from error
    times = [status.st_mtime_ns, status.st_ctime_ns]
    return [str(place), status.st_ino, *times, status.st_size, ends.hexdigest()]


def _checksum(key: bytes, content: bytes) -> bytes:
    """The SHA-256 of an index's content and of the ``key`` of its shards and classes."""
    return hashlib.sha256(key + content).digest()


def _cached(path: Path, key: bytes, sizes: np.ndarray, classes: int) -> np.ndarray | None:
    """The table (N, 4) that was kept at ``path``; None unless it is whole and of these shards."""
    most = int(sizes.sum()) // TAR_BLOCK * _COLUMNS * _ENTRY.itemsize
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most + len(key):
            return None
        content = path.read_bytes()
    except OSError:
        return None

    rows = content[len(key) :]
    if content[: len(key)] != _checksum(key, rows) or len(rows) % (_COLUMNS * _ENTRY.itemsize):
        return None

    table = np.frombuffer(rows, _ENTRY).reshape(-1, _COLUMNS)
    shard, offset, size, label = table.T
    # Whoever made the checksum anew has changed the file on purpose: nothing may fail later.
    if not (_is_within(shard, len(sizes)) and _is_within(label, classes)):
        return None
    fits = (offset >= 0) & (size >= 0) & (offset <= sizes[shard]) & (size <= sizes[shard] - offset)
    return table if fits.all() and (np.diff(label) >= 0).all() else None


def _is_within(numbers: np.ndarray, end: int) -> bool:
    return bool(((numbers >= 0) & (numbers < end)).all())


def _made(shards: Sequence[Path], labels: Mapping[str, int]) -> np.ndarray:
    """The table (N, 4) of the pictures in the ``shards``; CarftError as `index`."""
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise CarftError("pictures in shards need webdataset: pip install webdataset") from error

    def samples(numbered: tuple[int, Path]) -> list[_Sample]:
        number, path = numbered
        try:
            with path.open("rb") as file, _opened(file) as archive:
                end = os.fstat(file.fileno()).st_size
                grouped = tariterators.group_by_keys(_members(archive, path, end))
                return [_sample(sample, labels, number) for sample in grouped]
        except _FAULTS as error:
            raise CarftError(
                f"{path} is not a shard of pictures with labels: {_reason(error)}. Expected an "
                "uncompressed tar archive with, for each picture such as a.jpg, a.cls with its "
                "label, a number from 0 on by the sorted class folders, or the folder's name"
            ) from error

    with ThreadPool(THREADS) as pool:
        read = pool.imap(samples, enumerate(shards))
        bar = progress(read, description="indexing", total=len(shards), unit="shard", delay=1)
        found = sorted(sample for of_shard in bar for sample in of_shard)
    _require_each_once(found, shards)
    rows = [(sample.shard, sample.offset, sample.size, sample.label) for sample in found]
    return np.array(rows, _ENTRY).reshape(-1, _COLUMNS)


_FAULTS = (
    tarfile.TarError, EOFError, OSError, ValueError, LookupError, TypeError, OverflowError,
    RecursionError, MemoryError,
)  # fmt: skip


def _reason(error: BaseException) -> str:
    """What is wrong with a shard, in one line."""
    if isinstance(error, RecursionError):
        return "it has hundreds of headers for one file"
    if isinstance(error, (OverflowError, MemoryError)):
        return "it has a size or an offset that no file has"
    return " ".join(str(error).split())[:300]


def _require_each_once(samples: Sequence[_Sample], shards: Sequence[Path]) -> None:
    """Raise CarftError for two samples of one name: nothing tells which label is right."""
    counts = Counter(sample.key for sample in samples)
    repeated = min((key for key, number in counts.items() if number > 1), default=None)
    if repeated is None:
        return
    twice = [sample for sample in samples if sample.key == repeated][:2]
    places = [f"in {shards[sample.shard]} with the label {sample.label}" for sample in twice]
    raise CarftError(
        f"the sample {repeated[:80]!r} appears twice, {' and '.join(places)}. Expected each once: "
        "remove one, or the shard that is there in two copies"
    )


class _BoundedReads:
    """A file of which no single read is large: tarfile reads a header as long as it says it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise ValueError(
                f"it has a header of {size:,} bytes, expected at most {LARGEST_READ:,}"
            )
        return self._file.read(size)


def _opened(file: IO[bytes]) -> tarfile.TarFile:
    bounded: Any = _BoundedReads(file)
    return tarfile.open(fileobj=bounded, mode="r:")


def _members(archive: tarfile.TarFile, path: Path, end: int) -> Iterator[dict[str, Any]]:
    """The files in a shard as webdataset has them, but for pictures only their places.

    Links and devices are no files. ``end`` is the size of the shard in bytes.
    """
    for member in archive:
        is_label = member.name.endswith(LABELLED)
        if not member.isreg() or not (
            is_label or member.name.lower().endswith(listing.PICTURE_EXTENSIONS)
        ):
            continue
        if member.issparse():
            raise ValueError(f"{member.name[:80]!r} is a sparse file, which webdataset cannot read")
        if not 0 <= member.size <= end - member.offset_data:
            raise ValueError(f"{member.name[:80]!r} is cut off")

        content: Any = member.offset_data, member.size
        if is_label and (file := archive.extractfile(member)):
            content = file.read(1 << 16)
        yield {"fname": member.name, "data": content, "__url__": str(path)}


def _sample(sample: Mapping[str, Any], labels: Mapping[str, int], shard: int) -> _Sample:
    """The picture and label in webdataset's ``sample``; ValueError or LookupError without one."""
    key = str(sample["__key__"])
    name = key.rpartition("/")[2]
    shown = repr(name[:80])
    places = [value for value in sample.values() if isinstance(value, tuple)]
    if len(places) != 1:
        raise ValueError(f"the sample {shown} has {len(places)} pictures")

    given = _given_label(sample, shown)
    label = _as_number(given, labels)
    if label is None or not 0 <= label < len(labels):
        found = repr(given)[:80] if label is None else label
        raise ValueError(f"the sample {shown} has the label {found}")

    # Labels by another order of the classes, as ILSVRC2012's own ids are, show in such names.
    of_name = labels.get(re.split(r"[_.]", name)[0], label)
    if of_name != label:
        raise ValueError(f"{shown} has the label {label}, but its class has the label {of_name}")
    offset, size = places[0]
    return _Sample(label, name + ".", shard, offset, size, key)


def _given_label(sample: Mapping[str, Any], shown: str) -> Any:
    """What the files of a sample say: text, or a value of JSON."""
    given: Any = {kind: sample[kind].decode().strip() for kind in ("cls", "id") if kind in sample}
    given = given or parsing.parse_json(sample.get("json", b"{}"), unique_keys=True)
    if not isinstance(given, dict):
        raise ValueError(f"the .json of {shown} holds no object, but {repr(given)[:80]}")
    label = next((given[key] for key in LABELS if key in given), None)
    if label is None:
        raise LookupError(f"the sample {shown} has no label ({', '.join(LABELS)})")
    return label


def _as_number(given: Any, labels: Mapping[str, int]) -> int | None:
    """A label as a number; None for what is neither a class's name nor plainly a whole number."""
    if isinstance(given, str):
        plain = re.fullmatch("[0-9]{1,9}", given)
        return labels.get(given, int(given) if plain else None)
    return given if type(given) is int else None
