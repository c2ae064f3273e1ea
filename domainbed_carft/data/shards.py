"""Pictures in webdataset's shards, which are tar archives: where each one is, and its label.

What belongs to a sample is webdataset's own rule. Only headers and labels are read, once; the index
is kept in the cache folder, under the shards' names, sizes and times of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft import files
from domainbed_carft.data import listing
from domainbed_carft.data.listing import Member
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.text import progress

Sample = tuple[int, str, int, int, int]  # label, name, shard, offset, size

LAYOUT = 1
THREADS = 16  # they wait for the storage most of the time
LABELLED = (".cls", ".id", ".json")  # what may say a label
LABELS = ("cls", "id", "label")  # extensions, or keys in a JSON object, of what may say the label


@dataclass(frozen=True)
class Index(Sequence[tuple[Member, int]]):
    """The pictures of some shards, sorted by label and then by name, as folders list them.

    ``places``, (N, 3), int64: the number of the shard, offset and size in bytes; ``labels``, (N,).
    """

    shards: Sequence[str]
    places: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: Any) -> Any:
        shard, offset, size = self.places[position].tolist()
        return Member(self.shards[shard], offset, size), int(self.labels[position])


def index(shards: Sequence[Path], classes: Sequence[str]) -> Index:
    """The index of the ``shards``, made unless it is kept; ``classes`` are in label order.

    A label is a number from 0 on, or a class's name. Raises CarftError for other archives.
    """
    status = [(path, path.stat()) for path in shards]
    told = [LAYOUT, *classes, *([p.name, s.st_size, s.st_mtime_ns] for p, s in status)]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    kept = files.cache_folder() / "shards" / f"{digest}.npz"
    try:
        with np.load(kept) as there:
            places, labels = there["places"], there["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        places, labels = _made(shards, {name: label for label, name in enumerate(classes)})
        with contextlib.suppress(CarftError):  # a full cache costs time, never a job
            files.save(kept, lambda new: np.savez(new.open("wb"), places=places, labels=labels))
    return Index([str(path) for path in shards], places, labels)


def _made(shards: Sequence[Path], labels: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise CarftError("pictures in shards need webdataset: pip install webdataset") from error

    def samples(numbered: tuple[int, Path]) -> list[Sample]:
        number, path = numbered
        try:
            with tarfile.open(path, "r:") as archive:
                grouped = tariterators.group_by_keys(_members(archive, path))
                return [_sample(sample, labels, number) for sample in grouped]
        except (tarfile.TarError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
            raise CarftError(
                f"{path} is not a shard of pictures with labels: {error}. Expected an uncompressed "
                "tar archive with, for each picture such as a.jpg, a.cls with its label, a number "
                "from 0 on by the sorted class folders, or the folder's name"
            ) from error

    with ThreadPool(THREADS) as pool:
        read = pool.imap(samples, enumerate(shards))
        bar = progress(read, description="indexing", total=len(shards), unit="shard", delay=1)
        found = sorted(one for of_shard in bar for one in of_shard)
    table = np.array([(*place, label) for label, _, *place in found], np.int64).reshape(-1, 4)
    return table[:, :3], table[:, 3]


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[dict[str, Any]]:
    """The files in a shard as webdataset has them, but for pictures only their places."""
    for member in archive:
        content: Any = member.offset_data, member.size
        if member.name.endswith(LABELLED) and (file := archive.extractfile(member)):
            content = file.read(1 << 16)
        elif not (member.isreg() and member.name.lower().endswith(listing.PICTURES)):
            continue
        yield {"fname": member.name, "data": content, "__url__": str(path)}


def _sample(sample: Mapping[str, Any], labels: Mapping[str, int], shard: int) -> Sample:
    """Raises ValueError or LookupError, saying what is odd."""
    name = str(sample["__key__"]).rpartition("/")[2]
    places = [value for value in sample.values() if isinstance(value, tuple)]
    if len(places) != 1:
        raise ValueError(f"the sample {name!r} has {len(places)} pictures")
    said = {kind: sample[kind].decode().strip() for kind in ("cls", "id") if kind in sample}
    said = said or parsing.parse_json(sample.get("json", b"{}"))
    told = next((said[key] for key in LABELS if key in said), None)
    if told is None:
        raise LookupError(f"the sample {name!r} has no label ({', '.join(LABELS)})")
    label = labels[told] if told in labels else int(told)
    if not 0 <= label < len(labels):
        raise ValueError(f"the sample {name!r} has the label {label}")
    # Labels by another order of the classes, as ILSVRC2012's own ids are, show in such names.
    of_name = labels.get(re.split(r"[_.]", name)[0], label)
    if of_name != label:
        raise ValueError(f"{name!r} has the label {label}, but its class has the label {of_name}")
    return label, name + ".", shard, *places[0]
