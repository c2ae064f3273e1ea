"""From the archives as they are published to the folders that DomainBed reads.

Layouts and steps after upstream file domainbed/scripts/download.py at b93c22a. Everything is moved
within one folder, so no picture is written twice.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import benchmarks
from domainbed_carft.errors import CarftError

TERRA_PICTURES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_FILES = tuple(
    f"{part}_annotations.json"
    for part in ("cis_test", "cis_val", "train", "trans_test", "trans_val")
)
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Make the folder ``ready`` of the benchmark ``name`` from what its archives held.

    Raises CarftError where the archives hold something else than they are known for.
    """
    PREPARATIONS[name](unpacked, ready)


def _moved(inner: str) -> Callable[[Path, Path], None]:
    """The archive has all of it in a folder of another name."""

    def move(unpacked: Path, ready: Path) -> None:
        _required(unpacked / inner).rename(ready)

    return move


def _domain_net(unpacked: Path, ready: Path) -> None:
    """Six archives of a folder each, and the list of what is in them twice."""
    ready.mkdir()
    for environment in benchmarks.get("DomainNet").environments:
        _required(unpacked / environment.folder).rename(ready / environment.folder)
    listed = _required(unpacked / DOMAIN_NET_DUPLICATES).read_text(encoding="utf-8").splitlines()
    for line in listed:
        inside = os.path.normpath(line.strip())
        if line.strip() and not inside.startswith((os.pardir, os.sep)):
            (ready / inside).unlink(missing_ok=True)


def _terra_incognita(unpacked: Path, ready: Path) -> None:
    """One folder of pictures, and annotation files that say where each was taken, and of what."""
    pictures = _required(unpacked / TERRA_PICTURES)
    annotations = _annotations(_required(unpacked / TERRA_ANNOTATIONS))
    known = benchmarks.get("TerraIncognita")
    locations = {e.folder.removeprefix("location_"): e.folder for e in known.environments}
    categories = {item["id"]: item["name"] for item in annotations["categories"]}
    # Picture id -> what is on it: one pass in all, where upstream takes one for each picture.
    seen: defaultdict[Any, set[str]] = defaultdict(set)
    for item in annotations["annotations"]:
        seen[item["image_id"]].add(categories.get(item["category_id"], ""))
    for picture in annotations["images"]:
        folder = locations.get(str(picture["location"]))
        if folder is None:
            continue
        for category in seen[picture["id"]] & set(known.classes):
            place = ready / folder / category
            place.mkdir(parents=True, exist_ok=True)
            _link(pictures / picture["file_name"], place / Path(picture["file_name"]).name)


def _annotations(folder: Path) -> Mapping[str, list[Any]]:
    """All annotation files as one: lists of images, annotations and categories."""
    merged: defaultdict[str, list[Any]] = defaultdict(list)
    for name in TERRA_FILES:
        text = _required(folder / name).read_text(encoding="utf-8")
        for key, values in json.loads(text).items():
            if isinstance(values, list):
                merged[key] += values
    missing = [key for key in ("images", "annotations", "categories") if not merged[key]]
    if missing:
        raise CarftError(
            f"the annotation files in {folder} have no {' and no '.join(missing)}; expected those "
            "of eccv_18_annotations.tar.gz. Delete the archive and fetch it again"
        )
    return merged


def _link(source: Path, target: Path) -> None:
    """A second name for the file rather than a copy; a picture may belong to two classes."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise CarftError(
            f"{source} is annotated but not in the archive of pictures; it is cut off or another "
            "edition. Delete the archive and fetch it again"
        ) from error
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _required(path: Path) -> Path:
    if not path.exists():
        found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise CarftError(
            f"the archive should hold {path.name!r}, but holds {', '.join(found) or 'nothing'}; it "
            "is another edition than DomainBed's. `carft data verify` says how the folder must look"
        )
    return path


PREPARATIONS: dict[str, Callable[[Path, Path], None]] = {
    "PACS": _moved("kfold"),
    "VLCS": _moved("VLCS"),
    "OfficeHome": _moved("OfficeHomeDataset_10072016"),
    "DomainNet": _domain_net,
    "TerraIncognita": _terra_incognita,
}
