"""The store of decoded pictures: what it returns, which processes share it, when it is off."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_carft import machine
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures import handles, inspection, loading, store, store_folder
from domainbed_carft.pictures.inspection import StoreState
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.store_folder import open_store

TRAINING = plan_for("domainbed", 32, augment=True)
TEST = plan_for("domainbed", 32, augment=False)
BOUND = "32M"
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, where stores are; no SLURM."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder


def write(folder: Path, count: int, side: int = 100) -> list[str]:
    """Write pictures of noise, of which no two are equal; returns their paths."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(len(folder.name))
    paths = [str(folder / f"{n}.jpg") for n in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (side, side + 20, 3), np.uint8)).save(path)
    return paths


def forked(function: Callable[[], Any]) -> Any:
    """The result of a function in a process of its own."""
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=lambda: results.put(function()))
    process.start()
    result = results.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0
    return result


def opened(*arguments: Any) -> store.Store:
    picture_store, line = open_store(*arguments)
    assert picture_store is not None, line
    return picture_store


def loaded(plan: Any, paths: list[str], picture_store: store.Store | None) -> list[torch.Tensor]:
    """The squares of pictures and the random choices for them, one after the other."""
    torch.manual_seed(0)
    return [part.clone() for path in paths for part in loading.load(plan, path, picture_store)]


def all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("steps", [TRAINING, TEST])
@pytest.mark.parametrize("side", [20, 200])  # smaller than LMDB's pages, and larger
def test_stored_pictures_are_those_of_the_files(tmp_path, monkeypatch, steps, side):
    paths = write(tmp_path / "data", 5, side)
    expected = loaded(steps, paths, None)
    picture_store = opened(BOUND)
    assert all_equal(loaded(steps, paths, picture_store), expected)
    monkeypatch.setattr(loading, "decode", None)
    assert all_equal(loaded(steps, paths, picture_store), expected)
    assert all_equal(loaded(steps, paths, pickle.loads(pickle.dumps(picture_store))), expected)
    assert forked(lambda: all_equal(loaded(steps, paths, picture_store), expected))
    assert all_equal(loaded(steps, paths, picture_store), expected)


def test_a_changed_file_is_decoded_again(tmp_path):
    (path, other_path) = write(tmp_path / "data", 2)
    picture_store = opened(BOUND)
    for steps in (TRAINING, TEST):
        before = loaded(steps, [path], picture_store)
        times = os.stat(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        Path(path).write_bytes(Path(other_path).read_bytes())
        assert not all_equal(loaded(steps, [path], picture_store), before)
        assert all_equal(loaded(steps, [path], picture_store), loaded(steps, [other_path], None))
        write(tmp_path / "data", 2)


def test_two_processes_can_write_at_once(tmp_path):
    paths = write(tmp_path / "data", 40)
    expected = loaded(TRAINING, paths, None)
    writers = [
        CONTEXT.Process(target=lambda paths=paths[n:]: loaded(TRAINING, paths, opened(BOUND)))
        for n in (0, 10, 20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0

    picture_store = opened(BOUND)
    size = picture_store.size()
    assert all_equal(loaded(TRAINING, paths, picture_store), expected)
    assert picture_store.size() == size


def test_a_full_store_takes_no_more_pictures(tmp_path):
    paths = write(tmp_path / "data", 30, 700)  # 1.5 MB each
    picture_store = opened("16M")
    expected = loaded(TRAINING, paths, None)
    assert all_equal(loaded(TRAINING, paths, picture_store), expected)
    assert all_equal(loaded(TRAINING, paths, picture_store), expected)
    (file,) = picture_store.folder.glob("data.mdb")
    assert 12 << 20 < file.stat().st_size <= 16 << 20
    keys = [store.picture_key(path, f"whole {loading.DECODER_VERSIONS}") for path in paths]
    assert 8 <= sum(picture_store.get(key) is not None for key in keys) < 30


def test_a_full_disk_stops_writing_but_not_reading(tmp_path):
    paths = write(tmp_path / "data", 8, 300)

    def on_a_small_disk() -> bool:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        picture_store = opened(BOUND)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
        first = loaded(TRAINING, paths, picture_store)
        return (
            all_equal(first, loaded(TRAINING, paths, picture_store))
            and picture_store.size() < 1 << 20
        )

    assert forked(on_a_small_disk)


def test_unused_stores_of_other_pictures_are_deleted(tmp_path):
    first_paths, second_paths = (write(tmp_path / name, 20, 700) for name in ("others", "ours"))

    def keeps(paths: list[str]) -> bool:
        picture_store = opened("16M", str(Path(paths[0]).parent))
        loaded(TRAINING, paths, picture_store)
        return (
            picture_store.get(store.picture_key(paths[0], f"whole {loading.DECODER_VERSIONS}"))
            is not None
        )

    assert forked(lambda: keeps(first_paths))

    is_over = CONTEXT.Event()
    ready = CONTEXT.Event()

    def use() -> None:
        opened("16M", str(tmp_path / "others"))
        ready.set()
        is_over.wait(60)

    user = CONTEXT.Process(target=use)
    user.start()
    assert ready.wait(60)
    assert not forked(lambda: keeps(second_paths))

    is_over.set()
    user.join(60)
    assert forked(lambda: keeps(first_paths))  # half and more is of these pictures: it stays
    assert forked(lambda: keeps(second_paths))
    assert not forked(
        lambda: opened("16M", str(tmp_path / "ours")).get(
            store.picture_key(first_paths[0], f"whole {loading.DECODER_VERSIONS}")
        )
    )


def test_a_store_of_another_boot_is_deleted(temporary_folder):
    folder = forked(lambda: str(opened(BOUND).folder))
    earlier_folder = Path(folder).rename(Path(folder).parent / "pictures-2-another-boot")
    (earlier_folder / "data.mdb").write_bytes(b"half written")
    assert forked(lambda: str(opened(BOUND).folder)) == folder
    assert not earlier_folder.exists()
    Path(folder, "data.mdb").write_bytes(b"damaged" * 4096)
    assert forked(lambda: opened(BOUND).size()) < 1 << 20


def test_the_folder_is_private_or_refused(temporary_folder):
    picture_store = opened(BOUND)
    for path in (
        picture_store.folder,
        picture_store.folder.parent,
        *picture_store.folder.iterdir(),
    ):
        assert not path.stat().st_mode & 0o077

    picture_store.folder.parent.chmod(0o755)
    refused_store, line = open_store(BOUND)
    assert refused_store is None
    assert "not a folder of this user alone" in line

    picture_store.folder.parent.rename(temporary_folder / "elsewhere")
    (temporary_folder / f"domainbed-carft-{os.geteuid()}").symlink_to(
        temporary_folder / "elsewhere"
    )
    assert open_store(BOUND)[0] is None


def test_the_log_line_says_the_size_or_why_there_is_no_store(temporary_folder, monkeypatch):
    def line(requested_size: str | None) -> str:
        picture_store, log_line = open_store(requested_size)
        assert (picture_store is None) == log_line.startswith("decoded pictures are not kept: ")
        return log_line

    assert store_folder._file_system(Path("/proc/self")) == "proc"

    monkeypatch.setattr(store_folder, "_file_system", {temporary_folder: "nfs4"}.get)
    assert "is on a network (nfs4); only if --picture_cache asks" in line(None)
    assert line("0") == "decoded pictures are not kept: --picture_cache is 0"
    assert "at most 32M (as --picture_cache asks)" in line("32M")

    monkeypatch.setattr(store_folder, "_file_system", {temporary_folder: "tmpfs"}.get)
    monkeypatch.setattr(machine, "memory", lambda: 100 << 20)
    assert "at most 25M (a quarter of the memory, at most 8G)" in line(None)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "under SLURM" in line(None)
    assert "at most 32M" in line("32M")

    free = os.statvfs(temporary_folder).f_bavail * os.statvfs(temporary_folder).f_frsize
    assert "half of what is free there" in line(str(2 * free))

    for wrong in ("8X", "", "-1", "8 G B", "9" * 400, "\u0663G"):
        with pytest.raises(CarftError, match="expected a size such as 8G or 500M, or 0"):
            line(wrong)
    assert [store_folder.parse_size(text) for text in ("1.5G", "2mb", "7")] == [3 << 29, 2 << 20, 7]


def keys_of(paths: list[str]) -> list[bytes]:
    return [store.picture_key(path, f"whole {loading.DECODER_VERSIONS}") for path in paths]


def alter(file: Path, offset: int, content: bytes) -> None:
    with open(file, "r+b") as opened_file:
        opened_file.seek(offset)
        opened_file.write(content)


def offsets_of_pictures(file: Path, paths: list[str]) -> list[int]:
    """Where in the file of the store the pixels of each picture begin."""
    content = file.read_bytes()
    return [content.index(loading.decode(path).numpy().tobytes()) for path in paths]


@pytest.mark.parametrize("side", [20, 200])  # smaller than LMDB's pages, and larger
@pytest.mark.parametrize("damage", ["a pixel", "the shape", "the checksum", "two swapped"])
def test_a_damaged_picture_is_decoded_and_stored_again(tmp_path, monkeypatch, damage, side):
    paths = write(tmp_path / "data", 4, side)
    expected = loaded(TRAINING, paths, None)
    picture_store = opened(BOUND)
    forked(lambda: len(loaded(TRAINING, paths, picture_store)))
    file = picture_store.folder / "data.mdb"
    first, second = offsets_of_pictures(file, paths[:2])
    if damage == "two swapped":
        pixels = [loading.decode(path).numpy().tobytes() for path in paths[:2]]
        alter(file, first, pixels[1])
        alter(file, second, pixels[0])
    else:
        offset = {"a pixel": first + 7, "the shape": first - 16, "the checksum": first - 24}[damage]
        alter(file, offset, bytes([file.read_bytes()[offset] ^ 0x40]))

    assert forked(lambda: all_equal(loaded(TRAINING, paths, picture_store), expected))

    monkeypatch.setattr(loading, "decode", None)
    assert forked(lambda: all_equal(loaded(TRAINING, paths, picture_store), expected))


def test_any_flipped_bit_of_a_value_is_found(tmp_path):
    (path,) = write(tmp_path / "data", 1, 8)
    (key,) = keys_of([path])
    value = store._pack(key, loading.decode(path))
    for position in range(8 * len(value)):
        damaged = value.copy()
        damaged[position // 8] ^= 1 << position % 8
        assert store._unpack(key, damaged) is None, position
    for length in range(len(value)):
        assert store._unpack(key, value[:length]) is None
    assert store._unpack(b"another", value) is None
    assert np.array_equal(store._unpack(key, value), loading.decode(path))


def damage_store(file: Path, damage: str) -> None:
    """Damage LMDB's file in one of the ways of the test below."""
    size = file.stat().st_size
    page = os.sysconf("SC_PAGE_SIZE")
    if damage == "cut short":
        os.truncate(file, size // 2)
    elif damage == "one page":
        os.truncate(file, size - page)
    elif damage == "first bytes":
        os.truncate(file, 100)
    elif damage == "zeroed":
        alter(file, 2 * page, bytes(size - 2 * page))
    else:
        content = file.read_bytes()
        leaves = [at for at in range(0, size, page) if content[at + 10 : at + 12] == b"\2\0"]
        for leaf in leaves:  # LMDB follows such offsets without a look
            alter(file, leaf + 16, b"\xf0\xff" * 8)


@pytest.mark.parametrize("damage", ["cut short", "one page", "first bytes", "zeroed", "offsets"])
def test_a_damaged_store_is_replaced_once_unused(tmp_path, damage):
    paths = write(tmp_path / "data", 20, 300)
    expected = loaded(TRAINING, paths, None)
    folder = forked(lambda: (loaded(TRAINING, paths, opened(BOUND)), str(opened(BOUND).folder))[1])
    file = Path(folder) / "data.mdb"
    size = file.stat().st_size
    damage_store(file, damage)

    def start() -> tuple[bool, str]:
        picture_store, line = open_store(BOUND)
        return all_equal(loaded(TRAINING, paths, picture_store), expected), line

    stop = CONTEXT.Event()
    ready = CONTEXT.Event()

    def use() -> None:
        with handles.registered(Path(folder).parent):
            pass
        ready.set()
        stop.wait(60)

    user = CONTEXT.Process(target=use)
    user.start()
    assert ready.wait(60)

    is_right, line = forked(start)
    assert is_right and f"not kept: {folder} is damaged and in use" in line
    assert file.stat().st_size <= size

    stop.set()
    user.join(60)
    is_right, line = forked(start)
    assert is_right and "a damaged store was deleted" in line

    is_right, line = forked(start)
    assert is_right and "a damaged store" not in line


def test_a_store_is_consistent_after_any_number_of_puts(tmp_path):
    paths = write(tmp_path / "data", 30, 30) + write(tmp_path / "larger", 30, 150)
    picture_store = opened(BOUND)

    def put_all() -> bool:
        for number, path in enumerate(np.random.default_rng(0).permutation(paths * 10)):
            picture_store.put(store.picture_key(str(path), str(number)), loading.decode(str(path)))
        return True

    assert forked(put_all)
    assert inspection.inspect(picture_store.folder, picture_store.bound, b"") is StoreState.WHOLE


def stopped_while(picture_store: store.Store, function: str) -> multiprocessing.Process:
    """A process that has stopped itself inside a transaction of this kind."""

    def stop() -> None:
        original = getattr(handles, function)

        @contextlib.contextmanager
        def stopping(*arguments: Any) -> Any:
            with original(*arguments) as transaction:
                os.kill(os.getpid(), signal.SIGSTOP)
                yield transaction

        setattr(handles, function, stopping)
        picture_store.get(b"any") if function == "reading" else picture_store.put(
            b"any", torch.ones(9, 9, 3).byte()
        )

    process = CONTEXT.Process(target=stop)
    process.start()
    assert process.pid

    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("function", ["writing", "reading"])
def test_a_stopped_process_delays_others_by_seconds_and_no_reader(tmp_path, function):
    paths = write(tmp_path / "data", 20)
    expected = loaded(TRAINING, paths, None)
    picture_store = opened(BOUND)
    forked(lambda: len(loaded(TRAINING, paths[:10], picture_store)))
    assert picture_store.get(keys_of(paths)[0]) is not None

    stopped = stopped_while(picture_store, function)

    def read_and_put() -> list[float]:
        times = [time.monotonic()]
        assert all_equal(loaded(TRAINING, paths[:10], picture_store), expected[:20])
        times.append(time.monotonic())
        for _ in range(2):
            assert all_equal(loaded(TRAINING, paths, picture_store), expected)
            times.append(time.monotonic())
        return np.diff(times).tolist()

    try:
        reading_s, putting_s, second_read_s = read_and_put()  # has it open already
        assert reading_s < 1.5
        assert putting_s < 2 * handles.PATIENCE_S + 1.5
        assert second_read_s < 1.5
        assert sum(forked(read_and_put)) < 2 * handles.PATIENCE_S + 3  # opens it now
        started = time.monotonic()
        line = forked(lambda: open_store(BOUND)[1])
        assert time.monotonic() - started < 2 * handles.PATIENCE_S + 3
        assert ("which may be stopped" in line) == (function == "writing")
    finally:
        stopped.kill()
        stopped.join(60)
    assert forked(lambda: all_equal(loaded(TRAINING, paths, opened(BOUND)), expected))
    assert forked(lambda: None not in [opened(BOUND).get(key) for key in keys_of(paths)])


def test_a_process_that_stops_while_it_begins_a_store_blocks_no_other(
    temporary_folder, monkeypatch
):
    monkeypatch.setattr(handles, "START_PATIENCE_S", 0.5)
    parent = Path(forked(lambda: str(opened(BOUND).folder.parent)))
    descriptor = os.open(parent / "in-use", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert "which may be stopped" in forked(lambda: open_store(BOUND)[1])
    os.close(descriptor)
    assert "are kept in" in forked(lambda: open_store(BOUND)[1])


def test_a_store_can_be_read_after_a_fork(tmp_path):
    paths = write(tmp_path / "data", 3)
    picture_store = opened(BOUND)
    loaded(TRAINING, paths, picture_store)
    for _ in range(3):
        assert forked(lambda: all(picture_store.get(key) is not None for key in keys_of(paths)))
        assert all(picture_store.get(key) is not None for key in keys_of(paths))


def test_a_changed_picture_of_equal_size_and_time_is_decoded_again(tmp_path):
    editions = [tmp_path / "first", tmp_path / "second"]
    for edition, level in zip(editions, (200, 10)):
        edition.mkdir()
        Image.new("RGB", (40, 40), (level,) * 3).save(edition / "0.bmp")
        os.utime(edition / "0.bmp", ns=(10**18, 10**18))

    picture_store = opened(BOUND)
    link = tmp_path / "data"
    link.symlink_to(editions[0])

    def level() -> int:
        return int(loading.load(TEST, str(link / "0.bmp"), picture_store)[0][0, 0, 0])

    assert level() == 200

    link.unlink()
    link.symlink_to(editions[1])
    assert level() == 10

    file = editions[1] / "0.bmp"
    file.write_bytes((editions[0] / "0.bmp").read_bytes())
    os.utime(file, ns=(10**18, 10**18))
    assert level() == 200


def test_a_link_in_place_of_the_folder_is_not_followed(temporary_folder, monkeypatch):
    (temporary_folder / f"domainbed-carft-{os.geteuid()}").symlink_to("/")
    monkeypatch.setattr(Path, "rglob", None)
    picture_store, line = open_store(BOUND)
    assert picture_store is None and "not a folder of this user alone" in line
