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

from domainbed_carft import benchmarks, cli
from domainbed_carft.data import arrived, commands, download, prepare, unpack
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
    with pytest.raises(CarftError, match=r"evil\.jpg.*outside the folder.*nothing was unpacked"):
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
    with pytest.raises(arrived.BadFile, match=r"page\.zip is a web page in place of the file"):
        unpack.unpack(page, tmp_path / "inner")
    page.write_text("Too many users have viewed this file")
    with pytest.raises(arrived.BadFile, match=r"page\.zip is neither a zip nor a tar archive"):
        unpack.unpack(page, tmp_path / "inner")
    whole = tarred(tmp_path / "whole.tar.gz", *[(f"{i}.jpg", PICTURE * 50) for i in range(20)])
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(arrived.BadFile, match=r"cut\.tar\.gz is damaged or cut off"):
        unpack.unpack(cut, tmp_path / "inner")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["inner"]
    assert not list((tmp_path / "inner").iterdir())


def test_links_that_lead_outside_through_each_other_are_refused(tmp_path):
    """Python's filter sees the second only when the first is there."""
    archive = tarred(
        tmp_path / "a.tar.gz", ("d/good.jpg", PICTURE), ("d/ln", ".."), ("a", "d/ln/..")
    )
    with pytest.raises(CarftError, match=r"'a' that is not safe to unpack.*Do not use") as told:
        unpack.unpack(archive, tmp_path / "inner")
    assert not isinstance(told.value, arrived.BadFile)
    assert not list((tmp_path / "inner").iterdir()) and not (tmp_path / "inner.partial").exists()


def test_a_name_that_is_not_in_the_letters_it_says(tmp_path):
    path = zipped(tmp_path / "a.zip", ["café.jpg"])  # marked as UTF-8
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(arrived.BadFile, match=r"a\.zip is damaged or cut off .*utf-8"):
        unpack.unpack(path, tmp_path / "inner")


def test_archives_share_a_folder(tmp_path):
    """Of DomainNet's six some hold the same __MACOSX."""
    for n in "12":
        archive = zipped(tmp_path / f"{n}.zip", [f"{n}/a.jpg", f"both/{n}.jpg", "both/x/same.jpg"])
        unpack.unpack(archive, tmp_path / "inner")
    expected = ["1/a.jpg", "2/a.jpg", "both/1.jpg", "both/2.jpg", "both/x/same.jpg"]
    assert files(tmp_path / "inner") == expected


def test_a_disk_that_is_full_while_unpacking(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", ["one.jpg", "two.jpg"])

    def full(self, member, path=None, pwd=None):
        (Path(path) / "one.jpg").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(CarftError, match=r"No space left.*The archive is kept; make room"):
        unpack.unpack(archive, tmp_path / "inner")
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
    with pytest.raises(CarftError, match=r"flipped\..* is (damaged|neither).* fetched again"):
        unpack.unpack(path, tmp_path / "inner")


# Preparing


def domain_net(unpacked: Path, *duplicates: str) -> list[str]:
    """Three pictures an environment and the list; returns the pictures."""
    environments = [e.folder for e in benchmarks.get("DomainNet").environments]
    names = [f"{e}/zebra/{e}_{i}.jpg" for e in environments for i in range(3)]
    write(unpacked, [*names, "outside.jpg"])
    (unpacked / "domain_net_duplicates.txt").write_text("\n".join(duplicates))
    return names


def test_domain_net_loses_its_duplicates_and_nothing_else(tmp_path, monkeypatch):
    twice = ["real/zebra/real_1.jpg", "sketch/zebra/sketch_0.jpg", "real/zebra/unheard.jpg"]
    names = domain_net(tmp_path / "unpacked", *twice, "")
    monkeypatch.setattr(prepare, "DUPLICATES", 3)
    prepare.prepare("DomainNet", tmp_path / "unpacked", tmp_path / "ready")
    assert files(tmp_path / "ready") == sorted(set(names) - set(twice))


@pytest.mark.parametrize(
    "line",
    [
        "<!DOCTYPE html>", "../unpacked/outside.jpg", "/real/zebra/real_1.jpg", "real/real_1.jpg",
        "real/../real_1.jpg", "photo/zebra/1.jpg",
    ],
)  # fmt: skip
def test_a_list_of_duplicates_that_is_none(tmp_path, monkeypatch, line):
    domain_net(tmp_path / "unpacked", "real/zebra/real_1.jpg", line)
    monkeypatch.setattr(prepare, "DUPLICATES", 2)
    with pytest.raises(arrived.BadFile, match=r"duplicates\.txt is damaged: expected lines"):
        prepare.prepare("DomainNet", tmp_path / "unpacked", tmp_path / "ready")
    assert (tmp_path / "unpacked" / "outside.jpg").exists()


def test_a_list_of_duplicates_that_is_cut_off(tmp_path):
    domain_net(tmp_path / "unpacked", "real/zebra/real_1.jpg")
    with pytest.raises(arrived.BadFile, match=r"has 1 lines, expected 9,431: it is cut off"):
        prepare.prepare("DomainNet", tmp_path / "unpacked", tmp_path / "ready")


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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"images": [{"id": 1', "no JSON"),
        ("<html>Not found</html>", "no JSON"),
        ("[]", "no JSON object"),
        (b"\xff\xfe", "no JSON"),
        ('{"images": {"id": 1}}', "no list of images, each with id, location, file_name"),
        ('{"images": [1]}', "no list of images"),
        ('{"images": [{"id": "x", "location": 38}]}', "no list of images"),
        ('{"annotations": [{"image_id": []}]}', "no list of annotations"),
        ('{"categories": [{"id": 1}]}', "no list of categories, each with id, name"),
    ],
)
def test_annotations_that_are_none(tmp_path, content, fault):
    unpacked = terra(tmp_path / "unpacked")
    file = unpacked / prepare.TERRA_ANNOTATIONS / prepare.TERRA_FILES[2]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    expected = rf"eccv_18_annotations\.tar\.gz is damaged: its {file.name} (is|has) {fault}"
    with pytest.raises(arrived.BadFile, match=expected):
        prepare.prepare("TerraIncognita", unpacked, tmp_path / "ready")


@pytest.mark.parametrize("name", ["../../secret.jpg", "{}/secret.jpg", "a/../../../secret.jpg", ""])
def test_annotations_of_files_elsewhere_are_refused(tmp_path, name):
    write(tmp_path, ["secret.jpg"])
    unpacked = terra(tmp_path / "unpacked")
    file = unpacked / prepare.TERRA_ANNOTATIONS / prepare.TERRA_FILES[0]
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = name.format(tmp_path)
    file.write_text(json.dumps(content))
    with pytest.raises(CarftError, match=r"names a picture .* is outside the folder.*Do not use"):
        prepare.prepare("TerraIncognita", unpacked, tmp_path / "ready")
    assert not (tmp_path / "ready").exists()


def test_an_archive_of_another_edition_is_named(tmp_path):
    write(tmp_path / "unpacked", ["PACS/photo/dog/1.jpg"])
    with pytest.raises(CarftError, match=r"should hold 'kfold', but holds PACS"):
        prepare.prepare("PACS", tmp_path / "unpacked", tmp_path / "ready")


# All of it, from a server that can be told to break off


class Server(ThreadingHTTPServer):
    content = b""
    break_after: int | None = None
    knows_ranges = True
    says_length = True
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/PACS.zip":
            self.send_error(404)
            return
        ranged = wanted and self.server.knows_ranges
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if ranged else 0
        body = self.server.content[start:]
        self.send_response(206 if ranged else 200)
        if ranged:
            whole = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if self.server.says_length:
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
    table = {e.folder: dict.fromkeys(known.classes, 1) for e in known.environments}
    edition = benchmarks.Edition("of the test", {e: len(c) for e, c in table.items()}, table)
    sources = (benchmarks.Source(url, "PACS.zip"),)
    here = dataclasses.replace(known, editions=(edition,), sources=sources)
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
    assert report.verdict == "verified"
    assert not list(tmp_path.glob(".PACS*"))
    with pytest.raises(CarftError, match=r"PACS is there already"):
        download.download("PACS", tmp_path)


def test_a_server_that_cannot_go_on_is_asked_for_all_of_it(server, pacs, tmp_path, capsys):
    pytest.importorskip("gdown", reason="the extra 'data' is not installed")
    server.break_after = len(server.content) // 2
    with pytest.raises(CarftError, match="could not be fetched"):
        download.download("PACS", tmp_path)
    server.break_after, server.knows_ranges = None, False
    assert download.download("PACS", tmp_path).verdict == "verified"
    assert "PACS.zip is fetched from its beginning: " in capsys.readouterr().err


def test_a_page_that_says_404_is_no_archive(server, pacs, tmp_path, monkeypatch):
    pytest.importorskip("gdown", reason="the extra 'data' is not installed")
    (source,) = pacs.sources
    gone = dataclasses.replace(source, url=source.url.replace("PACS.zip", "gone.zip"))
    here = dataclasses.replace(pacs, sources=(gone,))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", here)
    with pytest.raises(CarftError, match=r"(?s)gone\.zip could not be fetched.*404.*save it as"):
        download.download("PACS", tmp_path)
    assert files(tmp_path / ".PACS.download") == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"<html>Too many users</html>", "is a web page in place of the file"),
        (b"\n <!DOCTYPE html>", "is a web page in place of the file"),
        (b"", "is empty"),
        (None, "is neither a zip nor a tar archive, or is cut off"),
    ],
)
def test_what_came_but_is_no_archive_is_not_kept_as_one(server, pacs, tmp_path, content, fault):
    pytest.importorskip("gdown", reason="the extra 'data' is not installed")
    whole = server.content
    server.content = whole[:-100] if content is None else content
    server.says_length = False
    with pytest.raises(CarftError) as told:
        download.download("PACS", tmp_path)
    archive = tmp_path / ".PACS.download" / "archives" / "PACS.zip"
    said = f"{archive}, from {pacs.sources[0].url}, {fault}. It is PACS.zip.damaged"
    assert str(told.value).startswith(said) and f"save it as {archive}" in str(told.value)
    server.content = whole
    assert download.download("PACS", tmp_path).verdict == "verified"


def test_an_archive_that_shows_its_damage_late_is_not_kept_either(pacs, tmp_path, monkeypatch):
    """A tar that is cut off begins as it should."""
    members = [(f"{i}.jpg", bytes(range(256)) * 9) for i in range(99)]
    tar = tarred(tmp_path / "whole.tar.gz", *members).read_bytes()
    with pytest.raises(CarftError, match=r"PACS\.zip\.damaged in that folder.*save it as"):
        download.download("PACS", tmp_path, lambda url, path: path.write_bytes(tar[:-100]))
    archives = tmp_path / ".PACS.download" / "archives"
    assert files(archives) == ["PACS.zip.damaged"]


def test_damage_inside_an_archive_is_that_of_the_archive(tmp_path):
    names = [f"{prepare.TERRA_ANNOTATIONS}/{name}" for name in prepare.TERRA_FILES]
    contents = {
        "terra_incognita_images.tar.gz": [(f"{prepare.TERRA_PICTURES}/a.jpg", PICTURE)],
        "eccv_18_annotations.tar.gz": [(name, b'{"images": [') for name in names],
    }
    with pytest.raises(CarftError) as told:
        download.download(
            "TerraIncognita", tmp_path, lambda _, path: tarred(path, *contents[path.name]) and None
        )
    _, source = benchmarks.get("TerraIncognita").sources
    assert f"{source.file}, from {source.url}, is damaged: its cis_test" in str(told.value)
    left = files(tmp_path / ".terra_incognita.download" / "archives")
    assert left == ["eccv_18_annotations.tar.gz.damaged", "terra_incognita_images.tar.gz"]


def test_a_gdown_that_tells_no_errors_is_not_used(pacs, tmp_path, monkeypatch):
    """Those before 6 have no DownloadError, and keep the page of a 404 as the file."""
    gdown = pytest.importorskip("gdown", reason="the extra 'data' is not installed")
    monkeypatch.delattr(gdown.exceptions, "DownloadError")
    with pytest.raises(CarftError, match=r"needs gdown 6\.3 or later: pip install"):
        download.download("PACS", tmp_path)


def half_of_it(path: Path, pacs) -> Path:
    names = [f"kfold/{e.folder}/{c}/1.jpg" for e in pacs.environments for c in pacs.classes]
    return zipped(path, [*names, "kfold/photo/dog/2.jpg"])


def test_what_is_not_as_known_is_taken_only_when_that_is_meant(server, pacs, tmp_path, capsys):
    archives = tmp_path / "it's" / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    half_of_it(archives / "PACS.zip", pacs)
    arguments = ["data", "download", "PACS", "--data_dir", str(tmp_path / "it's")]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert "'photo' has 8 pictures, 7 in the edition of the test (+1): 'dog' 2 in place" in said
    assert said.count(f"carft data download PACS --data_dir '{tmp_path}/it'\"'\"'s'") == 1
    assert not (tmp_path / "it's" / "PACS").exists() and (archives / "PACS.zip").exists()
    with pytest.raises(CarftError, match="--accept_different"):  # as the harness's script does it
        commands.download("PACS", str(tmp_path / "it's"))
    assert cli.main([*arguments, "--accept_different"]) == 0
    assert "\ndiffers: 29 pictures" in capsys.readouterr().out
    assert server.asked == [] and not archives.exists()
    assert (tmp_path / "it's" / "PACS" / "photo" / "dog" / "2.jpg").exists()


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
