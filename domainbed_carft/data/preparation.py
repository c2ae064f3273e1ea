"""From the contents of a benchmark's archives to a folder environment/class/image.

Follows upstream's domainbed/scripts/download.py at b93c22a.
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

# Benchmark -> the top folder in its archive.
ARCHIVE_FOLDERS = {"PACS": "kfold", "VLCS": "VLCS", "OfficeHome": "OfficeHomeDataset_10072016"}

TERRA_IMAGES = "eccv_18_all_images_sm"
TERRA_ANNOTATIONS = "eccv_18_annotation_files"
TERRA_PARTS = ("cis_test", "cis_val", "train", "trans_test", "trans_val")
TERRA_FILES = tuple(f"{part}_annotations.json" for part in TERRA_PARTS)
TERRA_ARCHIVE = "eccv_18_annotations.tar.gz"
DOMAIN_NET_DUPLICATES = "domain_net_duplicates.txt"
DUPLICATE_COUNT = 9431  # lines of the list at b93c22a


def prepare(name: str, unpacked: Path, ready: Path) -> None:
    """Create the folder ``ready`` of a benchmark from the contents of its archives.

    Raises:
        BadFile: for a damaged list or annotation file.
        CarftError: if the archives are not the benchmark's.
    """
    if name == "DomainNet":
        _prepare_domain_net(unpacked, ready)
    elif name == "TerraIncognita":
        _prepare_terra_incognita(unpacked, ready)
    else:
        _require(unpacked / ARCHIVE_FOLDERS[name]).rename(ready)


def _prepare_domain_net(unpacked: Path, ready: Path) -> None:
    """Create DomainNet from the folders of its six archives, without its listed duplicates."""
    folders = [environment.folder for environment in benchmarks.get("DomainNet").environments]
    duplicate = re.compile(rf"({'|'.join(folders)})(/(?!\.)[^/]+){{2}}")
    content = _require(unpacked / DOMAIN_NET_DUPLICATES).read_text("utf-8", errors="replace")
    paths = content.split()
    if len(paths) != DUPLICATE_COUNT or not all(map(duplicate.fullmatch, paths)):
        fault = f"is damaged or another list, not {DUPLICATE_COUNT:,} paths environment/class/image"
        raise BadFile(DOMAIN_NET_DUPLICATES, fault)

    ready.mkdir()
    for folder in folders:
        _require(unpacked / folder).rename(ready / folder)
    for path in paths:
        (ready / path).unlink(missing_ok=True)


@dataclasses.dataclass
class _TerraImage:
    """An image of TerraIncognita in its annotations."""

    location: str  # of the camera
    file_name: str
    categories: set[str]  # animals


def _prepare_terra_incognita(unpacked: Path, ready: Path) -> None:
    """Create TerraIncognita from a folder of images and their annotations."""
    images = _require(unpacked / TERRA_IMAGES)
    annotated = _read_terra_annotations(_require(unpacked / TERRA_ANNOTATIONS))

    # Otherwise a malicious archive could copy any file of this machine.
    outside = [image.file_name for image in annotated if "/" in image.file_name]
    if outside:
        raise CarftError(
            f"{TERRA_ARCHIVE} names an image {outside[0]!r} outside the folder of images; "
            "nothing was installed. Do not use the archive"
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
            # Copied like upstream, because an image can belong to two classes.
            shutil.copyfile(_require(images / image.file_name), target / image.file_name)


def _read_terra_annotations(folder: Path) -> list[_TerraImage]:
    """Read TerraIncognita's annotation files; raise BadFile if one is damaged."""
    images: dict[object, _TerraImage] = {}  # by id
    categories_by_image: defaultdict[object, set[str]] = defaultdict(set)
    for name in TERRA_FILES:
        file = _require(folder / name)
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


def _require(path: Path) -> Path:
    """Return a path from an archive; raise CarftError if it does not exist."""
    if not path.exists():
        raise CarftError(
            f"the archives lack {path.name!r} (expected in {path.parent}): they are not the "
            "edition that DomainBed uses. Replace or delete them in the folder archives next to "
            "that folder, then rerun the command"
        )
    return path
