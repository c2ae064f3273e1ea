"""Batches for training and for evaluation."""

import itertools
import multiprocessing
import os
import select
import signal
import subprocess
import threading
import time
import types

import pytest
import torch
from domainbed import datasets
from domainbed.lib import fast_data_loader as loader
from domainbed.lib import misc, stopping
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader, JobBatches
from domainbed.lib.process_group import ProcessGroup
from domainbed.scripts import train
from fake_checkout import run_python
from torch.utils.data import TensorDataset

from domainbed_carft.errors import TransientError

from . import fakes


def numbered(start, size):
    """Return a dataset of consecutive numbers, which are also their labels."""
    numbers = torch.arange(start, start + size)
    return TensorDataset(numbers, numbers)


SMALL = numbered(0, 3)
LARGE = numbered(100, 50)


@pytest.mark.parametrize("workers", [0, 2])
def test_step_has_a_full_batch_of_each_dataset(workers):
    steps = (loader.training_requests(1, [3, 50], [None, None], 16, step) for step in range(5))
    batches = loader.load_batches([SMALL, LARGE], itertools.chain.from_iterable(steps), workers)
    for (x_small, y_small), (x_large, _) in zip(batches, batches, strict=True):
        assert len(x_small) == len(x_large) == 16
        assert x_small.max() < 3 and x_large.min() >= 100
        assert torch.equal(x_small, y_small)


def test_infinite_and_fast_loaders_have_upstreams_interface():
    endless = InfiniteDataLoader(SMALL, None, 2, 0)
    loader_of_one_pass = FastDataLoader(LARGE, 16, 0)
    for _ in range(2):
        ((x, y),) = (batch for batch, _ in zip(endless, range(1), strict=False))
        assert len(x) == 2 and torch.equal(x, y)
        assert [len(x) for x, _ in loader_of_one_pass] == [16, 16, 16, 2]
        assert len(loader_of_one_pass) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_loader_process_survives_stop_signals(monkeypatch, number):
    # SLURM signals all processes of a job, even before a loader process has installed its handlers.
    init_worker = stopping.init_worker

    def init_between_signals(worker_id: int) -> None:
        os.kill(os.getpid(), number)
        init_worker(worker_id)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(stopping, "init_worker", init_between_signals)
    assert [len(x) for x, _ in FastDataLoader(numbered(0, 5), 2, 2)] == [2, 2, 1]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(stopping.SIGNALS)


@pytest.mark.parametrize("workers", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_loader_processes_end_if_their_parent_is_killed_during_the_start(workers):
    # Loader processes inherit the job's lock, so the job cannot be resumed while they run.
    init_worker = stopping.init_worker
    reading, writing = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        os.close(reading)

        def init_after_kill(worker_id: int) -> None:
            if worker_id == workers - 1:
                os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                time.sleep(0.01)
            init_worker(worker_id)

        parent = os.getpid()
        stopping.init_worker = init_after_kill
        list(FastDataLoader(numbered(0, 5), 2, workers))
        os._exit(0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(trainer, 0)[1]) == -signal.SIGKILL

    with open(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 30)[0], "a process still has the pipe open"
        assert pipe.read() == b""


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_each_item_once_in_batches_of_one_dataset(workers):
    data = [SMALL, LARGE, numbered(200, 8)]
    requests = loader.evaluation_requests([3, 50, 8], 4, ())
    items = [x.tolist() for x, _ in loader.load_batches(data, requests, workers)]
    assert items[0] == [0, 1, 2]
    assert [len(batch) for batch in items[1:14]] == [4] * 12 + [2]
    assert list(itertools.chain(*items[1:14])) == list(range(100, 150))
    assert items[14:] == [[200, 201, 202, 203], [204, 205, 206, 207]]


# With a /dev/shm of 64 MiB, as in a container, compares batches of this process and of loader
# processes, for three environments, 32 images of 224 px and both ways to read images. Then mounts
# /dev/shm read-only.
WITH_LITTLE_SHARED_MEMORY = """
import ctypes, subprocess, sys, torch
from domainbed import datasets
from domainbed.lib import fast_data_loader as loader

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "/dev/shm"], check=True)

assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: private mounts
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
mount("size=64m")

dataset = datasets.get_dataset_class(sys.argv[1])(None, [2], {"data_augmentation": True})

def batches(by_plan, workers):
    requests = [
        [(number, place % 2, (step, place)) for place in range(32)]
        for step in range(2) for number in range(3)
    ]
    loaded = loader.load_batches(list(dataset), iter(requests), workers, by_plan=by_plan)
    return loader.copy_to_device(loaded, torch.device("cpu"))

for path, by_plan in {"fast": True, "pillow": False}.items():
    count = 0
    for expected, batch in zip(batches(by_plan, 0), batches(by_plan, 2), strict=True):
        assert batch[0].shape == (32, 3, 224, 224), batch[0].shape
        assert all(torch.equal(*tensors) for tensors in zip(batch, expected))
        count += 1
    print(path, count, "batches")

mount("ro")
try:
    list(batches(by_plan, 2))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_loaders_work_with_little_shared_memory_and_report_read_only_one(images, tmp_path):
    mounting = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    attempt = subprocess.run(mounting, capture_output=True, text=True)
    if attempt.returncode:
        pytest.skip(f"no private mount: {attempt.stderr.strip()}")

    done = run_python("-c", WITH_LITTLE_SHARED_MEMORY, str(images), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fast, pillow, read_only = done.stdout.splitlines()
    assert (fast, pillow) == ("fast 6 batches", "pillow 6 batches")
    assert "/dev/shm is read-only. Mount it writable" in read_only


def test_batch_that_cannot_be_shared_raises_passing_error(monkeypatch):
    def fail(*_):
        raise OSError(38, "Function not implemented")

    full = types.SimpleNamespace(f_bavail=0, f_blocks=1 << 20, f_frsize=64, f_flag=0)
    monkeypatch.setattr(os, "memfd_create", fail)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    message = "no space for 400 bytes.*/dev/shm has 0 of 64 MiB free.*--workers 0"
    with pytest.raises(TransientError, match=message):
        list(FastDataLoader(numbered(0, 50), 50, 1))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    # The loader hangs after this many items: in a step, in an evaluation.
    ("number", "hang_after"),
    [(signal.SIGTERM, 4), (signal.SIGINT, 20)],
)
def test_signal_ends_job_that_waits_for_its_loaders(tmp_path, monkeypatch, number, hang_after):
    context = multiprocessing.get_context("fork")
    hanging, released = context.Event(), context.Event()
    n_items = context.Value("i", 0)

    class Hanging(TensorDataset):
        def __getitem__(self, index):
            with n_items.get_lock():
                n_items.value += 1
            if n_items.value > hang_after:
                hanging.set()
                released.wait()
            return super().__getitem__(index)

    def signal_and_release_later():
        assert hanging.wait(60)
        time.sleep(1)  # until the job has sent its next requests and only waits
        os.kill(os.getpid(), number)
        time.sleep(60)
        released.set()

    with monkeypatch.context() as patch:
        patch.setattr(
            datasets.Debug28,
            "__iter__",
            lambda self: (Hanging(*environment.tensors) for environment in self.datasets),
        )
        threading.Thread(target=signal_and_release_later, daemon=True).start()
        assert train.main(fakes.quick_arguments(tmp_path, "--workers", "2")) == 75
    assert not released.is_set()
    assert f"stopped by {signal.Signals(number).name}" in (tmp_path / "err.txt").read_text()
    assert not multiprocessing.active_children()

    assert train.main(fakes.quick_arguments(tmp_path)) == 0
    assert train.main(fakes.quick_arguments(tmp_path / "undisturbed")) == 0
    undisturbed = fakes.comparable_records(tmp_path / "undisturbed")
    assert fakes.comparable_records(tmp_path) == undisturbed


@pytest.mark.parametrize("sampling", ["with-replacement", "passes"])
def test_batches_from_a_later_step_equal_those_of_the_complete_job(sampling):
    def load_steps(first):
        torch.manual_seed(0)
        hparams = {"batch_size": 3, "class_balanced": False, "sampling": sampling}
        data = misc.SplitDataset(numbered(0, 8), range(8))
        loaded = JobBatches([data], {}, hparams, 6, 100, 0, torch.device("cpu"), ProcessGroup())
        loaded.begin(first, False, False, 0)
        return [loaded.step_batches()[0][0].tolist() for _ in range(first, 6)]

    batches = load_steps(0)
    assert load_steps(2) == batches[2:]  # with passes, step 2 begins after 6 of 8 items of a pass
    items = list(itertools.chain(*batches))
    assert (sorted(items[:8]) == [*range(8)]) == (sampling == "passes")
