"""Preparation of datasets from unpacked archives, also with damaged or malicious lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_trees import files, write

from domainbed_carft.data import archives, benchmarks, preparation
from domainbed_carft.errors import CarftError


def write_domain_net(unpacked: Path, *duplicates: str) -> list[str]:
    """Create three images per environment and the list of duplicates; return the images."""
    environments = [e.folder for e in benchmarks.get("DomainNet").environments]
    names = [f"{e}/zebra/{e}_{i}.jpg" for e in environments for i in range(3)]
    write(unpacked, [*names, "outside.jpg"])
    (unpacked / "domain_net_duplicates.txt").write_text("\n".join(duplicates))
    return names


def test_domain_net_is_prepared_without_its_duplicates(tmp_path, monkeypatch):
    duplicates = ["real/zebra/real_1.jpg", "sketch/zebra/sketch_0.jpg", "real/zebra/unheard.jpg"]
    names = write_domain_net(tmp_path / "unpacked", *duplicates, "")
    monkeypatch.setattr(preparation, "DUPLICATE_COUNT", 3)
    preparation.prepare("DomainNet", tmp_path / "unpacked", tmp_path / "ready")
    assert files(tmp_path / "ready") == sorted(set(names) - set(duplicates))


@pytest.mark.parametrize(
    "line", [[], ["<!DOCTYPE"], ["../unpacked/outside.jpg"], ["/real/zebra/real_1.jpg"]]
)
def test_invalid_list_of_duplicates_is_refused(tmp_path, monkeypatch, line):
    write_domain_net(tmp_path / "unpacked", "real/zebra/real_1.jpg", *line)
    monkeypatch.setattr(preparation, "DUPLICATE_COUNT", 2)
    with pytest.raises(archives.BadFile, match=r"duplicates\.txt is damaged or another list, "):
        preparation.prepare("DomainNet", tmp_path / "unpacked", tmp_path / "ready")
    assert (tmp_path / "unpacked" / "outside.jpg").exists()


def write_terra(unpacked: Path) -> Path:
    """Create four images at three locations, one of them unknown, and five annotation files."""
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "car"}]
    locations = {"a": 38, "b": "100", "c": 38, "d": 7}
    images = [{"id": i, "location": at, "file_name": f"{i}.jpg"} for i, at in locations.items()]
    annotated = [("a", 1), ("a", 1), ("a", 2), ("b", 2), ("c", 3), ("d", 1)]
    annotations = [{"image_id": i, "category_id": c} for i, c in annotated]
    write(unpacked / preparation.TERRA_IMAGES, [image["file_name"] for image in images])
    folder = unpacked / preparation.TERRA_ANNOTATIONS
    folder.mkdir()
    for number, name in enumerate(preparation.TERRA_FILES):
        content = {"images": images[number::5], "annotations": annotations[number::5]}
        (folder / name).write_text(json.dumps({**content, "categories": categories}))
    (folder / "._train_annotations.json").write_bytes(b"\x00\xff from a Mac")
    return unpacked


def test_terra_incognita_is_sorted_by_its_annotations(tmp_path):
    preparation.prepare("TerraIncognita", write_terra(tmp_path / "unpacked"), tmp_path / "ready")
    # One image has a dog and a cat. Cars and location 7 are not in the benchmark.
    expected = ["location_100/cat/b.jpg", "location_38/cat/a.jpg", "location_38/dog/a.jpg"]
    assert files(tmp_path / "ready") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", r"annotations\.tar\.gz is damaged: its .*json is not JSON"),
        (b'{"images": [{"id": []}]}', r"annotations\.tar\.gz is damaged: its .*json is not JSON"),
        (b"../../secret.jpg", "names an image .* outside the folder"),
        (b"ROOT/secret.jpg", "names an image .* outside the folder"),
    ],
)
def test_annotations_that_are_invalid_or_name_other_files_are_refused(tmp_path, content, message):
    write(tmp_path, ["secret.jpg"])
    unpacked = write_terra(tmp_path / "unpacked")
    file = unpacked / preparation.TERRA_ANNOTATIONS / preparation.TERRA_FILES[0]
    if content.endswith(b".jpg"):
        name = content.replace(b"ROOT", bytes(tmp_path))
        content = file.read_bytes().replace(b"a.jpg", name)
    file.write_bytes(content)
    with pytest.raises(CarftError, match=message):
        preparation.prepare("TerraIncognita", unpacked, tmp_path / "ready")
    assert not (tmp_path / "ready").exists()
