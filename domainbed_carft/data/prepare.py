"""From the archives as they are published to the folders that DomainBed reads.

Layouts and steps after upstream file domainbed/scripts/download.py at b93c22a. Everything is moved
within one folder, so no picture is written twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError

TERRA_PICTURES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_FILES = tuple(
    f"{part}_annotations.json"
    for part in ("cis_test", "cis_val", "train", "trans_test", "trans_val")
)
# What is read of an annotation file: list -> what each of its items has.
TERRA_FIELDS = {
    "images": ("id", "location", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
TERRA_ARCHIVE = "eccv_18_annotations.tar.gz"
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"
DUPLICATES = 9431  # lines of that file at b93c22a


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Make the folder ``ready`` of the benchmark ``name`` from what its archives held.

    Raises BadFile for a list or an annotation file that is damaged, CarftError where the archives
    hold something else than they are known for, or name files that are not theirs.
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
    folders = [environment.folder for environment in benchmarks.get("DomainNet").environments]
    duplicates = _duplicates(_required(unpacked / DOMAIN_NET_DUPLICATES), folders)
    for folder in folders:
        _required(unpacked / folder).rename(ready / folder)
    for path in duplicates:
        (ready / path).unlink(missing_ok=True)


def _duplicates(file: Path, environments: Iterable[str]) -> list[str]:
    """The lines of the list: paths environment/class/picture."""
    form = re.compile(rf"({'|'.join(environments)})/[^/]+/[^/]+")
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if not form.fullmatch(line) or os.path.normpath(line) != line:
            raise BadFile(
                DOMAIN_NET_DUPLICATES,
                f"is damaged: expected lines environment/class/picture, found {line[:80]!r}",
            )
    if len(lines) != DUPLICATES:
        raise BadFile(
            DOMAIN_NET_DUPLICATES,
            f"has {len(lines):,} lines, expected {DUPLICATES:,}: it is cut off, or another list",
        )
    return lines


def _terra_incognita(unpacked: Path, ready: Path) -> None:
    """One folder of pictures, and annotation files that say where each was taken, and of what."""
    pictures = _required(unpacked / TERRA_PICTURES)
    annotations = _annotations(_required(unpacked / TERRA_ANNOTATIONS))
    _refuse_outsiders(picture["file_name"] for picture in annotations["images"])
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
            source = pictures / str(picture["file_name"])
            _link(source, place / source.name)


def _annotations(folder: Path) -> Mapping[str, list[Any]]:
    """All annotation files as one: lists of images, annotations and categories."""
    merged: dict[str, list[Any]] = {key: [] for key in TERRA_FIELDS}
    for name in TERRA_FILES:
        content = _json(_required(folder / name))
        for key, fields in TERRA_FIELDS.items():
            items = content.get(key, [])
            if not isinstance(items, list) or not all(_has(item, fields) for item in items):
                what = f"{key}, each with {', '.join(fields)}"
                raise BadFile(TERRA_ARCHIVE, f"is damaged: its {name} has no list of {what}")
            merged[key] += items
    missing = [key for key, items in merged.items() if not items]
    if missing:
        raise BadFile(TERRA_ARCHIVE, f"is damaged: its files have no {' and no '.join(missing)}")
    return merged


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise BadFile(TERRA_ARCHIVE, f"is damaged: its {file.name} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadFile(TERRA_ARCHIVE, f"is damaged: its {file.name} is no JSON object")
    return content


def _has(item: Any, fields: Iterable[str]) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(f), (str, int)) for f in fields)


def _refuse_outsiders(names: Iterable[Any]) -> None:
    """Nobody shall get another file of this machine into a data set by calling it a picture."""
    for name in map(str, names):
        inside = os.path.normpath(name)
        if os.path.isabs(name) or inside.split(os.sep)[0] in (os.pardir, "", ".") or "\0" in name:
            raise CarftError(
                f"{TERRA_ARCHIVE} names a picture {name!r}, which is outside the folder of the "
                "pictures; nothing was made of it. Do not use this archive"
            )


def _link(source: Path, target: Path) -> None:
    """A second name for the file rather than a copy; a picture may belong to two classes."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise CarftError(
            f"{source} is annotated but not in the archive of pictures; it is cut off or another "
            "edition"
        ) from error
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _required(path: Path) -> Path:
    if not path.exists():
        found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise CarftError(
            f"the archive should hold {path.name!r}, but holds {', '.join(found) or 'nothing'}; it "
            "is another edition than DomainBed's"
        )
    return path


PREPARATIONS: dict[str, Callable[[Path, Path], None]] = {
    "PACS": _moved("kfold"),
    "VLCS": _moved("VLCS"),
    "OfficeHome": _moved("OfficeHomeDataset_10072016"),
    "DomainNet": _domain_net,
    "TerraIncognita": _terra_incognita,
}
