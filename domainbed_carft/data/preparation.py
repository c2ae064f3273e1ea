"""From what a benchmark's archives held to its folder environment/class/image.

After upstream's file domainbed/scripts/download.py at b93c22a.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

from domainbed_carft.data import benchmarks
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import CarftError

# Benchmark -> the folder in its archive that has all of it.
INNER = {"PACS": "kfold", "VLCS": "VLCS", "OfficeHome": "OfficeHomeDataset_10072016"}

TERRA_IMAGES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_PARTS = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
TERRA_FILES = tuple(f"{part}_annotations.json" for part in TERRA_PARTS)
TERRA_ARCHIVE = "eccv_18_annotations.tar.gz"
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"
DUPLICATES = 9431  # lines of that file at b93c22a


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Make the folder ``ready`` of the benchmark ``name`` from what its archives held.

    Raises BadFile for a damaged list or annotation file, CarftError for archives of something else.
    """
    if name == "DomainNet":
        _domain_net(unpacked, ready)
    elif name == "TerraIncognita":
        _terra_incognita(unpacked, ready)
    else:
        _required(unpacked / INNER[name]).rename(ready)


def _domain_net(unpacked: Path, ready: Path) -> None:
    """Make DomainNet of six archives of a folder each, and the list of its duplicates."""
    folders = [environment.folder for environment in benchmarks.get("DomainNet").environments]
    duplicate = re.compile(rf"({'|'.join(folders)})(/(?!\.)[^/]+){{2}}")
    content = _required(unpacked / DOMAIN_NET_DUPLICATES).read_text("utf-8", errors="replace")
    paths = content.split()
    if len(paths) != DUPLICATES or not all(map(duplicate.fullmatch, paths)):
        fault = f"is damaged or another list, not {DUPLICATES:,} times environment/class/image"
        raise BadFile(DOMAIN_NET_DUPLICATES, fault)

    ready.mkdir()
    for folder in folders:
        _required(unpacked / folder).rename(ready / folder)
    for path in paths:
        (ready / path).unlink(missing_ok=True)


@dataclasses.dataclass
class _TerraImage:
    """An image of TerraIncognita by its annotations."""

    location: str
    file_name: str
    categories: set[str]


def _terra_incognita(unpacked: Path, ready: Path) -> None:
    """Make TerraIncognita of a folder of images, and annotations of their places and animals."""
    images = _required(unpacked / TERRA_IMAGES)
    annotated = _read_terra_annotations(_required(unpacked / TERRA_ANNOTATIONS))

    # Else another file of this machine could be called an image.
    outside = [image.file_name for image in annotated if "/" in image.file_name]
    if outside:
        raise CarftError(
            f"{TERRA_ARCHIVE} names an image {outside[0]!r} outside the folder of images; "
            "nothing was installed. Do not use this archive"
        )

    benchmark = benchmarks.get("TerraIncognita")
    folders = [environment.folder for environment in benchmark.environments]
    for image in annotated:
        folder = f"location_{image.location}"
        if folder not in folders:
            continue
        for category in image.categories & set(benchmark.classes):
            target = ready / folder / category
            target.mkdir(parents=True, exist_ok=True)
            # Copied, as upstream does: an image may belong to two classes.
            shutil.copyfile(_required(images / image.file_name), target / image.file_name)


def _read_terra_annotations(folder: Path) -> list[_TerraImage]:
    """The images in TerraIncognita's annotation files. Raises BadFile for a damaged one."""
    images: dict[object, _TerraImage] = {}  # by id
    categories_by_image: defaultdict[object, set[str]] = defaultdict(set)
    for name in TERRA_FILES:
        file = _required(folder / name)
        try:
            content = json.loads(file.read_bytes())
            for image in content["images"]:
                image_id = image["id"]
                images[image_id] = _TerraImage(
                    str(image["location"]),
                    str(image["file_name"]),
                    categories_by_image[image_id],
                )
            names = {category["id"]: str(category["name"]) for category in content["categories"]}
            for annotation in content["annotations"]:
                category = names.get(annotation["category_id"], "")
                categories_by_image[annotation["image_id"]].add(category)
        except (ValueError, LookupError, TypeError) as error:
            fault = f"is damaged: its {name} is not JSON with images, categories and annotations"
            raise BadFile(TERRA_ARCHIVE, fault) from error
    return list(images.values())


def _required(path: Path) -> Path:
    """A path from an archive. Raises CarftError if it does not exist."""
    if not path.exists():
        raise CarftError(
            f"the archives lack {path.name!r} (expected in {path.parent}): they are not the "
            "edition that DomainBed uses. Replace or delete them in the folder archives beside "
            "it, then rerun the command"
        )
    return path
