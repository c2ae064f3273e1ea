"""Batches for training and for evaluation."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import select
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
import warm
from domainbed.lib import fast_data_loader as loader
from domainbed.lib import misc, shared_batches, stopping
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.lib.picture_batches import Pictures
from domainbed.scripts import train
from PIL import Image
from torch.utils.data import TensorDataset

from domainbed_carft.errors import PassingError

from . import fakes


def numbered(start, size):
    """A data set of the numbers from `start` on, each its own label."""
    numbers = torch.arange(start, start + size)
    return TensorDataset(numbers, numbers)


SMALL = numbered(0, 3)
LARGE = numbered(100, 50)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_step_has_a_full_batch_of_each_data_set(workers):
    steps = (loader.training_requests(1, [3, 50], [None, None], 16, step) for step in range(5))
    batches = loader.load_batches(
        [SMALL, LARGE], itertools.chain.from_iterable(steps), workers, Pictures()
    )
    for (x_small, y_small), (x_large, _) in zip(batches, batches, strict=True):
        assert len(x_small) == len(x_large) == 16
        assert x_small.max() < 3 and x_large.min() >= 100
        assert torch.equal(x_small, y_small)


def test_infinite_and_fast_loaders_have_upstreams_interface(capsys):
    endless = InfiniteDataLoader(SMALL, None, 2, 0)
    for _ in range(2):  # zipped with others, and asked again
        ((x, y),) = (batch for batch, _ in zip(endless, range(1), strict=False))
        assert len(x) == 2 and torch.equal(x, y)
    once = FastDataLoader(LARGE, 16, 0)
    for _ in range(2):
        assert [len(x) for x, _ in once] == [16, 16, 16, 2] and len(once) == 4
    misc.print_separator()
    assert capsys.readouterr().out == "=" * 80 + "\n"


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_stop_signal_never_kills_a_loader_process(monkeypatch, number):
    """SLURM signals all processes of a job; here it comes before anything of ours has run there."""
    init_worker = stopping.init_worker

    def signalled(worker_id: int) -> None:
        os.kill(os.getpid(), number)
        init_worker(worker_id)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(stopping, "init_worker", signalled)
    assert [len(x) for x, _ in FastDataLoader(numbered(0, 5), 2, 2)] == [2, 2, 1]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(stopping.SIGNALS)


@pytest.mark.parametrize("workers", [1, 20])
def test_loader_processes_end_if_their_parent_was_killed_at_the_start(workers):
    """They have inherited the job's lock, and nobody else could go on with the job."""
    init_worker = stopping.init_worker
    reading, writing = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        os.close(reading)

        def late(worker_id: int) -> None:
            if worker_id == workers - 1:
                os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                time.sleep(0.01)
            init_worker(worker_id)

        parent = os.getpid()
        stopping.init_worker = late
        list(FastDataLoader(numbered(0, 5), 2, workers))
        os._exit(0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(trainer, 0)[1]) == -signal.SIGKILL

    with open(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 30)[0], "a process still has the pipe open"
        assert pipe.read() == b""


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_item_once_in_batches_of_one_data_set(workers):
    data = [SMALL, LARGE, numbered(200, 8)]
    requests = loader.evaluation_requests([3, 50, 8], 4, ())
    items = [x.tolist() for x, _ in loader.load_batches(data, requests, workers, Pictures())]
    assert items[0] == [0, 1, 2]
    assert [len(batch) for batch in items[1:14]] == [4] * 12 + [2]
    assert list(itertools.chain(*items[1:14])) == list(range(100, 150))
    assert items[14:] == [[200, 201, 202, 203], [204, 205, 206, 207]]


# Where /dev/shm has 64 MiB, as a container's: batches of three domains, 32 pictures of 224 px each,
# by each path; those of its loaders' processes equal its own.
LOADS = """
import ctypes, os, subprocess, sys, torch
from domainbed import datasets
from domainbed.lib import fast_data_loader as loader, picture_batches

assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: mounts of its own
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", "/dev/shm"], check=True)
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 64 << 20

dataset = datasets.get_dataset_class(sys.argv[1])(None, [3], {"data_augmentation": True})

def batches(pictures, workers):
    requests = [
        [(number, place % 2, (step, place)) for place in range(32)]
        for step in range(2) for number in range(3)
    ]
    return loader.load_batches(list(dataset), iter(requests), workers, pictures)

ways = {"fast": picture_batches.choose(dataset, 0), "pillow": picture_batches.Pictures()}
for path, pictures in ways.items():
    count = 0
    for pair in zip(batches(pictures, 0), batches(pictures, 2), strict=True):
        ours, theirs = (batch.finish() if hasattr(batch, "finish") else batch for batch in pair)
        assert ours[0].shape == (32, 3, 224, 224), ours[0].shape
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs))
        count += 1
    print(path, count, "batches")
"""


@pytest.fixture
def private_mounts():
    """Skips where a process may not have mounts of its own."""
    mounting = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    attempt = subprocess.run(mounting, capture_output=True, text=True)
    if attempt.returncode:
        pytest.skip(f"no private mount: {attempt.stderr.strip()}")


@pytest.fixture
def four_domains(tmp_path):
    """Two random pictures each."""
    random = np.random.default_rng(0)
    for domain, number in itertools.product("abcd", range(2)):
        folder = tmp_path / "four" / domain / "class"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "four"


@pytest.mark.usefixtures("private_mounts")
def test_large_batches_need_no_large_shared_memory(four_domains):
    process = warm.start("-c", LOADS, four_domains)
    try:
        assert process.wait(timeout=120) == 0, process.communicate()
    finally:
        process.kill()
    stdout, _ = process.communicate()
    assert all(f"{path} 6 batches\n" in stdout for path in ("fast", "pillow"))


READ_ONLY = """
import ctypes, subprocess, torch
from domainbed.lib import fast_data_loader
from torch.utils.data import TensorDataset

assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: mounts of its own
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/dev/shm"], check=True)
try:
    list(fast_data_loader.FastDataLoader(TensorDataset(torch.arange(4), torch.arange(4)), 2, 2))
except ValueError as error:
    print(error)
"""


@pytest.mark.usefixtures("private_mounts")
def test_read_only_shared_memory_is_reported_in_one_line():
    process = warm.start("-c", READ_ONLY)
    stdout, stderr = process.communicate(timeout=120)
    (line,) = stdout.splitlines()
    assert "; /dev/shm is read-only. Mount it writable, or load without processes: --wor" in line
    assert stderr == ""


@pytest.mark.parametrize("size", [1, 1000])
def test_a_batch_that_cannot_be_shared_is_reported_in_one_line(monkeypatch, size):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", fail)
    monkeypatch.setattr(shared_batches, "_require_space", fail)
    numbers = torch.arange(size)
    with pytest.raises(PassingError, match="No space left.*/dev/shm has .* MiB.*--workers 0"):
        list(FastDataLoader(TensorDataset(numbers, numbers), size, 1))


class Unpicklable(TensorDataset):
    """Its items cannot leave a process."""

    def __getitem__(self, index):
        return (lambda: index), index


def test_an_item_that_cannot_be_pickled_ends_the_loading_with_an_error():
    with pytest.raises(Exception, match="[Pp]ickle|lambda|function"):
        list(FastDataLoader(Unpicklable(torch.arange(3)), 2, 1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("hang_after", [2, 8])  # batches: in a step, in an evaluation
def test_a_signal_ends_a_job_that_waits_for_its_loaders(tmp_path, monkeypatch, number, hang_after):
    read = loader._RequestedItems.__getitems__
    context = multiprocessing.get_context("fork")
    hanging = context.Event()
    count = context.Value("i", 0)

    def hang(self, requests):
        with count.get_lock():
            count.value += 1
        if count.value > hang_after:
            hanging.set()
            time.sleep(1000)
        return read(self, requests)

    def signal_later():
        assert hanging.wait(60)
        time.sleep(1)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(loader._RequestedItems, "__getitems__", hang)
    threading.Thread(target=signal_later, daemon=True).start()
    arguments = fakes.quick(tmp_path, "--workers", "2")
    started = time.monotonic()
    assert train.main(arguments) == 75
    assert time.monotonic() - started < 30
    assert f"stopped by {signal.Signals(number).name}" in (tmp_path / "err.txt").read_text()
    assert not multiprocessing.active_children()

    monkeypatch.setattr(loader._RequestedItems, "__getitems__", read)
    assert train.main(arguments) == 0
    assert train.main(fakes.quick(tmp_path / "undisturbed")) == 0

    process, expected = (fakes.records(folder) for folder in (tmp_path, tmp_path / "undisturbed"))
    for record in (*process, *expected):
        del record["step_time"], record["evaluation_time"], record["args"]
    assert process == expected
