"""Verification of benchmarks and of other datasets, and ``carft data``."""

import json
import os
import re

import pytest
from data_trees import carft, even, grow, jpeg, make_report, write
from PIL import UnidentifiedImageError
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.data import benchmarks, comparison, image_files, listing, verification
from domainbed_carft.errors import CarftError
from domainbed_carft.images.image_lists import ListedFolder


def test_editions_of_terra_incognita_are_recognised():
    benchmark = benchmarks.get("TerraIncognita")
    for edition in benchmark.editions:
        counts = {e: {c: 1 for c in benchmark.classes} for e in edition.counts}
        for environment, total in edition.counts.items():
            counts[environment]["bird"] += total - len(benchmark.classes)
        report = make_report("TerraIncognita", counts)
        assert (report.status, report.edition) == ("verified", edition.name)
        assert f"the {edition.total:,} images, {edition.name}" in report.as_text()


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


def renamed(table, **names):
    return {names.get(key, key): value for key, value in table.items()}


def inside(table, change):
    return {environment: change(classes) for environment, classes in table.items()}


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        (lambda t: {"__MACOSX": {}, **t}, "broken", "are '__MACOSX', 'art_painting', .*: rename"),
        (lambda t: without(t, "photo"), "broken", "'cartoon', 'sketch', expected 'art_painting', "),
        (lambda t: renamed(t, photo="Photo"), "differs", "the same order: rename 'Photo' to 'pho"),
        (
            lambda t: {name: t[name] for name in ("photo", "art_painting", "cartoon", "sketch")},
            "broken",
            "are 'photo', 'art_painting'.* expected 'art_painting'",
        ),
        (
            lambda t: {**t, "photo": without(t["photo"], "guitar")},
            "broken",
            "in 'photo' are not the known ones: missing 'guitar', extra none. .* wrong from 3 on;",
        ),
        (
            lambda t: inside(t, lambda c: renamed(c, person="Person")),
            "differs",
            "other names in the same order: 'Person' for 'person'",
        ),
        (
            lambda t: {**t, "cartoon": {**t["cartoon"], "guitar": 134}},
            "differs",
            r"2,343 images, expected 2,344 in .* \(-1\): 'guitar' 134 instead of 1",
        ),
        (
            lambda t: inside(t, lambda c: {"test": 1, "train": 1}),
            "broken",
            "'photo' has the sub-splits 'test', 'train', expected class folders",
        ),
    ],
)
def test_changed_copies_of_pacs_are_reported(change, status, sentence):
    report = make_report("PACS", change(benchmarks.get("PACS").editions[0].by_class))
    assert report.status == status
    assert re.search(sentence, " ".join([*report.problems, *report.differences])), report


@pytest.mark.parametrize(
    ("counts", "status", "sentence"),
    [
        (even(["cat", "dog"]), "consistent", ""),
        ({}, "broken", "found no environments; expected a folder with one sub-folder"),
        (even(["only"]), "broken", "'art' has 1 class folder, expected at least two"),
        (even(["cat", "dog"], images=0), "broken", "'art' has no image in 'cat', 'dog'"),
        (
            {**even(["Alarm_Clock", "dog"]), "z": {"Alarm Clock": 1, "dog": 1}},
            "broken",
            "in 'z' are not the ones in 'art': missing 'Alarm_Clock', extra 'Alarm Clock'. Labels",
        ),
        (
            {**even(["caf\u00e9", "dog"]), "z": {"cafe\u0301": 1, "dog": 1}},
            "broken",
            r"missing 'café', extra 'cafe\\u0301'. Labels .* [(]two names look equal",
        ),
    ],
)
def test_environments_of_a_dataset_must_have_the_same_classes(counts, status, sentence):
    report = make_report("Mine", counts)
    assert report.status == status
    assert re.search(sentence, " ".join([*report.problems, *report.notes])), report


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("PACS", "", r"PACS does not exist, expected the data of PACS there; rename"),
        ("OfficeHome", None, r"needs --data_dir, the folder that contains 'office_home'"),
        ("PASC", "", r"no such folder, and no benchmark .* did you mean PACS"),
        ("./file", None, r"file cannot be read as a folder \(Not a directory\)"),
        ("a\0b", None, "no such folder"),
    ],
)
def test_missing_data_is_refused_with_a_hint(tmp_path, monkeypatch, name, folder, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CarftError, match=message):
        verification.verify(name, None if folder is None else tmp_path)


def test_verify_exits_with_1_for_broken_data(tmp_path):
    counts = {"art": {"cat": 1000, "dog": 1}, "photo": {"cat": 1, "dog": 1}}
    root = grow(tmp_path / "own", counts)
    done = carft("verify", root)
    assert (done.returncode, done.stderr) == (0, "")

    lines = done.stdout.splitlines()
    assert lines[0] == f"{root} in {root}"
    assert lines[2].split() == ["art", "1,001", "2"]
    assert lines[-1].startswith("consistent: 1,003 images")

    (root / "a\nb").mkdir()
    done = carft("verify", root)
    assert done.returncode == 1 and "\nbroken: " in done.stdout
    assert r"'a\nb'" in done.stdout and "a\nb" not in done.stdout


def test_verify_decodes_images_and_prints_json(tmp_path):
    root = grow(tmp_path / "my own", even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "it's cut.jpg").write_bytes(jpeg()[:-900])
    done = carft("verify", root, "--decode", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar without a terminal

    document = json.loads(done.stdout)
    assert (document["status"], document["images"]) == ("differs", 5)
    assert document["counts"]["art"] == {"cat": 2, "dog": 1}
    (cut,) = document["damaged"]
    assert (cut["path"], cut["truncated"]) == ("art/cat/it's cut.jpg", True)

    (root / "photo" / "dog" / "page.png").write_text("<html>Not found</html>")
    assert carft("verify", root).returncode == 0  # found only by decoding
    done = carft("verify", root, "--decode")
    assert done.returncode == 1
    assert "1 image cannot be decoded (restore the original): 'photo/dog/page" in done.stdout


def test_list_contains_all_datasets():
    lines = [line.split() for line in carft("list").stdout.splitlines()]
    row = "DomainNet domain_net clip, info, paint, quick, real, sketch 345 586,575 5,001"
    assert row.split() in lines
    names = [entry["name"] for entry in json.loads(carft("list", "--json").stdout)]
    assert names[: len(benchmarks.BENCHMARKS)] == list(benchmarks.BENCHMARKS)


def test_listing_equals_torchvisions_image_folder(tmp_path):
    names = ("UP.JPG", "a.b.webp", 'it\'s "quoted" {}.png', "ö.tiff", "notes.txt", "jpg")
    write(tmp_path / "art" / "cat", [*names, "more/deeper/1.png", "more-/0.png", "dir.jpg/x"])
    write(tmp_path, ["art/dog/1.png", "art/loose.png", "photo/cat/2.png", "photo/dog/3.png"])
    cat = tmp_path / "art" / "cat"
    (cat / "linked").symlink_to(tmp_path / "photo" / "dog")
    (cat / "link.png").symlink_to(cat / "UP.JPG")
    (cat / "gone.png").symlink_to(cat / "nothing")
    assert listing.IMAGE_EXTENSIONS == IMG_EXTENSIONS

    listed = listing.list_environments(tmp_path)
    for environment in ("art", "photo"):
        image_folder = ImageFolder(str(tmp_path / environment))
        paths = listed.paths()[environment]
        listed_folder = ListedFolder(str(tmp_path / environment), paths)
        assert listed_folder.samples == image_folder.samples
        assert listed_folder.class_to_idx == image_folder.class_to_idx
        assert list(listed.counts[environment]) == image_folder.classes
        assert sum(listed.counts[environment].values()) == len(image_folder)
    assert listed.faults["link"] == ["art/cat/gone.png"]


def test_files_without_an_images_extension_are_counted_and_named_by_extension(tmp_path):
    root = grow(tmp_path / "mine", even(["cat", "dog"]))
    write(root / "art" / "cat", ["1.gif", "2.GIF", "deeper/3.gif", "notes.txt", "README"])
    (note,) = verification.verify(str(root)).notes
    assert note.startswith("5 files without an image's extension are skipped: ")
    assert "3 .gif, 1 without extension, 1 .txt" in note and ".jpg, .jpeg, .png" in note


def test_unreadable_files_are_reported_and_not_read(tmp_path):
    root = grow(tmp_path / "mine", even(["cat", "dog"]), jpeg())
    cat = root / "art" / "cat"
    dog = root / "art" / "dog"
    (cat / "empty.jpg").touch()
    (cat / "._0.jpg").write_bytes(b"Mac OS X")
    (cat / "gone.jpg").symlink_to("nothing")
    (cat / "circle.jpg").symlink_to("circle.jpg")
    (dog / "round").symlink_to(dog)
    os.mkfifo(dog / "pipe.jpg")
    done = carft("verify", root, "--decode", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1 and document["damaged"] == []
    empty, links, unreadable, of_macos = document["problems"]
    assert empty == "1 empty file (restore the original): 'art/cat/empty.jpg'"
    assert re.search("^2 links to nothing .*: 'art/cat/(gone|circle).jpg', ", links)
    assert re.search("^2 paths that cannot be read .*: 'art/dog/", unreadable)
    assert of_macos == "1 macOS file with an image's name (delete): 'art/cat/._0.jpg'"
    assert document["images"] == 9  # counted like in DomainBed


def test_postscript_named_png_is_refused(tmp_path):
    path = tmp_path / "1.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n")
    with pytest.raises(UnidentifiedImageError):
        image_files.open_image(path)


def test_digest_of_counts_depends_on_the_images_of_each_class():
    counts = {"a": {"dog": 3, "cat": 2}, "b": {"dog": 1, "cat": 1}}
    moved = {"a": {"dog": 2, "cat": 3}, "b": {"dog": 1, "cat": 1}}
    reordered = {"b": {"cat": 1, "dog": 1}, "a": {"cat": 2, "dog": 3}}
    assert comparison.counts_digest(counts) != comparison.counts_digest(moved)
    assert comparison.counts_digest(counts) == comparison.counts_digest(reordered)
