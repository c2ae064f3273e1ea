"""Downloads from a server of our own, which can be told to break off."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from data_trees import expect_one_picture_a_class, files, zipped

from domainbed_carft import cli
from domainbed_carft.data import benchmarks, download
from domainbed_carft.errors import CarftError

needs_gdown = pytest.mark.skipif(
    importlib.util.find_spec("gdown") is None, reason="the extra 'data' is not installed"
)


class Server(ThreadingHTTPServer):
    content = b""
    break_after: int | None = None
    says_length = True
    requested_ranges: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        requested_range = self.headers.get("Range")
        self.server.requested_ranges.append(requested_range)
        start = int(requested_range.removeprefix("bytes=").split("-")[0]) if requested_range else 0
        body = self.server.content[start:]
        self.send_response(206 if requested_range else 200)
        if requested_range:
            size = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
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
        serving.requested_ranges = []
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def pacs(server, tmp_path, monkeypatch):
    """PACS as the server has it: a picture a class and environment."""
    _, table = expect_one_picture_a_class(monkeypatch, "PACS")
    names = [f"kfold/{e}/{c}/1.jpg" for e, classes in table.items() for c in classes]
    # gdown writes half a megabyte at a time
    server.content = zipped(tmp_path / "on the server.zip", names, 3_000_000).read_bytes()
    url = f"http://127.0.0.1:{server.server_address[1]}/PACS.zip"
    sources = (benchmarks.Source(url, "PACS.zip"),)
    benchmark = dataclasses.replace(benchmarks.get("PACS"), sources=sources)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", benchmark)
    monkeypatch.setenv("HOME", str(tmp_path))  # gdown keeps cookies
    return benchmark


@pytest.fixture
def archives(tmp_path):
    """Where the archives of PACS are fetched to, or put by hand."""
    folder = tmp_path / ".PACS.download" / "archives"
    folder.mkdir(parents=True)
    return folder


@needs_gdown
def test_an_interrupted_download_resumes_and_is_verified(server, pacs, tmp_path):
    server.break_after = len(server.content) // 2
    with pytest.raises(CarftError, match=r"(?s)downloading .* failed .*save it as .*PACS\.zip"):
        download.download("PACS", tmp_path)
    assert not (tmp_path / "PACS").exists()

    server.break_after = None
    report = download.download("PACS", tmp_path)
    last = server.requested_ranges[-1]
    assert last is not None
    assert 0 < int(last[len("bytes=") : -1]) <= len(server.content) // 2
    assert len([f for f in files(tmp_path / "PACS") if f.endswith(".jpg")]) == 28
    assert report.verdict == "verified" and not list(tmp_path.glob(".PACS*"))
    with pytest.raises(CarftError, match=r"PACS already exists"):
        download.download("PACS", tmp_path)


def answer_slowly(listener: socket.socket, mode: str, is_over: threading.Event) -> None:
    """Take a request and drip an answer of 20 s, its head or its body, or say nothing so long."""
    if mode == "not accepted":
        is_over.wait(20)
        listener.close()
        return
    with listener.accept()[0] as connection, contextlib.suppress(OSError):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n"
        connection.sendall({"silent": b"", "head drips": b"HTTP/1.1 200 OK\r\n"}.get(mode, head))
        for _ in range(100):
            connection.sendall(b"" if mode.startswith("silent") else b"x")
            if is_over.wait(0.2):
                return


@needs_gdown
@pytest.mark.parametrize(
    "mode", ["not accepted", "silent", "silent body", "head drips", "body drips"]
)
def test_a_download_without_progress_ends(pacs, tmp_path, monkeypatch, capfd, mode):
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.6)
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/PACS.zip"
        slow = dataclasses.replace(pacs, sources=(benchmarks.Source(url, "PACS.zip"),))
        monkeypatch.setitem(benchmarks.BENCHMARKS, "PACS", slow)
        server = threading.Thread(target=answer_slowly, args=(listener, mode, is_over))
        server.start()
        with pytest.raises(CarftError, match=r"PACS\.zip failed \(TimeoutError: .* next to noth"):
            download.download("PACS", tmp_path)
        is_over.set()
        server.join()
    assert capfd.readouterr().err.startswith(f"PACS.zip: fetching {url}\n")


@needs_gdown
def test_a_damaged_archive_is_renamed_and_downloaded_again(server, pacs, tmp_path):
    complete_archive = server.content
    server.says_length = False
    server.content = complete_archive[:-100]
    fault = "is not a zip or tar archive, or is cut off"
    with pytest.raises(CarftError) as raised:
        download.download("PACS", tmp_path)

    archive = tmp_path / ".PACS.download" / "archives" / "PACS.zip"
    expected = (
        f"{archive}, from {pacs.sources[0].url}, {fault}; the file was renamed to PACS.zip.dam"
    )
    assert str(raised.value).startswith(expected)
    assert f"save it as {archive}" in str(raised.value)

    server.content = complete_archive
    assert download.download("PACS", tmp_path).verdict == "verified"


def test_data_that_differs_is_installed_only_if_accepted(server, pacs, archives, tmp_path, capsys):
    names = [f"kfold/{e.folder}/{c}/1.jpg" for e in pacs.environments for c in pacs.classes]
    zipped(archives / "PACS.zip", [*names, "kfold/photo/dog/2.jpg"])
    arguments = ["data", "download", "PACS", "--data_dir", str(tmp_path)]
    assert cli.main(arguments) == 1

    message = capsys.readouterr().err
    assert "'photo' has 8 pictures, expected 7 as in the edition of the test (+1): 'dog'" in message
    assert "To install the data anyway: --accept_different" in message
    assert not (tmp_path / "PACS").exists() and (archives / "PACS.zip").exists()
    assert cli.main([*arguments, "--accept_different"]) == 0
    assert "\ndiffers: 29 pictures" in capsys.readouterr().out
    assert server.requested_ranges == [] and not archives.exists()
    assert (tmp_path / "PACS" / "photo" / "dog" / "2.jpg").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["PACS/photo/dog/1.jpg"], "the archives lack 'kfold'.*Replace or delete them in"),
        (["kfold/photo/dog/1.jpg"], "not as expected: the environments are 'photo'.*data is in"),
    ],
)
def test_data_of_a_wrong_archive_is_not_installed(server, pacs, archives, tmp_path, names, message):
    zipped(archives / "PACS.zip", names)
    with pytest.raises(CarftError, match=message):
        download.download("PACS", tmp_path, None, True)
    assert (archives / "PACS.zip").exists() and not (tmp_path / "PACS").exists()
    (archives / "PACS.zip").write_bytes(server.content)  # put there by hand
    assert download.download("PACS", tmp_path).verdict == "verified"
    assert server.requested_ranges == []


def test_macos_metadata_is_not_unpacked(server, pacs, archives, tmp_path):
    names = [f"kfold/{e.folder}/{c}/1.jpg" for e in pacs.environments for c in pacs.classes]
    leftovers = ["__MACOSX/kfold/._photo", "kfold/photo/__MACOSX/1.jpg", "kfold/photo/dog/._1.jpg"]
    zipped(archives / "PACS.zip", [*leftovers, *names])
    assert download.download("PACS", tmp_path).verdict == "verified"
    assert len(files(tmp_path / "PACS")) == len(names)
    assert server.requested_ranges == []


@pytest.mark.parametrize("name", ["PACS", "ImageNet-R", "EuroSAT", "Caltech101"])
def test_a_download_that_fails_leaves_no_empty_folder(name, tmp_path, monkeypatch, capsys):
    def no_network(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(download, "_fetch", no_network)
    for module in ("eurosat", "caltech"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", no_network
        )

    data = tmp_path / "data"
    assert cli.main(["data", "download", name, "--data_dir", str(data)]) == 1
    assert "no network" in capsys.readouterr().err
    assert not data.exists()

    data.mkdir()
    assert cli.main(["data", "download", name, "--data_dir", str(data)]) == 1
    assert data.exists() and not any(data.iterdir())
