"""Trees of the benchmarks, whole and changed, trees of a user's own, and ``carft data``."""

import json
import os
import re

import pytest
from data_trees import carft, even, grow, jpeg, only, report_on
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from domainbed_carft.data import benchmarks, listing, picture_files, verify
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.image_lists import ListedFolder


def test_both_editions_of_terra_incognita_are_recognised():
    benchmark = benchmarks.get("TerraIncognita")
    for edition in benchmark.editions:
        counts = {e: {c: 1 for c in benchmark.classes} for e in edition.counts}
        for environment, total in edition.counts.items():
            counts[environment]["bird"] += total - len(benchmark.classes)
        report = report_on("TerraIncognita", counts)
        assert (report.verdict, report.edition) == ("verified", edition.name)
        assert f"the {edition.total:,} pictures, {edition.name}" in report.as_text()

    counts["location_38"]["cat"] += 1
    report = report_on("TerraIncognita", counts)
    assert (report.verdict, report.edition) == ("differs", None)

    expected = (
        "'location_38' has 9,768 pictures, expected 9,767 as in the edition of older papers (+1)"
    )
    assert expected in only(report, "differences")


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


def renamed(table, **names):
    return {names.get(key, key): value for key, value in table.items()}


def inside(table, change):
    return {environment: change(classes) for environment, classes in table.items()}


@pytest.mark.parametrize(
    ("change", "verdict", "sentence"),
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
            r"2,343 pictures, expected 2,344 as in .* \(-1\): 'guitar' 134 instead of 1",
        ),
        (
            lambda t: inside(t, lambda c: {"test": 1, "train": 1}),
            "broken",
            "'photo' has the sub-splits 'test', 'train', expected class folders",
        ),
    ],
)
def test_changed_copies_of_pacs_are_recognised(change, verdict, sentence):
    report = report_on("PACS", change(benchmarks.get("PACS").editions[0].by_class))
    assert report.verdict == verdict
    assert re.search(sentence, " ".join([*report.problems, *report.differences])), report


@pytest.mark.parametrize(
    ("counts", "verdict", "sentence"),
    [
        (even(["cat", "dog"]), "consistent", ""),
        ({}, "broken", "found no environments; expected a folder with one sub-folder"),
        (even(["only"]), "broken", "'art' has 1 class folder, expected at least two"),
        (even(["cat", "dog"], pictures=0), "broken", "'art' has no picture in 'cat', 'dog'"),
        (
            {**even(["Alarm_Clock", "dog"]), "z": {"Alarm Clock": 1, "dog": 1}},
            "broken",
            "in 'z' are not those in 'art': missing 'Alarm_Clock', extra 'Alarm Clock'. Labels",
        ),
    ],
)
def test_environments_of_own_data_must_have_the_same_classes(counts, verdict, sentence):
    report = report_on("Mine", counts)
    assert report.verdict == verdict
    assert re.search(sentence, " ".join([*report.problems, *report.notes])), report


def test_missing_data_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    for name, folder, message in (
        ("PACS", tmp_path, r"PACS does not exist, expected the data of PACS there; rename"),
        ("OfficeHome", None, r"needs --data_dir, the folder that contains 'office_home'"),
        ("PASC", tmp_path, r"no such folder, and no benchmark .* did you mean PACS"),
        (str(tmp_path / "file"), None, r"file cannot be read as a folder \(Not a directory\)"),
        ("a\0b", None, "no such folder"),
    ):
        with pytest.raises(CarftError, match=message):
            verify.verify(name, folder)


def test_verify_reports_complete_and_broken_data(tmp_path):
    """All 9,991 pictures of PACS, a byte each."""
    root = grow(tmp_path / "PACS", benchmarks.get("PACS").editions[0].by_class)
    done = carft("verify", "PACS", "--data_dir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

    first, _, *rows, last = done.stdout.splitlines()
    assert first == f"PACS in {root}"
    assert rows[3].split() == ["sketch", "3,929", "7"]
    assert last == "verified: the 9,991 pictures, as published"

    (root / "__MACOSX").mkdir()
    done = carft("verify", "PACS", "--data_dir", tmp_path)
    assert done.returncode == 1 and "\nbroken: " in done.stdout
    assert "problem: the environments are '__MACOSX', " in done.stdout


def test_verify_prints_json(tmp_path):
    root = grow(tmp_path / "my own", even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "it's cut.jpg").write_bytes(jpeg()[:-900])
    done = carft("verify", root, "--decode", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # usable; no bar where nobody watches

    document = json.loads(done.stdout)
    assert (document["verdict"], document["pictures"], document["root"]) == (
        "differs",
        5,
        str(root),
    )
    assert document["counts"]["art"] == {"cat": 2, "dog": 1}

    (cut,) = document["damaged"]
    assert (cut["path"], cut["truncated"]) == ("art/cat/it's cut.jpg", True)

    (root / "photo" / "dog" / "page.png").write_text("<html>Not found</html>")
    assert carft("verify", root).returncode == 0  # only decoding tells

    done = carft("verify", root, "--decode")
    assert done.returncode == 1
    assert "1 picture cannot be decoded (download again): 'photo/dog/page" in done.stdout

    done = carft("verify", "Ofice-Home", "--data_dir", "/", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 2
    assert (document["name"], document["verdict"]) == ("Ofice-Home", None)
    assert "did you mean OfficeHome?" in document["error"]
    assert document["error"] in done.stderr


def test_list_names_all_data_sets_and_embedded_ones():
    report = verify.verify("EmojiStyles")
    assert (report.verdict, report.pictures) == ("verified", 1716)

    done = carft("list")
    assert (done.returncode, done.stderr) == (0, "")

    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["DomainNet"] == (
        "DomainNet domain_net clip, info, paint, quick, real, sketch 345 586,575 5,001".split()
    )
    assert "24,330 or 24,788" in done.stdout

    by_name = {
        data_set["name"]: data_set for data_set in json.loads(carft("list", "--json").stdout)
    }
    assert list(by_name)[: len(benchmarks.BENCHMARKS)] == list(benchmarks.BENCHMARKS)
    assert len(by_name["DomainNet"]["classes"]) == 345
    assert by_name["PACS"]["licence"] == "not stated"
    assert by_name["VLCS"]["editions"][0]["by_class"]["SUN09"]["bird"] == 20


def test_names_that_would_break_a_terminal_are_quoted(tmp_path):
    root = grow(tmp_path / "own", even(["cat", "dog"], ["a\nb", os.fsdecode(b"\xff")]))
    done = carft("verify", root)
    assert done.returncode == 0, done.stderr
    assert r"a\nb " in done.stdout and r"\udcff " in done.stdout


def test_counts_are_those_of_image_folder(tmp_path):
    grow(tmp_path, even(["cat", "dog"], pictures=2))
    cat = tmp_path / "art" / "cat"
    for name in ("UP.JPG", "a.b.webp", 'it\'s "quoted" {}.png', "ö.tiff", "notes.txt", "jpg"):
        (cat / name).write_bytes(b"x")
    (cat / "more" / "deeper").mkdir(parents=True)
    (cat / "more" / "deeper" / "1.png").write_bytes(b"x")
    (cat / "more-").mkdir()
    (cat / "more-" / "0.png").write_bytes(b"x")
    (cat / "folder.jpg").mkdir()
    (tmp_path / "art" / "loose.png").write_bytes(b"x")
    (cat / "linked").symlink_to(tmp_path / "photo" / "dog")
    (cat / "link.png").symlink_to(cat / "0.jpg")
    (cat / "gone.png").symlink_to(cat / "nothing")
    assert listing.PICTURE_EXTENSIONS == IMG_EXTENSIONS

    listed = listing.list_environments(tmp_path)
    paths = listed.paths()
    for environment in ("art", "photo"):
        image_folder = ImageFolder(str(tmp_path / environment))
        listed_folder = ListedFolder(str(tmp_path / environment), paths[environment])
        assert listed_folder.samples == image_folder.samples
        assert listed_folder.class_to_idx == image_folder.class_to_idx
        counts = listed.counts[environment]
        assert list(counts) == image_folder.classes == listed_folder.classes
        assert sum(counts.values()) == len(image_folder)
    assert listed.faults["link"] == ["art/cat/gone.png"]


def test_unreadable_files_are_reported_once_and_not_read(tmp_path):
    """Each is told once, and none is read: a pipe would be read without end."""
    root = grow(tmp_path / "mine", even(["cat", "dog"]), jpeg())
    assert verify.verify(str(root)).verdict == "consistent"

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
    for problem, expected in zip(
        document["problems"],
        (
            r"^1 empty file \(download again\): 'art/cat/empty.jpg'$",
            r"^2 links to nothing .*: 'art/cat/(gone|circle).jpg', ",
            r"^2 paths that cannot be read .*: 'art/dog/",
            r"^1 macOS file with a picture's name \(delete\): 'art/cat/._0.jpg'$",
        ),
    ):
        assert re.search(expected, problem), problem
    assert len(document["problems"]) == 4
    assert document["pictures"] == 9  # as DomainBed counts them


def test_only_picture_formats_are_opened(tmp_path):
    """PostScript, called .png, would be given to Ghostscript."""
    path = tmp_path / "1.png"
    for ending in ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        Image.effect_noise((9, 7), 90).convert("RGB").save(path, ending)
        assert picture_files.open_picture(path).tobytes() == pil_loader(str(path)).tobytes()
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n")
    with Image.open(path) as picture:
        assert picture.format == "EPS"  # as Pillow would have it
    with pytest.raises(UnidentifiedImageError):
        picture_files.open_picture(path)
