"""Batches for training and for evaluation."""

from __future__ import annotations

import itertools
import os
import select
import signal
import time

import pytest
import torch
from domainbed.lib import fast_data_loader as loader
from domainbed.lib import misc, stopping
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.lib.picture_batches import Pictures
from torch.utils.data import TensorDataset


def numbered(start, size):
    """A data set of the numbers from `start` on, each its own label."""
    numbers = torch.arange(start, start + size)
    return TensorDataset(numbers, numbers)


SMALL, LARGE = numbered(0, 3), numbered(100, 50)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_has_a_full_batch_of_each_data_set(workers):
    steps = (loader.training(1, [3, 50], [None, None], 16, step) for step in range(5))
    batches = loader.batches(
        [SMALL, LARGE], itertools.chain.from_iterable(steps), workers, Pictures()
    )
    for (x_small, y_small), (x_large, _) in zip(batches, batches, strict=True):
        assert len(x_small) == len(x_large) == 16
        assert x_small.max() < 3 and x_large.min() >= 100
        assert torch.equal(x_small, y_small)


def test_upstreams_two_loaders(capsys):
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
def test_a_stop_signal_ends_no_loaders_process_at_any_moment_of_its_life(monkeypatch, number):
    """SLURM signals all processes of a job; here it comes before anything of ours has run there."""
    serve_on = stopping.serve_on

    def signalled(worker_id: int) -> None:
        os.kill(os.getpid(), number)
        serve_on(worker_id)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(stopping, "serve_on", signalled)
    assert [len(x) for x, _ in FastDataLoader(numbered(0, 5), 2, 2)] == [2, 2, 1]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(stopping.SIGNALS)


@pytest.mark.parametrize("workers", [1, 20])
def test_loaders_processes_end_with_a_parent_that_was_killed_before_they_began(workers):
    """They have inherited the job's lock, and nobody else could go on with the job."""
    serve_on = stopping.serve_on
    reading, writing = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        os.close(reading)

        def late(worker_id: int) -> None:
            if worker_id == workers - 1:
                os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                time.sleep(0.01)
            serve_on(worker_id)

        parent = os.getpid()
        stopping.serve_on = late
        list(FastDataLoader(numbered(0, 5), 2, workers))
        os._exit(0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(trainer, 0)[1]) == -signal.SIGKILL
    with open(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 30)[0], "a process still has the pipe open"
        assert pipe.read() == b""


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_item_once_and_no_batch_mixes_data_sets(workers):
    data = [SMALL, LARGE, numbered(200, 8)]
    requests = loader.evaluation([3, 50, 8], 4, ())
    found = [x.tolist() for x, _ in loader.batches(data, requests, workers, Pictures())]
    assert found[0] == [0, 1, 2]
    assert [len(batch) for batch in found[1:14]] == [4] * 12 + [2]
    assert list(itertools.chain(*found[1:14])) == list(range(100, 150))
    assert found[14:] == [[200, 201, 202, 203], [204, 205, 206, 207]]
