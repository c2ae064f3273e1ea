"""Unpacking of complete, damaged and malicious archives."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from data_trees import files, packed, tarred

from domainbed_carft.data import archives
from domainbed_carft.errors import CarftError

KINDS = pytest.mark.parametrize("kind", ["zip", "tar.gz"])


@KINDS
def test_archives_unpack_into_one_folder_without_macos_metadata(tmp_path, kind):
    for n in "12":
        names = [f"{n}/it's one.jpg", f"both/{n}.jpg", "both/x/same.jpg"]
        names += ["__MACOSX/both/._x", "both/__MACOSX/1.jpg", "both/x/._same.jpg"]
        archives.unpack(packed(tmp_path / f"{n}.{kind}", names), tmp_path / "inner")
    expected = ["1/it's one.jpg", "2/it's one.jpg", "both/1.jpg", "both/2.jpg", "both/x/same.jpg"]
    assert files(tmp_path / "inner") == expected


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg"]
)
@KINDS
def test_members_outside_the_folder_are_refused(tmp_path, name, kind):
    archive = packed(tmp_path / f"a.{kind}", ["good.jpg", name])
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside the folder\. Nothing was unpacked"):
        archives.unpack(archive, tmp_path / "inner")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_tar_members_other_than_files_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("in/member")
    member.type = kind
    member.linkname = "good.jpg"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member)

    with pytest.raises(CarftError, match="'in/member' is neither a regular file nor a folder"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "inner")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_links_in_a_zip_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = stat.S_IFLNK << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "good.jpg")
    with pytest.raises(CarftError, match="'link' is neither a regular file nor a folder"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "inner")


def flipped(content: bytes) -> bytes:
    return content[:80] + bytes(byte ^ 0xFF for byte in content[80:140]) + content[140:]


@pytest.mark.parametrize(
    ("kind", "spoil", "fault"),
    [
        ("zip", lambda content: b"<html>Too many users", "is a web page, not the"),
        ("zip", lambda content: content[:-200], "is not a zip or tar archive, or is cut off"),
        ("tar.gz", lambda content: content[:-200], "is damaged or cut off"),
        ("zip", flipped, "is damaged or cut off"),
        ("tar.gz", flipped, "is (damaged|not)"),
    ],
)
def test_damaged_archive_is_named_in_the_error(tmp_path: Path, kind, spoil, fault):
    noise = bytes(range(256)) * 400
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jpg", noise)
    else:
        tarred(path, [f"{i}.jpg" for i in range(20)], noise)

    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(archives.BadFile, match=rf"a\.{kind} {fault}.*; download the file again"):
        archives.unpack(path, tmp_path / "inner")
    assert not (tmp_path / "inner").exists()
