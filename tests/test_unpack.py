"""Archives that are whole, cut off, damaged or hostile, and what is unpacked of them."""

from __future__ import annotations

import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from data_trees import PICTURE, files, packed, tarred

from domainbed_carft.data import archives
from domainbed_carft.errors import CarftError

KINDS = pytest.mark.parametrize("kind", ["zip", "tar.gz"])


@KINDS
def test_several_archives_unpack_into_one_folder(tmp_path, kind):
    """Of DomainNet's six some hold the same __MACOSX."""
    for n in "12":
        names = [f"{n}/it's one.jpg", f"both/{n}.jpg", "both/x/same.jpg"]
        archives.unpack(packed(tmp_path / f"{n}.{kind}", names), tmp_path / "inner")
    expected = ["1/it's one.jpg", "2/it's one.jpg", "both/1.jpg", "both/2.jpg", "both/x/same.jpg"]
    assert files(tmp_path / "inner") == expected


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg"]
)
@KINDS
def test_members_that_leave_the_folder_are_refused(tmp_path, name, kind):
    archive = packed(tmp_path / f"a.{kind}", ["good.jpg", name])
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside the folder\. Nothing was unpacked"):
        archives.unpack(archive, tmp_path / "inner")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def of_kind(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def long_links(outside: str) -> list[tarfile.TarInfo]:
    """Links so long together that tarfile's filter gives up resolving them (CVE-2025-4517)."""
    folder = "d" * 247
    steps = "abcdefghijklmnop"
    members = []
    for depth, step in enumerate(steps):
        parent = f"{folder}/" * depth
        members += [of_kind(parent + folder, tarfile.DIRTYPE)]
        members += [of_kind(parent + step, tarfile.SYMTYPE, folder)]
    last = f"{'/'.join(steps)}/{'l' * 254}"
    members += [of_kind(last, tarfile.SYMTYPE, "../" * len(steps))]
    members += [of_kind("escape", tarfile.SYMTYPE, f"{last}/{outside}")]
    return [*members, of_kind("escape/evil.jpg", tarfile.REGTYPE)]


@pytest.mark.parametrize(
    ("members", "name"),
    [
        (long_links(".."), "a"),
        ([of_kind("in/link", tarfile.SYMTYPE, "good.jpg")], "in/link"),
        ([of_kind("link", tarfile.LNKTYPE, "good.jpg")], "link"),
        ([of_kind("pipe", tarfile.FIFOTYPE)], "pipe"),
        ([of_kind("device", tarfile.CHRTYPE)], "device"),
    ],
)
def test_tar_members_other_than_files_and_folders_are_refused(tmp_path, members, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for member in [of_kind("good.jpg", tarfile.REGTYPE), *members]:
            archive.addfile(member)
    expected = f"the member '{name}' is neither a regular file nor a folder"
    with pytest.raises(CarftError, match=expected) as raised:
        archives.unpack(tmp_path / "a.tar", tmp_path / "inner")
    assert not isinstance(raised.value, archives.BadFile)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_an_archive_with_links_unpacks_once_it_is_replaced_as_the_message_says(tmp_path):
    archive = tarred(tmp_path / "a.tar.gz", ("d/good.jpg", PICTURE), ("d/link.jpg", "good.jpg"))
    with pytest.raises(CarftError) as raised:
        archives.unpack(archive, tmp_path / "inner")

    command = str(raised.value).partition("of regular files: ")[2]
    script = f"mkdir NEW && tar -xf a.tar.gz -C NEW && {command}"
    subprocess.run(script, shell=True, cwd=tmp_path, check=True)
    archives.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == ["d/good.jpg", "d/link.jpg"]
    assert (tmp_path / "inner/d/link.jpg").read_bytes() == PICTURE


def test_links_in_the_folder_are_not_written_through(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/link").symlink_to(tmp_path)
    archive = packed(tmp_path / "a.zip", ["link/evil.jpg"])
    with pytest.raises(CarftError, match="outside the folder"):
        archives.unpack(archive, tmp_path / "inner")
    assert not (tmp_path / "evil.jpg").exists()


def test_links_and_encrypted_members_of_a_zip_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = stat.S_IFLNK << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "good.jpg")
    with pytest.raises(CarftError, match="'link' is neither a regular file nor a folder"):
        archives.unpack(tmp_path / "link.zip", tmp_path / "inner")

    content = bytearray(packed(tmp_path / "secret.zip", ["good.jpg"]).read_bytes())
    content[6] |= 1  # a flag of the member's header, and in the directory
    content[content.find(b"PK\1\2") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(content)
    with pytest.raises(CarftError, match=r"'good\.jpg' is encrypted.*unpack it by hand"):
        archives.unpack(tmp_path / "secret.zip", tmp_path / "inner")


@pytest.mark.parametrize("names", [["n" * 5000], ["a", "a/b"], ["a/b", "a"]])
@KINDS
def test_names_that_no_disk_can_hold_are_a_fault_of_the_archive(tmp_path, kind, names):
    archive = packed(tmp_path / f"a.{kind}", names)
    with pytest.raises(CarftError, match=r"cannot be unpacked: .*(too long|exists|a directory)"):
        archives.unpack(archive, tmp_path / "inner")
    assert not (tmp_path / "inner").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[80:140] = bytes(byte ^ 0xFF for byte in content[80:140])
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "spoil", "fault"),
    [
        ("zip", lambda p: p.write_text("<html>Too many users"), "is a web page, not the"),
        ("zip", cut, "is not a zip or tar archive, or is cut off"),
        ("tar.gz", cut, "is damaged or cut off"),
        ("zip", flipped, "is damaged or cut off"),
        ("tar.gz", flipped, "is (damaged|not)"),
    ],
)
def test_damaged_archives_are_named(tmp_path, kind, spoil, fault):
    noise = bytes(range(256)) * 400
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jpg", noise)
    else:
        tarred(tmp_path / "a.tar.gz", *[(f"{i}.jpg", noise) for i in range(20)])
    spoil(tmp_path / f"a.{kind}")
    with pytest.raises(archives.BadFile, match=rf"a\.{kind} {fault}.*; download the file again"):
        archives.unpack(tmp_path / f"a.{kind}", tmp_path / "inner")
    assert not (tmp_path / "inner").exists()
