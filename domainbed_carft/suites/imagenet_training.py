"""Where ILSVRC2012's training set is below a data folder, and whether it is complete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from domainbed_carft.data import listing, shards
from domainbed_carft.data import verify as verification
from domainbed_carft.data.benchmarks import imagenet_ids, missing_data_dir
from domainbed_carft.data.comparison import quoted_names
from domainbed_carft.errors import CarftError

# Below the data folder, as in mlfoundations/model-soups, datasets.md.
PLACES = ("imagenet", "ILSVRC2012")
PICTURES = 1_281_167
EDITION = "ILSVRC2012"


@dataclass(frozen=True)
class TrainingSet:
    """A copy in ``place``: in the class folders of ``place/train``, or in ``archives`` if any."""

    place: Path
    archives: Sequence[Path] = ()

    @property
    def folder(self) -> Path:
        """The folder of the class folders; for archives it need not exist."""
        return self.place / "train"


def find_training_set(data_dir: str | Path | None) -> TrainingSet | None:
    """The copy in the first of PLACES that has one."""
    for name in PLACES if data_dir else ():
        place = Path(data_dir or "", name)
        if archives := sorted(place.glob("*train-*.tar")):
            return TrainingSet(place, archives)
        if os.path.isdir(place / "train"):
            return TrainingSet(place)
    return None


def expected_folder(data_dir: str) -> str:
    """The folder that a job will read, or else the first that it looks for."""
    copy = find_training_set(data_dir)
    if copy is None:
        return os.path.join(data_dir, PLACES[0], "train")
    return str(copy.place if copy.archives else copy.folder)


def missing_problems(data_dir: str | Path | None) -> list[str]:
    """A sentence if the training set is not below ``data_dir``."""
    if find_training_set(data_dir):
        return []
    if data_dir and (absent := missing_data_dir(data_dir)):
        return absent
    return [
        f"ImageNet needs --data_dir, a folder with {' or '.join(PLACES)}, and in that train, a "
        "folder of pictures for each WordNet id, or shards of webdataset, train-000000.tar and "
        f"so on, not {data_dir}. image-net.org has the pictures"
    ]


def folder_problems(folder: Path, names: Sequence[str]) -> list[str]:
    """A sentence unless the class folders ``names`` are the 1,000 WordNet ids."""
    if list(names) == [*imagenet_ids()]:
        return []
    lacking = sorted({*imagenet_ids()} - {*names})
    extra = sorted({*names} - {*imagenet_ids()})
    return [
        f"{folder} does not have the 1,000 WordNet ids of ILSVRC2012 as its folders: missing "
        f"{quoted_names(lacking) or 'none'}, extra {quoted_names(extra) or 'none'}. Labels "
        "go by position: restore the folders"
    ]


def report(
    copy: TrainingSet, counts: Mapping[str, int], problems: Sequence[str], expected: int = PICTURES
) -> verification.DataReport:
    """What is found of a copy with ``counts`` pictures of each class, and its ``problems``."""
    problems = list(problems)
    empty = [name for name, number in counts.items() if not number]
    if empty:
        problems.append(f"{len(empty):,} of 1,000 classes have no picture: {quoted_names(empty)}")

    total = sum(counts.values())
    differences = []
    if total != expected:
        differences.append(f"has {total:,} pictures, expected {expected:,}")
    edition = None if problems or differences else EDITION
    return verification.DataReport(
        "ImageNet", copy.place, {"train": counts}, problems, differences, (), edition
    )


def verify(data_dir: str | Path, decode: bool = False) -> verification.DataReport:
    """What is found of the training set below ``data_dir``; CarftError if there is none.

    ``decode`` reads every picture of class folders; those in archives are not read.
    """
    copy = find_training_set(data_dir)
    if copy is None:
        raise CarftError(*missing_problems(data_dir))
    if copy.archives:
        labels = shards.index(copy.archives, imagenet_ids()).labels
        numbers = np.bincount(labels, minlength=len(imagenet_ids())).tolist()
        return report(copy, dict(zip(imagenet_ids(), numbers)), ())

    listed_copy = listing.list_classes(copy.folder)
    (folder_counts,) = listed_copy.counts.values()
    problems = [*folder_problems(copy.folder, list(folder_counts)), *listed_copy.problems]
    # A class without a folder is named by the sentence on folders.
    counts = {name: folder_counts[name] for name in imagenet_ids() if name in folder_counts}

    odd_paths = {path for paths in listed_copy.faults.values() for path in paths}
    readable = [f"train/{path}" for path in listed_copy.pictures if path not in odd_paths]
    judgement = replace(report(copy, counts, problems), decoded=decode)
    return verification.with_decoding_faults(judgement, readable)
