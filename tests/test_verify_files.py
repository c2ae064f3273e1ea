"""Files that are no pictures or cannot be read, counts as ImageFolder has them, and decoding."""

import json
import os
import re
from pathlib import Path

import pytest
from data_trees import carft, even, grow, jpeg, only
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft.data import listing, verify
from domainbed_carft.errors import CarftError

# Files


def test_counts_are_those_of_image_folder(tmp_path):
    grow(tmp_path, even(["cat", "dog"], pictures=2))
    cat = tmp_path / "art" / "cat"
    for name in ("UP.JPG", "a.b.webp", 'it\'s "quoted" {}.png', "ö.tiff", "notes.txt", "jpg"):
        (cat / name).write_bytes(b"x")
    (cat / "more" / "deeper").mkdir(parents=True)
    (cat / "more" / "deeper" / "1.png").write_bytes(b"x")
    (cat / "folder.jpg").mkdir()
    (tmp_path / "art" / "loose.png").write_bytes(b"x")
    (cat / "linked").symlink_to(tmp_path / "photo" / "dog")
    (cat / "link.png").symlink_to(cat / "0.jpg")
    (cat / "gone.png").symlink_to(cat / "nothing")
    found = listing.read(tmp_path, with_pictures=True)
    for environment in ("art", "photo"):
        theirs = ImageFolder(str(tmp_path / environment))
        ours = [p for p in found.pictures if p.startswith(f"{environment}/")]
        assert sorted(str(tmp_path / p) for p in ours) == sorted(path for path, _ in theirs.samples)
        counts = found.counts[environment]
        assert list(counts) == theirs.classes and sum(counts.values()) == len(theirs)
    odd = found.oddities
    assert sorted(odd.other_files) == ["art/cat/jpg", "art/cat/notes.txt"]
    assert odd.loose == ["art/loose.png"] and odd.broken_links == ["art/cat/gone.png"]
    assert odd.nested == [
        "art/cat/folder.jpg", "art/cat/linked", "art/cat/more", "art/cat/more/deeper",
    ]  # fmt: skip


def test_the_extensions_are_torchvisions():
    assert listing.PICTURES == IMG_EXTENSIONS


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jpg", b"", r"^empty files with a picture's name: 1 \('art/cat/empty.jpg'\); get"),
        (
            "._0.jpg",
            b"Mac OS X",
            r"^macOS resource forks.*: 1 .*; find '.*mine \{\}' -name '\._\*' -de",
        ),
    ],
)
def test_files_that_end_a_job(tmp_path, name, content, problem):
    root = grow(tmp_path / "mine {}", even(["cat", "dog"]))
    assert verify.verify(str(root)).verdict == "consistent"
    (root / "art" / "cat" / name).write_bytes(content)
    report = verify.verify(str(root))
    assert report.verdict == "broken"
    assert re.search(problem, only(report, "problems"))


def test_links_that_lead_nowhere_or_back(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]))
    (root / "art" / "cat" / "gone.jpg").symlink_to("nothing")
    (root / "art" / "dog" / "round").symlink_to(root / "art" / "dog")
    problems = verify.verify(str(root)).problems
    assert "links to no picture: 1 ('art/cat/gone.jpg')" in problems[0]
    assert "links to a folder above them" in problems[1]


def test_pipes_are_neither_pictures_nor_read(tmp_path):
    """A picture's name does not make them end."""
    root = grow(tmp_path, even(["cat", "dog"]), jpeg())
    os.mkfifo(root / "art" / "cat" / "pipe.jpg")
    (root / "art" / "dog" / "link.jpg").symlink_to(root / "art" / "cat" / "pipe.jpg")
    done = carft("verify", root, "--decode", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["damaged"] == []
    (problem,) = said["problems"]
    assert re.match("pipes, sockets or devices with a picture's name.*: 2 .*; remove", problem)


def test_what_is_known_without_decoding_is_told_once(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "empty.jpg").touch()
    (root / "art" / "cat" / "gone.jpg").symlink_to("nothing")
    report = verify.verify(str(root), decode=True)
    assert report.damaged == () and len(report.problems) == 2
    assert report.pictures == 6  # as DomainBed counts them


def test_what_is_not_read_is_noted(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]))
    (root / "art" / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "photo" / "beside.png").write_bytes(b"x")
    report = verify.verify(str(root))
    assert report.verdict == "consistent"
    assert report.notes == (
        "files that are no pictures by their name, and not read: 1 ('art/cat/Thumbs.db')",
        "pictures in no class folder, and not read: 1 ('photo/beside.png')",
    )


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    root = grow(tmp_path, even(["cat", "dog"]))
    for closed, function in ((root / "art" / "cat", "open"), (root / "photo", "scandir")):
        real = getattr(os, function)

        def refuse(path, *rest, closed=closed, real=real):  # root may read everything
            if path in (closed, str(closed)):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *rest)

        monkeypatch.setattr(os, function, refuse)
    problems = verify.verify(str(root)).problems
    assert "folders or links that cannot be read: 2 ('photo', 'art/cat')" in problems[-1]
    with pytest.raises(CarftError, match=r"photo cannot be read as a folder \(Permission denied\)"):
        verify.verify(str(root / "photo"))


def test_links_in_circles_are_told_and_end_nothing(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]))
    for name in ("art/cat/round.jpg", "art/cat/round", "photo/round"):
        (root / name).symlink_to(Path(name).name)
    report = verify.verify(str(root))
    assert report.verdict == "broken" and len(report.problems) == 2
    assert "links to no picture: 1 ('art/cat/round.jpg')" in report.problems[0]
    assert "folders or links that cannot be read: 1 ('photo/round')" in report.problems[1]
    assert "no pictures by their name, and not read: 1 ('art/cat/round')" in report.notes[0]


# Decoding


def test_decoding_finds_what_is_cut_off_and_what_is_no_picture(tmp_path):
    root = grow(tmp_path / 'it\'s "mine"', even(["cat", "dog"]), jpeg())
    cat = root / "art" / "cat"
    (cat / "cmyk.jpg").write_bytes(jpeg("CMYK"))
    Image.effect_noise((8, 8), 90).convert("P").save(cat / "palette.png", transparency=3)
    assert verify.verify(str(root), decode=True).verdict == "consistent"

    (cat / "it's cut.jpg").write_bytes(jpeg()[:-900])
    report = verify.verify(str(root), decode=True)
    assert (report.verdict, report.decoded) == ("differs", True)
    assert 'pictures that are cut off: 1 ("art/cat/it\'s cut.jpg")' in only(report, "differences")
    assert [(one.path, one.truncated) for one in report.damaged] == [("art/cat/it's cut.jpg", True)]
    assert verify.verify(str(root)).verdict == "consistent"  # only decoding tells

    (cat / "page.png").write_text("<html>Not found</html>")
    report = verify.verify(str(root), decode=True)
    assert report.verdict == "broken"
    assert "pictures that cannot be decoded: 1 ('art/cat/page.png')" in only(report, "problems")
    assert "cannot identify" in report.damaged[1].reason
