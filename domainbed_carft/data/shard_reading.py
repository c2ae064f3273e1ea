"""Reading the samples of webdataset's shards: headers and labels, but not the pictures.

Which files belong to a sample is webdataset's own rule.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, Any, NamedTuple

from domainbed_carft.data import listing
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.text import progress

THREADS = 16  # they wait for the storage most of the time
LABEL_EXTENSIONS = (".cls", ".id", ".json")  # of the files that may have a label
LABELS = ("cls", "id", "label")  # extensions, or keys in a JSON object, that may have a label
LARGEST_READ = 1 << 20  # bytes of a header
LARGEST_LABEL = 1 << 16  # bytes of a file with a label

# What tarfile and our checks raise for a file that is not a shard.
_FAULTS = (
    tarfile.TarError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
)


class Sample(NamedTuple):
    """A picture with its label. Sorts as the files of class folders are listed."""

    label: int
    name: str
    shard: int
    offset: int  # in bytes, as the size
    size: int
    key: str  # the name with its folders in the archive


def read_samples(shards: Sequence[Path], labels: Mapping[str, int]) -> list[Sample]:
    """The samples in the ``shards``, sorted; ``labels`` of the classes by name.

    Raises CarftError for an archive that is not a shard of pictures with labels, and for a sample
    that appears twice.
    """
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise CarftError("pictures in shards need webdataset: pip install webdataset") from error

    def read_shard(numbered_path: tuple[int, Path]) -> list[Sample]:
        number, path = numbered_path
        try:
            with path.open("rb") as file, _open_archive(file) as archive:
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
        results = pool.imap(read_shard, enumerate(shards))
        bar = progress(results, description="indexing", total=len(shards), unit="shard", delay=1)
        samples = sorted(sample for shard_samples in bar for sample in shard_samples)
    _require_unique_names(samples, shards)
    return samples


def _reason(error: BaseException) -> str:
    """What is wrong with a shard, in one line."""
    if isinstance(error, RecursionError):
        return "it has hundreds of headers for one file"
    if isinstance(error, (OverflowError, MemoryError)):
        return "it has a size or an offset that no file has"
    return " ".join(str(error).split())[:300]


def _require_unique_names(samples: Sequence[Sample], shards: Sequence[Path]) -> None:
    """Raise CarftError for two samples of one name: it is unknown which label is right."""
    counts = Counter(sample.key for sample in samples)
    repeated = min((key for key, number in counts.items() if number > 1), default=None)
    if repeated is None:
        return

    pair = [sample for sample in samples if sample.key == repeated][:2]
    places = [f"in {shards[sample.shard]} with the label {sample.label}" for sample in pair]
    raise CarftError(
        f"the sample {repeated[:80]!r} appears twice, {' and '.join(places)}. Expected each once: "
        "remove one, or the shard that is there in two copies"
    )


class _BoundedReads:
    """A file without large reads: tarfile would read a header of any size that it claims."""

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


def _open_archive(file: IO[bytes]) -> tarfile.TarFile:
    bounded: Any = _BoundedReads(file)
    return tarfile.open(fileobj=bounded, mode="r:")


def _members(archive: tarfile.TarFile, path: Path, end: int) -> Iterator[dict[str, Any]]:
    """The files in a shard as webdataset has them, but of pictures only offset and size.

    Links and devices are left out. ``end`` is the size of the shard in bytes. Raises ValueError for
    a file that is sparse or cut off.
    """
    for member in archive:
        is_label = member.name.endswith(LABEL_EXTENSIONS)
        if not member.isreg() or not (
            is_label or member.name.lower().endswith(listing.PICTURE_EXTENSIONS)
        ):
            continue
        if member.issparse():
            raise ValueError(f"{member.name[:80]!r} is a sparse file, which webdataset cannot read")
        if not 0 <= member.size <= end - member.offset_data:
            raise ValueError(f"{member.name[:80]!r} is cut off")

        content: Any = (member.offset_data, member.size)
        file = archive.extractfile(member) if is_label else None
        if file:
            content = file.read(LARGEST_LABEL)
        yield {"fname": member.name, "data": content, "__url__": str(path)}


def _sample(sample: Mapping[str, Any], labels: Mapping[str, int], shard: int) -> Sample:
    """The picture and label in webdataset's ``sample``; ValueError or LookupError without one."""
    key = str(sample["__key__"])
    name = key.rpartition("/")[2]
    quoted_name = repr(name[:80])
    pictures = [value for value in sample.values() if isinstance(value, tuple)]
    if len(pictures) != 1:
        raise ValueError(f"the sample {quoted_name} has {len(pictures)} pictures")

    content = _label_content(sample, quoted_name)
    label = _as_number(content, labels)
    if label is None or not 0 <= label < len(labels):
        value = repr(content)[:80] if label is None else label
        raise ValueError(f"the sample {quoted_name} has the label {value}")

    # Labels by another order of the classes, such as ILSVRC2012's own ids, show in such names.
    label_of_name = labels.get(re.split(r"[_.]", name)[0], label)
    if label_of_name != label:
        raise ValueError(
            f"{quoted_name} has the label {label}, but its class has the label {label_of_name}"
        )

    offset, size = pictures[0]
    return Sample(label, name + ".", shard, offset, size, key)


def _label_content(sample: Mapping[str, Any], quoted_name: str) -> Any:
    """The label in the files of a sample: text, or a value of JSON. ValueError, LookupError."""
    contents: Any = {
        kind: sample[kind].decode().strip() for kind in ("cls", "id") if kind in sample
    }
    contents = contents or parsing.parse_json(sample.get("json", b"{}"), unique_keys=True)
    if not isinstance(contents, dict):
        raise ValueError(f"the .json of {quoted_name} holds no object, but {repr(contents)[:80]}")

    label = next((contents[key] for key in LABELS if key in contents), None)
    if label is None:
        raise LookupError(f"the sample {quoted_name} has no label ({', '.join(LABELS)})")
    return label


def _as_number(label: Any, labels: Mapping[str, int]) -> int | None:
    """A label as a number; None for what is neither a class's name nor plainly a whole number."""
    if isinstance(label, str):
        is_number = re.fullmatch("[0-9]{1,9}", label)
        return labels.get(label, int(label) if is_number else None)
    return label if type(label) is int else None
