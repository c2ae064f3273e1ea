"""Archives that are whole, cut off, damaged or hostile, and what is unpacked of them."""

from __future__ import annotations

import errno
import shutil
import zipfile
from pathlib import Path

import pytest
from data_archives import PICTURE, files, tarred, zipped

from domainbed_carft.data import archives
from domainbed_carft.errors import CarftError


def test_both_kinds_of_archives(tmp_path):
    names = ["PACS/photo/dog/it's one.jpg", "PACS/photo/dog/2.jpg"]
    archives.unpack(zipped(tmp_path / "a.zip", names), tmp_path / "from zip")
    members = [(name, PICTURE) for name in names]
    archives.unpack(tarred(tmp_path / "a.tar.gz", *members), tmp_path / "from tar")
    assert files(tmp_path / "from zip") == files(tmp_path / "from tar") == sorted(names)


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_leave_the_folder_are_refused(tmp_path, name, kind):
    if kind == "zip":
        archive = zipped(tmp_path / "a.zip", ["good.jpg", name])
    else:
        archive = tarred(tmp_path / "a.tar.gz", ("good.jpg", PICTURE), (name, PICTURE))
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside the folder.*nothing was unpacked"):
        archives.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == [] and not (tmp_path / "evil.jpg").exists()


def test_a_link_that_leads_outside_is_refused(tmp_path):
    archive = tarred(tmp_path / "a.tar.gz", ("good.jpg", PICTURE), ("link", "../../etc/passwd"))
    with pytest.raises(CarftError, match=r"not safe to unpack .*'link'.*nothing was"):
        archives.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == []


def test_what_is_no_whole_archive_is_named(tmp_path):
    page = tmp_path / "page.zip"
    page.write_text("<html>Too many users have viewed this file</html>")
    with pytest.raises(archives.BadFile, match=r"page\.zip is a web page in place of the file"):
        archives.unpack(page, tmp_path / "inner")
    page.write_text("Too many users have viewed this file")
    with pytest.raises(archives.BadFile, match=r"page\.zip is neither a zip nor a tar archive"):
        archives.unpack(page, tmp_path / "inner")
    whole = tarred(tmp_path / "whole.tar.gz", *[(f"{i}.jpg", PICTURE * 50) for i in range(20)])
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(archives.BadFile, match=r"cut\.tar\.gz is damaged or cut off"):
        archives.unpack(cut, tmp_path / "inner")
    assert files(tmp_path / "inner") == [] and not (tmp_path / "inner.partial").exists()


def test_links_that_lead_outside_through_each_other_are_refused(tmp_path):
    """Python's filter sees the second only when the first is there."""
    archive = tarred(
        tmp_path / "a.tar.gz", ("d/good.jpg", PICTURE), ("d/ln", ".."), ("a", "d/ln/..")
    )
    with pytest.raises(CarftError, match=r"not safe to unpack .*'a'.*Do not use") as told:
        archives.unpack(archive, tmp_path / "inner")
    assert not isinstance(told.value, archives.BadFile)
    assert not list((tmp_path / "inner").iterdir()) and not (tmp_path / "inner.partial").exists()


def test_a_name_that_is_not_in_the_letters_it_says(tmp_path):
    path = zipped(tmp_path / "a.zip", ["café.jpg"])  # marked as UTF-8
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(archives.BadFile, match=r"a\.zip is damaged or cut off .*utf-8"):
        archives.unpack(path, tmp_path / "inner")


def test_archives_share_a_folder(tmp_path):
    """Of DomainNet's six some hold the same __MACOSX."""
    for n in "12":
        archive = zipped(tmp_path / f"{n}.zip", [f"{n}/a.jpg", f"both/{n}.jpg", "both/x/same.jpg"])
        archives.unpack(archive, tmp_path / "inner")
    expected = ["1/a.jpg", "2/a.jpg", "both/1.jpg", "both/2.jpg", "both/x/same.jpg"]
    assert files(tmp_path / "inner") == expected


def test_a_disk_that_is_full_while_unpacking(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", ["one.jpg", "two.jpg"])

    def full(self, member, path=None, pwd=None):
        (Path(path) / "one.jpg").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(CarftError, match=r"No space left.*Make room there.*archive is kept"):
        archives.unpack(archive, tmp_path / "inner")
    assert archive.exists() and files(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_with_flipped_bytes_is_named(tmp_path, kind):
    path = tmp_path / f"flipped.{kind}"
    noise = bytes(range(256)) * 400
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jpg", noise)
    else:
        tarred(path, ("a.jpg", noise))
    content = bytearray(path.read_bytes())
    for place in range(80, 140):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CarftError, match=r"flipped\..* is (damaged|neither).*; fetch it again"):
        archives.unpack(path, tmp_path / "inner")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [["a", "a/b.jpg"], ["x" * 300 + ".jpg"]])
def test_names_that_no_disk_can_hold_are_the_archives_fault(tmp_path, kind, names):
    if kind == "zip":
        archive = zipped(tmp_path / "a.zip", names)
    else:
        archive = tarred(tmp_path / "a.tar.gz", *[(name, PICTURE) for name in names])
    with pytest.raises(archives.BadFile, match="has names that no disk can hold"):
        archives.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == []


def test_more_than_the_disk_has_room_for_is_not_begun(tmp_path, monkeypatch):
    archive = tarred(tmp_path / "a.tar.gz", ("zeros", bytes(3_000_000)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    with pytest.raises(CarftError, match=r"needs 3 MB to unpack, but .* has 2 MB free; make room"):
        archives.unpack(archive, tmp_path / "inner")
    assert archive.exists() and files(tmp_path) == ["a.tar.gz"]
