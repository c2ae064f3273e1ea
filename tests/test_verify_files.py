"""Files that are no pictures or cannot be read, and counts as ImageFolder has them."""

import json
import os
import re

import pytest
from data_trees import carft, even, grow, jpeg
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from domainbed_carft.data import listing, verify


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
    found = listing.read(tmp_path)
    for environment in ("art", "photo"):
        theirs = ImageFolder(str(tmp_path / environment))
        ours = [p for p in found.pictures if p.startswith(f"{environment}/")]
        assert sorted(str(tmp_path / p) for p in ours) == sorted(path for path, _ in theirs.samples)
        counts = found.counts[environment]
        assert list(counts) == theirs.classes and sum(counts.values()) == len(theirs)
    assert found.odd["link"] == ["art/cat/gone.png"]


def test_the_extensions_are_torchvisions():
    assert listing.PICTURES == IMG_EXTENSIONS


def test_files_and_folders_that_end_a_job(tmp_path):
    """Each is told once, and none is read: a pipe would be read without end."""
    root = grow(tmp_path / "mine", even(["cat", "dog"]), jpeg())
    assert verify.verify(str(root)).verdict == "consistent"
    cat, dog = root / "art" / "cat", root / "art" / "dog"
    (cat / "empty.jpg").touch()
    (cat / "._0.jpg").write_bytes(b"Mac OS X")
    (cat / "gone.jpg").symlink_to("nothing")
    (cat / "circle.jpg").symlink_to("circle.jpg")
    (dog / "round").symlink_to(dog)
    os.mkfifo(dog / "pipe.jpg")
    done = carft("verify", root, "--decode", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["damaged"] == []
    for problem, expected in zip(
        said["problems"],
        (
            r"^1 empty file \(download again\): 'art/cat/empty.jpg'$",
            r"^2 links to nothing .*: 'art/cat/(gone|circle).jpg', ",
            r"^2 paths that cannot be read .*: 'art/dog/",
            r"^1 macOS file with a picture's name \(delete\): 'art/cat/._0.jpg'$",
        ),
    ):
        assert re.search(expected, problem), problem
    assert len(said["problems"]) == 4
    assert said["pictures"] == 9  # as DomainBed counts them


def test_only_formats_of_pictures_are_opened(tmp_path):
    """PostScript, called .png, would be given to Ghostscript."""
    path = tmp_path / "1.png"
    for ending in ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        Image.effect_noise((9, 7), 90).convert("RGB").save(path, ending)
        assert listing.open_picture(path).tobytes() == pil_loader(str(path)).tobytes()
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n")
    with Image.open(path) as picture:
        assert picture.format == "EPS"  # as Pillow would have it
    with pytest.raises(UnidentifiedImageError):
        listing.open_picture(path)
