"""From the archives as they are published to the folders that DomainBed reads.

Layouts and steps after upstream file domainbed/scripts/download.py at b93c22a.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

from domainbed_carft.data import benchmarks
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing

# Benchmark -> the folder in its archive that has all of it.
INNER = {"PACS": "kfold", "VLCS": "VLCS", "OfficeHome": "OfficeHomeDataset_10072016"}

TERRA_PICTURES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_FILES = tuple(
    f"{part}_annotations.json"
    for part in ("cis_test", "cis_val", "train", "trans_test", "trans_val")
)
TERRA_ARCHIVE = "eccv_18_annotations.tar.gz"
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"
DUPLICATES = 9431  # lines of that file at b93c22a


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Make the folder ``ready`` of the benchmark ``name`` from what its archives held.

    Raises BadFile for a list or an annotation file that is damaged, CarftError where the archives
    hold something else than they are known for, or name files that are not theirs.
    """
    if name == "DomainNet":
        _domain_net(unpacked, ready)
    elif name == "TerraIncognita":
        _terra_incognita(unpacked, ready)
    else:
        _required(unpacked / INNER[name]).rename(ready)


def _domain_net(unpacked: Path, ready: Path) -> None:
    """Six archives of a folder each, and the list of what is in them twice."""
    folders = [environment.folder for environment in benchmarks.get("DomainNet").environments]
    form = re.compile(rf"({'|'.join(folders)})/[^/]+/[^/]+")
    text = _required(unpacked / DOMAIN_NET_DUPLICATES).read_text("utf-8", errors="replace")
    lines = text.split()
    whole = [line for line in lines if form.fullmatch(line) and os.path.normpath(line) == line]
    if len(lines) != DUPLICATES or whole != lines:
        raise BadFile(
            DOMAIN_NET_DUPLICATES,
            f"is damaged or another list: {len(whole):,} of its {len(lines):,} lines are "
            f"environment/class/picture, expected {DUPLICATES:,}",
        )
    ready.mkdir()
    for folder in folders:
        _required(unpacked / folder).rename(ready / folder)
    for line in lines:
        (ready / line).unlink(missing_ok=True)


def _terra_incognita(unpacked: Path, ready: Path) -> None:
    """One folder of pictures, and annotation files that say where each was taken, and of what."""
    pictures = _required(unpacked / TERRA_PICTURES)
    folder = _required(unpacked / TERRA_ANNOTATIONS)
    images: dict[object, tuple[str, str]] = {}  # picture id -> location and file
    seen: defaultdict[object, set[str]] = defaultdict(set)  # picture id -> what is on it
    for name in TERRA_FILES:
        file = _required(folder / name)
        try:
            content = parsing.parse_json(file.read_bytes())
            for item in content["images"]:
                images[item["id"]] = (str(item["location"]), str(item["file_name"]))
            categories = {item["id"]: str(item["name"]) for item in content["categories"]}
            for item in content["annotations"]:
                seen[item["image_id"]].add(categories.get(item["category_id"], ""))
        except (ValueError, LookupError, TypeError) as error:
            fault = f"is damaged: its {name} is not JSON with images, categories and annotations"
            raise BadFile(TERRA_ARCHIVE, fault) from error
    for _, file_name in images.values():
        # Else another file of this machine could be called a picture.
        if file_name in ("", ".", "..") or "/" in file_name or "\0" in file_name:
            raise CarftError(
                f"{TERRA_ARCHIVE} names a picture {file_name!r} outside the folder of pictures; "
                "nothing was installed. Do not use this archive"
            )
    known = benchmarks.get("TerraIncognita")
    folders = [environment.folder for environment in known.environments]
    for picture, (location, file_name) in images.items():
        for category in seen[picture] & set(known.classes):
            if f"location_{location}" in folders:
                place = ready / f"location_{location}" / category
                place.mkdir(parents=True, exist_ok=True)
                # Copied, as upstream does: a picture may belong to two classes.
                shutil.copyfile(_required(pictures / file_name), place / file_name)


def _required(path: Path) -> Path:
    if not path.exists():
        raise CarftError(
            f"the archives lack {path.name!r} (expected in {path.parent}): they are not the "
            "edition that DomainBed uses. Replace or delete them in the folder archives beside "
            "it, then rerun the command"
        )
    return path
