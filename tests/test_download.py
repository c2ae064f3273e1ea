"""Downloads of benchmarks, from a local server or by a test function."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from data_trees import even, files, zipped

from domainbed_carft import cli
from domainbed_carft.data import benchmarks, downloads
from domainbed_carft.errors import CarftError


@pytest.fixture
def pacs(monkeypatch):
    """Replace PACS by an edition with one image per class and environment; return its files."""
    benchmark = benchmarks.get("PACS")
    table = even(benchmark.classes, [environment.folder for environment in benchmark.environments])
    counts = {environment: len(classes) for environment, classes in table.items()}
    edition = benchmarks.Edition("of the test", counts, table)
    source = benchmarks.Source("http://127.0.0.1/PACS.zip", "PACS.zip")
    changed = dataclasses.replace(benchmark, editions=(edition,), sources=(source,))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", changed)
    return [f"kfold/{e}/{c}/1.jpg" for e, classes in table.items() for c in classes]


@pytest.fixture
def archive(tmp_path):
    """Create the folder of PACS's archive, and return the archive's path."""
    folder = tmp_path / ".PACS.download" / "archives"
    folder.mkdir(parents=True)
    return folder / "PACS.zip"


class Server(BaseHTTPRequestHandler):
    """Sends `content` from the requested offset, and hangs up after `max_bytes`."""

    content = b""
    max_bytes: int | None = None
    starts: list[int] = []

    def do_GET(self):
        size = len(self.content)
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        self.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # gdown first reads only the beginning
            self.wfile.write(self.content[start:][: self.max_bytes])


@pytest.mark.skipif(importlib.util.find_spec("gdown") is None, reason="needs the extra 'data'")
def test_interrupted_download_resumes_and_is_verified(pacs, tmp_path, monkeypatch):
    # Larger than the half megabyte that gdown writes at a time; HOME is for its cookies.
    Server.content = zipped(tmp_path / "on the server.zip", pacs, 3_000_000).read_bytes()
    Server.max_bytes = len(Server.content) // 2
    monkeypatch.setenv("HOME", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/PACS.zip"
        source = benchmarks.Source(url, "PACS.zip")
        benchmark = dataclasses.replace(benchmarks.get("PACS"), sources=(source,))
        monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", benchmark)
        with pytest.raises(CarftError, match=r"(?s)downloading .* failed .*with --from FILE"):
            downloads.download("PACS", tmp_path)
        assert not (tmp_path / "PACS").exists()

        Server.max_bytes = None
        report = downloads.download("PACS", tmp_path)
        server.shutdown()
    assert 0 < Server.starts[-1] <= len(Server.content) // 2
    assert report.status == "verified" and not list(tmp_path.glob(".PACS*"))
    assert len([f for f in files(tmp_path / "PACS") if f.endswith(".jpg")]) == 28
    with pytest.raises(CarftError, match=r"PACS already exists"):
        downloads.download("PACS", tmp_path)


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_download_without_progress_fails(pacs, tmp_path, monkeypatch, drip):
    monkeypatch.setattr(downloads, "PATIENCE_SECONDS", 0.6)
    is_over = threading.Event()

    def fetch(url, path):
        while not is_over.wait(0.1):
            (tmp_path / "drips").write_bytes(drip)

    with pytest.raises(CarftError, match=r"PACS\.zip failed \(TimeoutError: .* almost nothing"):
        downloads.download("PACS", tmp_path, fetch)
    is_over.set()


def test_damaged_archive_is_renamed_and_downloaded_again(pacs, archive, tmp_path):
    complete = zipped(tmp_path / "complete.zip", pacs).read_bytes()
    with pytest.raises(CarftError) as raised:
        downloads.download("PACS", tmp_path, lambda url, path: path.write_bytes(complete[:-100]))
    fault = "is not a zip or tar archive, or is cut off; the file was renamed to PACS.zip.dam"
    assert f"{archive}, from http://127.0.0.1/PACS.zip, {fault}" in str(raised.value)
    assert "rerun the command with --from FILE" in str(raised.value)

    report = downloads.download("PACS", tmp_path, lambda url, path: path.write_bytes(complete))
    assert report.status == "verified"


def test_different_data_is_installed_only_if_accepted(pacs, archive, tmp_path, capsys):
    zipped(archive, [*pacs, "kfold/photo/dog/2.jpg"])
    arguments = ["data", "download", "PACS", "--data_dir", str(tmp_path)]
    assert cli.main(arguments) == 1

    message = capsys.readouterr().err
    assert "'photo' has 8 images, expected 7 in the edition of the test (+1): 'dog'" in message
    assert "--accept-different" in message
    assert not (tmp_path / "PACS").exists() and archive.exists()
    assert cli.main([*arguments, "--accept-different"]) == 0
    assert "\ndiffers: 29 images" in capsys.readouterr().out
    assert (tmp_path / "PACS" / "photo" / "dog" / "2.jpg").exists() and not archive.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["PACS/photo/dog/1.jpg"], "the archives lack 'kfold'.*Replace or delete them in"),
        (["kfold/photo/dog/1.jpg"], "not as expected: the environments are 'photo'.*data is in"),
    ],
)
def test_wrong_archive_is_not_installed(pacs, archive, tmp_path, names, message):
    zipped(archive, names)
    with pytest.raises(CarftError, match=message):
        downloads.download("PACS", tmp_path, accept_different=True)
    assert archive.exists() and not (tmp_path / "PACS").exists()


@pytest.fixture
def two_archives(pacs, monkeypatch, tmp_path):
    """Divide PACS between two archives; return a folder with both."""
    names = ("first.zip", "second.zip")
    sources = tuple(benchmarks.Source(f"http://127.0.0.1/{name}", name) for name in names)
    benchmark = dataclasses.replace(benchmarks.get("PACS"), sources=sources)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", benchmark)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, name in enumerate(names):
        zipped(folder / name, pacs[number::2])
    return folder


def test_file_of_the_user_is_installed_without_a_download_and_stays(pacs, tmp_path, capsys):
    mine = zipped(tmp_path / "from a mirror.zip", pacs)
    content = mine.read_bytes()
    data = tmp_path / "DATA"
    arguments = ["data", "download", "PACS", "--data_dir", str(data), "--from", str(mine)]
    assert cli.main(arguments) == 0
    assert "verified: the 28 images, of the test" in capsys.readouterr().out
    assert mine.read_bytes() == content and not mine.is_symlink()
    assert [path.name for path in data.iterdir()] == ["PACS"]


@pytest.mark.parametrize("given", [["."], ["first.zip", "second.zip"], ["second.zip"]])
def test_archives_that_the_user_does_not_have_are_downloaded(two_archives, tmp_path, given):
    contents = files(two_archives)
    fetched = []

    def fetch(url, path):
        fetched.append(path.name)
        path.write_bytes((two_archives / path.name).read_bytes())

    paths = [two_archives / name for name in given]
    report = downloads.download("PACS", tmp_path / "DATA", fetch, given_files=paths)
    assert report.status == "verified" and report.edition == "of the test"
    assert fetched == (["first.zip"] if given == ["second.zip"] else [])
    assert files(two_archives) == contents


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.zip", r"other\.zip is not a file of PACS, expected first\.zip or second\.zip"),
        ("empty", r"empty has no file of PACS, expected first\.zip or second\.zip"),
        ("none.zip", r"--from .*none\.zip does not exist"),
        ("cut/first.zip", r"cut/first\.zip is not a zip or tar archive, or is cut off"),
    ],
)
def test_wrong_file_of_the_user_is_named_before_anything_is_downloaded(
    two_archives, tmp_path, name, message
):
    (two_archives / "empty").mkdir()
    (two_archives / "cut").mkdir()
    first = (two_archives / "first.zip").read_bytes()
    (two_archives / "other.zip").write_bytes(first)
    (two_archives / "cut" / "first.zip").write_bytes(first[:-100])

    def fetch(url, path):
        raise AssertionError("nothing should be downloaded")

    with pytest.raises(CarftError, match=message):
        downloads.download("PACS", tmp_path / "DATA", fetch, given_files=[two_archives / name])
    assert not (tmp_path / "DATA").exists()


def test_damaged_file_of_the_user_is_named_and_kept(pacs, tmp_path):
    mine = zipped(tmp_path / "mine.zip", pacs)
    content = bytearray(mine.read_bytes())
    content[40] ^= 255  # in the first member, which the directory at the end does not show
    mine.write_bytes(content)
    with pytest.raises(CarftError, match=r"mine\.zip is damaged or cut off .*Get the file again"):
        downloads.download("PACS", tmp_path / "DATA", given_files=[mine])
    assert mine.read_bytes() == content


def test_earlier_download_is_not_replaced_by_a_file_of_the_user(pacs, archive, tmp_path):
    mine = zipped(tmp_path / "mine.zip", pacs)
    archive.write_text("downloaded")
    with pytest.raises(CarftError, match=f"{archive} already exists; delete it to use"):
        downloads.download("PACS", tmp_path, given_files=[mine])
    assert archive.read_text() == "downloaded"
