"""Archives that are whole, cut off, damaged or hostile, and what is unpacked of them."""

from __future__ import annotations

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
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside the folder.*nothing was unpacked"):
        archives.unpack(archive, tmp_path / "inner")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    "links",
    [
        [("link", "../../etc/passwd")],
        [("d/ln", ".."), ("link", "d/ln/..")],  # the second leads out when the first is there
    ],
)
def test_links_that_lead_outside_are_refused(tmp_path, links):
    archive = tarred(tmp_path / "a.tar.gz", ("d/good.jpg", PICTURE), *links)
    with pytest.raises(CarftError, match=r"not safe to unpack .*'link'.*Do not use") as raised:
        archives.unpack(archive, tmp_path / "inner")
    assert not isinstance(raised.value, archives.BadFile)
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
