"""ILSVRC2012's training set: its place below a data folder, and its verification."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from domainbed_carft.data import listing, verification
from domainbed_carft.data.benchmarks import data_dir_problems, imagenet_ids
from domainbed_carft.data.comparison import quote_names
from domainbed_carft.errors import CarftError

# Below the data folder, see mlfoundations/model-soups, datasets.md.
PLACES = ("imagenet", "ILSVRC2012")
IMAGES = 1_281_167
EDITION = "ILSVRC2012"


def find_training_set(data_dir: str | Path | None) -> Path | None:
    """Return the folder of the class folders in the first of PLACES that exists, or None."""
    candidates = [Path(data_dir, name, "train") for name in PLACES] if data_dir else []
    return next(filter(os.path.isdir, candidates), None)


def expected_folder(data_dir: str) -> str:
    """Return the folder that a job will read, or the first one that it looks for."""
    return str(find_training_set(data_dir) or Path(data_dir, PLACES[0], "train"))


def training_set_problems(data_dir: str | Path | None) -> list[str]:
    """Return a sentence if the training set is not below ``data_dir``."""
    if find_training_set(data_dir):
        return []
    if data_dir and (problems := data_dir_problems(data_dir)):
        return problems
    return [
        f"ImageNet needs --data_dir, a folder with {' or '.join(PLACES)}, which contains train "
        f"with a folder of images for each WordNet id, not {data_dir}. image-net.org has the images"
    ]


def folder_problems(folder: Path, names: Sequence[str]) -> list[str]:
    """Return a sentence unless the class folders ``names`` are the 1,000 WordNet ids."""
    if list(names) == [*imagenet_ids()]:
        return []
    missing = sorted({*imagenet_ids()} - {*names})
    extra = sorted({*names} - {*imagenet_ids()})
    return [
        f"{folder} does not have the 1,000 WordNet ids of ILSVRC2012 as its folders: missing "
        f"{quote_names(missing) or 'none'}, extra {quote_names(extra) or 'none'}. Labels "
        "are numbered by position: restore the folders"
    ]


def report(
    folder: Path, counts: Mapping[str, int], problems: Sequence[str], expected: int = IMAGES
) -> verification.DataReport:
    """Report on class folders with ``counts`` images per class, and known ``problems``."""
    problems = list(problems)
    empty = [name for name, number in counts.items() if not number]
    if empty:
        problems.append(f"{len(empty):,} of 1,000 classes have no image: {quote_names(empty)}")

    total = sum(counts.values())
    differences = []
    if total != expected:
        differences.append(f"has {total:,} images, expected {expected:,}")
    edition = None if problems or differences else EDITION
    return verification.DataReport(
        "ImageNet", folder.parent, {"train": counts}, problems, differences, (), edition
    )


def verify(data_dir: str | Path, decode: bool = False) -> verification.DataReport:
    """Verify the training set below ``data_dir``; raise CarftError if it is missing."""
    folder = find_training_set(data_dir)
    if folder is None:
        raise CarftError(*training_set_problems(data_dir))

    listed_copy = listing.list_classes(folder)
    (folder_counts,) = listed_copy.counts.values()
    problems = [*folder_problems(folder, list(folder_counts)), *listed_copy.problems]
    # Classes without a folder are already listed by `folder_problems`.
    counts = {name: folder_counts[name] for name in imagenet_ids() if name in folder_counts}

    faulty_paths = {path for paths in listed_copy.faults.values() for path in paths}
    readable = [f"train/{path}" for path in listed_copy.images if path not in faulty_paths]
    counts_report = replace(report(folder, counts, problems), decoded=decode)
    return verification.add_decoding_faults(counts_report, readable)
