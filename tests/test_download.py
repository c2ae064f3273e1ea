"""Downloads from a server of our own, archives that are hostile, preparation of small trees."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from domainbed_carft import benchmarks
from domainbed_carft.data import download, prepare, unpack
from domainbed_carft.errors import CarftError


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = picture()


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return folder


# Unpacking


def zipped(path: Path, names: list[str], padding: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PICTURE)
        if padding:
            archive.writestr(names[0] + ".txt", bytes(padding))
    return path


def tarred(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """Members are (name, content), the content of a symbolic link its target as a str."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_both_kinds_of_archives(tmp_path):
    names = ["PACS/photo/dog/it's one.jpg", "PACS/photo/dog/2.jpg"]
    unpack.unpack(zipped(tmp_path / "a.zip", names), tmp_path / "from zip")
    members = [(name, PICTURE) for name in names]
    unpack.unpack(tarred(tmp_path / "a.tar.gz", *members), tmp_path / "from tar")
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
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside .*inner.*nothing was unpacked"):
        unpack.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == [] and not (tmp_path / "evil.jpg").exists()


def test_a_link_that_leads_outside_is_refused(tmp_path):
    archive = tarred(tmp_path / "a.tar.gz", ("good.jpg", PICTURE), ("link", "../../etc/passwd"))
    with pytest.raises(CarftError, match=r"'link' that is not safe to unpack.*nothing was"):
        unpack.unpack(archive, tmp_path / "inner")
    assert files(tmp_path / "inner") == []


def test_what_is_no_whole_archive_is_named(tmp_path):
    page = tmp_path / "page.zip"
    page.write_text("<html>Too many users have viewed this file</html>")
    with pytest.raises(CarftError, match=r"page\.zip is neither a zip nor a tar archive"):
        unpack.unpack(page, tmp_path / "inner")
    whole = tarred(tmp_path / "whole.tar.gz", *[(f"{i}.jpg", PICTURE * 50) for i in range(20)])
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(CarftError, match=r"cut\.tar\.gz is damaged or cut off"):
        unpack.unpack(cut, tmp_path / "inner")


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
    with pytest.raises(CarftError, match=r"flipped\..* is .*damaged.* fetch it again"):
        unpack.unpack(path, tmp_path / "inner")


# Preparing


def test_domain_net_loses_its_duplicates_and_nothing_else(tmp_path):
    environments = [e.folder for e in benchmarks.get("DomainNet").environments]
    names = [f"{e}/zebra/{e}_{i}.jpg" for e in environments for i in range(3)]
    unpacked = write(tmp_path / "unpacked", [*names, "outside.jpg"])
    twice = ["real/zebra/real_1.jpg", "sketch/zebra/sketch_0.jpg", "real/zebra/unheard.jpg"]
    lines = [*twice, "", "../unpacked/outside.jpg"]
    (unpacked / "domain_net_duplicates.txt").write_text("\n".join(lines))
    prepare.prepare("DomainNet", unpacked, tmp_path / "ready")
    assert files(tmp_path / "ready") == sorted(set(names) - set(twice))
    assert (unpacked / "outside.jpg").exists()


def terra(unpacked: Path) -> Path:
    """Four pictures at two known locations and an unknown one, annotated in five files."""
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "car"}]
    images = [
        {"id": "a", "location": 38, "file_name": "a.jpg"},
        {"id": "b", "location": "100", "file_name": "b.jpg"},
        {"id": "c", "location": 38, "file_name": "c.jpg"},
        {"id": "d", "location": 7, "file_name": "d.jpg"},
    ]
    seen = [("a", 1), ("a", 1), ("a", 2), ("b", 2), ("c", 3), ("d", 1)]
    annotations = [{"image_id": i, "category_id": c} for i, c in seen]
    write(unpacked / prepare.TERRA_PICTURES, [image["file_name"] for image in images])
    folder = unpacked / prepare.TERRA_ANNOTATIONS
    folder.mkdir()
    for number, name in enumerate(prepare.TERRA_FILES):
        content = {
            "info": {"year": 2018},
            "images": images[number::5],
            "annotations": annotations[number::5],
            "categories": categories,
        }
        (folder / name).write_text(json.dumps(content))
    (folder / "._train_annotations.json").write_bytes(b"\x00\xff from a Mac")
    return unpacked


def test_terra_incognita_goes_by_its_annotations(tmp_path):
    prepare.prepare("TerraIncognita", terra(tmp_path / "unpacked"), tmp_path / "ready")
    # a dog and a cat on one picture are in both; cars and location 7 are no part of the benchmark
    assert files(tmp_path / "ready") == [
        "location_100/cat/b.jpg",
        "location_38/cat/a.jpg",
        "location_38/dog/a.jpg",
    ]


def test_terra_incognita_with_a_picture_missing(tmp_path):
    unpacked = terra(tmp_path / "unpacked")
    (unpacked / prepare.TERRA_PICTURES / "b.jpg").unlink()
    with pytest.raises(CarftError, match=r"b\.jpg is annotated but not in the archive"):
        prepare.prepare("TerraIncognita", unpacked, tmp_path / "ready")


def test_an_archive_of_another_edition_is_named(tmp_path):
    write(tmp_path / "unpacked", ["PACS/photo/dog/1.jpg"])
    with pytest.raises(CarftError, match=r"should hold 'kfold', but holds PACS"):
        prepare.prepare("PACS", tmp_path / "unpacked", tmp_path / "ready")


# All of it, from a server that can be told to break off


class Server(ThreadingHTTPServer):
    content = b""
    break_after: int | None = None
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/PACS.zip":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        body = self.server.content[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            whole = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # gdown looks at the head of it first
            self.wfile.write(body[: self.server.break_after])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as serving:
        serving.asked = []
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def pacs(server, tmp_path, monkeypatch):
    """PACS as the server has it: a picture a class and environment."""
    known = benchmarks.get("PACS")
    names = [f"kfold/{e.folder}/{c}/1.jpg" for e in known.environments for c in known.classes]
    # gdown writes half a megabyte at a time
    server.content = zipped(tmp_path / "on the server.zip", names, 3_000_000).read_bytes()
    url = f"http://127.0.0.1:{server.server_address[1]}/PACS.zip"
    here = dataclasses.replace(known, sources=(benchmarks.Source(url, "PACS.zip"),))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", here)
    monkeypatch.setenv("HOME", str(tmp_path))  # gdown keeps cookies
    return here


def test_a_download_that_broke_off_goes_on_and_is_verified(server, pacs, tmp_path):
    pytest.importorskip("gdown", reason="the extra 'data' is not installed")
    server.break_after = len(server.content) // 2
    with pytest.raises(CarftError, match=r"(?s)could not be fetched.*save it as .*PACS\.zip"):
        download.download("PACS", tmp_path)
    assert not (tmp_path / "PACS").exists()
    server.break_after = None
    report = download.download("PACS", tmp_path)
    last = server.asked[-1]
    assert last is not None and 0 < int(last[len("bytes=") : -1]) <= len(server.content) // 2
    assert len([f for f in files(tmp_path / "PACS") if f.endswith(".jpg")]) == 28
    assert report.verdict == "differs"  # one picture a class is not the published edition
    assert not list(tmp_path.glob(".PACS*"))
    with pytest.raises(CarftError, match=r"PACS is there already"):
        download.download("PACS", tmp_path)


def test_a_place_that_cannot_be_written_is_named_and_nothing_fetched_is_lost(pacs, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(CarftError, match=r"PACS cannot be made in .*a file: .*another --data_dir"):
        download.download("PACS", tmp_path / "a file")


def test_a_disk_that_is_full_when_the_pictures_are_made(pacs, server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare, "prepare", full)
    archives = tmp_path / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    (archives / "PACS.zip").write_bytes(server.content)
    with pytest.raises(CarftError, match=r"No space left on device.*Make room.*is kept"):
        download.download("PACS", tmp_path)
    assert (archives / "PACS.zip").exists() and not (tmp_path / "PACS").exists()


def test_a_file_put_there_by_hand_is_not_fetched(server, pacs, tmp_path):
    archives = tmp_path / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    (archives / "PACS.zip").write_bytes(server.content)
    download.download("PACS", tmp_path)
    assert server.asked == [] and (tmp_path / "PACS" / "photo" / "dog" / "1.jpg").exists()


def test_a_data_set_that_is_not_right_does_not_take_its_place(server, pacs, tmp_path):
    names = [f"kfold/{e.folder}/dog/1.jpg" for e in pacs.environments]
    archives = tmp_path / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    zipped(archives / "PACS.zip", names)
    with pytest.raises(CarftError, match=r"not right: .*elephant.*left in .*ready"):
        download.download("PACS", tmp_path)
    assert not (tmp_path / "PACS").exists()
    assert (archives / "PACS.zip").exists()
