"""Downloads from a server of our own, which can be told to break off."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from data_archives import PICTURE, files, tarred, zipped

from domainbed_carft import cli
from domainbed_carft.data import benchmarks, download, prepare
from domainbed_carft.errors import CarftError


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
    said = f"{archive}, from {pacs.sources[0].url}, {fault}; it was renamed to PACS.zip.damaged"
    assert str(told.value).startswith(said) and f"save it as {archive}" in str(told.value)
    server.content = whole
    assert download.download("PACS", tmp_path).verdict == "verified"


def test_an_archive_that_shows_its_damage_late_is_not_kept_either(pacs, tmp_path, monkeypatch):
    """A tar that is cut off begins as it should."""
    members = [(f"{i}.jpg", bytes(range(256)) * 9) for i in range(99)]
    tar = tarred(tmp_path / "whole.tar.gz", *members).read_bytes()
    with pytest.raises(CarftError, match=r"renamed to PACS\.zip\.damaged.*save it as"):
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
    assert "run `carft data download` with --accept_different" in said
    assert not (tmp_path / "it's" / "PACS").exists() and (archives / "PACS.zip").exists()
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


def test_an_archive_of_another_edition_is_told_with_its_place(server, pacs, tmp_path):
    archives = tmp_path / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    zipped(archives / "PACS.zip", ["PACS/photo/dog/1.jpg"])
    with pytest.raises(CarftError, match="hold 'kfold', but holds PACS") as told:
        download.download("PACS", tmp_path)
    assert f"The archives are in {archives}: put others there" in str(told.value)
    (archives / "PACS.zip").write_bytes(server.content)
    assert download.download("PACS", tmp_path).verdict == "verified"


def test_a_data_set_that_is_not_right_does_not_take_its_place(server, pacs, tmp_path):
    names = [f"kfold/{e.folder}/dog/1.jpg" for e in pacs.environments]
    archives = tmp_path / ".PACS.download" / "archives"
    archives.mkdir(parents=True)
    zipped(archives / "PACS.zip", names)
    with pytest.raises(CarftError, match=r"not right: .*elephant.*data set is in .*ready"):
        download.download("PACS", tmp_path)
    assert not (tmp_path / "PACS").exists()
    assert (archives / "PACS.zip").exists()
