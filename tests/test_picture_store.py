"""What is kept of decoded pictures: by whom it is read, when it ends, where it may be."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_carft import machine
from domainbed_carft.clips.pictures import transform
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures import loading, store
from domainbed_carft.pictures.plan import plan
from domainbed_carft.pictures.store import open_store

TRAINING = plan(transform("domainbed", 32, augment=True))
TEST = plan(transform("domainbed", 32, augment=False))
BOUND = "32M"
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, where stores are; no SLURM."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder


def write(folder: Path, count: int, side: int = 100) -> list[str]:
    """Noise, so that no two are alike."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(len(folder.name))
    paths = [str(folder / f"{n}.jpg") for n in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (side, side + 20, 3), np.uint8)).save(path)
    return paths


def forked(function: Callable[[], Any]) -> Any:
    """What the function returns in a process of its own."""
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=lambda: results.put(function()))
    process.start()
    result = results.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0
    return result


def opened(*arguments: Any) -> store.Store:
    found, line = open_store(*arguments)
    assert found is not None, line
    return found


def loaded(steps: Any, paths: list[str], kept: store.Store | None) -> list[torch.Tensor]:
    """Pictures, and what was drawn for them."""
    torch.manual_seed(0)
    return [part.clone() for path in paths for part in loading.load(steps, path, kept)]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("steps", [TRAINING, TEST])
@pytest.mark.parametrize("side", [20, 200])  # smaller than LMDB's pages, and larger
def test_kept_pictures_are_those_of_the_files(tmp_path, monkeypatch, steps, side):
    paths = write(tmp_path / "data", 5, side)
    expected = loaded(steps, paths, None)
    kept = opened(BOUND)
    assert same(loaded(steps, paths, kept), expected)
    monkeypatch.setattr(loading, "decode", None)
    assert same(loaded(steps, paths, kept), expected)
    assert same(loaded(steps, paths, pickle.loads(pickle.dumps(kept))), expected)
    assert forked(lambda: same(loaded(steps, paths, kept), expected))
    assert same(loaded(steps, paths, kept), expected)


def test_a_changed_file_is_decoded_anew(tmp_path):
    (path, other) = write(tmp_path / "data", 2)
    kept = opened(BOUND)
    for steps in (TRAINING, TEST):
        before = loaded(steps, [path], kept)
        times = os.stat(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        Path(path).write_bytes(Path(other).read_bytes())
        assert not same(loaded(steps, [path], kept), before)
        assert same(loaded(steps, [path], kept), loaded(steps, [other], None))
        write(tmp_path / "data", 2)


def test_two_processes_write_at_once(tmp_path):
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
    kept = opened(BOUND)
    size = kept.size()
    assert same(loaded(TRAINING, paths, kept), expected) and kept.size() == size


def test_a_full_store_keeps_what_it_has(tmp_path):
    paths = write(tmp_path / "data", 30, 700)  # 1.5 MB each
    kept = opened("16M")
    expected = loaded(TRAINING, paths, None)
    assert same(loaded(TRAINING, paths, kept), expected)
    assert same(loaded(TRAINING, paths, kept), expected)
    (file,) = kept.folder.glob("data.mdb")
    assert 12 << 20 < file.stat().st_size <= 16 << 20
    keys = [store.key(path, f"whole {loading.MADE_BY}") for path in paths]
    assert 8 <= sum(kept.get(key) is not None for key in keys) < 30


def test_a_full_disk_ends_only_the_keeping(tmp_path):
    paths = write(tmp_path / "data", 8, 300)

    def on_a_small_disk() -> bool:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        kept = opened(BOUND)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
        first = loaded(TRAINING, paths, kept)
        return same(first, loaded(TRAINING, paths, kept)) and kept.size() < 1 << 20

    assert forked(on_a_small_disk)


def test_a_store_of_other_pictures_makes_room_once_nobody_uses_it(tmp_path):
    others, ours = (write(tmp_path / name, 20, 700) for name in ("others", "ours"))

    def keeps(paths: list[str]) -> bool:
        kept = opened("16M", str(Path(paths[0]).parent))
        loaded(TRAINING, paths, kept)
        return kept.get(store.key(paths[0], f"whole {loading.MADE_BY}")) is not None

    assert forked(lambda: keeps(others))
    kept_alive, ready = CONTEXT.Event(), CONTEXT.Event()

    def use() -> None:
        opened("16M", str(tmp_path / "others"))
        ready.set()
        kept_alive.wait(60)

    user = CONTEXT.Process(target=use)
    user.start()
    assert ready.wait(60)
    assert not forked(lambda: keeps(ours))
    kept_alive.set()
    user.join(60)
    assert forked(lambda: keeps(others))  # half and more is of these pictures: it stays
    assert forked(lambda: keeps(ours))
    assert not forked(lambda: opened("16M", str(tmp_path / "ours")).get(
        store.key(others[0], f"whole {loading.MADE_BY}")
    ))  # fmt: skip


def test_what_another_boot_left_is_not_believed(here):
    found = forked(lambda: str(opened(BOUND).folder))
    left = Path(found).rename(Path(found).parent / "pictures-1-another-boot")
    (left / "data.mdb").write_bytes(b"half written")
    assert forked(lambda: str(opened(BOUND).folder)) == found
    assert not left.exists()
    Path(found, "data.mdb").write_bytes(b"damaged" * 4096)
    assert forked(lambda: opened(BOUND).size()) < 1 << 20


def test_it_is_this_users_alone(here):
    kept = opened(BOUND)
    for path in (kept.folder, kept.folder.parent, *kept.folder.iterdir()):
        assert not path.stat().st_mode & 0o077
    kept.folder.parent.chmod(0o755)
    found, line = open_store(BOUND)
    assert found is None
    assert "not a folder of this user alone" in line
    kept.folder.parent.rename(here / "elsewhere")
    (here / f"domainbed-carft-{os.geteuid()}").symlink_to(here / "elsewhere")
    assert open_store(BOUND)[0] is None


def test_when_it_is_off(here, monkeypatch):
    def line(wanted: str | None) -> str:
        found, told = open_store(wanted)
        assert (found is None) == told.startswith("decoded pictures are not kept: ")
        return told

    assert store._file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(store, "_file_system", {here: "nfs4"}.get)
    assert "is on a network (nfs4); only if --picture_cache asks" in line(None)
    assert line("0") == "decoded pictures are not kept: --picture_cache is 0"
    assert "at most 32M (as --picture_cache asks)" in line("32M")
    monkeypatch.setattr(store, "_file_system", {here: "tmpfs"}.get)
    monkeypatch.setattr(machine, "memory", lambda: 100 << 20)
    assert "at most 25M (a quarter of the memory, at most 8G)" in line(None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "under SLURM" in line(None)
    assert "at most 32M" in line("32M")
    free = os.statvfs(here).f_bavail * os.statvfs(here).f_frsize
    assert "half of what is free there" in line(str(2 * free))
    for wrong in ("8X", "", "-1", "8 G B"):
        with pytest.raises(CarftError, match="expected a size such as 8G or 500M, or 0"):
            line(wrong)
    assert [store.size(text) for text in ("1.5G", "2mb", "7")] == [3 << 29, 2 << 20, 7]
