"""The processes that train one job together, each with its slice of every batch.

All draw the same batches and add up what they compute of their slices, so that each has the weights
of a single process. torchrun starts them, or the first does. Upstream has no equivalent.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from domainbed.algorithms import Algorithm
from domainbed.lib.step_meters import defining_class
from domainbed_carft import machine, text
from domainbed_carft.errors import CarftError, PassingError, brief
from domainbed_carft.jobs.folder import ERRORS, STOPPED

VARIABLE = machine.PROCESSES

# In a process that the first one has started: that one's id.
_PARENT = "DOMAINBED_PARENT"

# In the store that all processes share: why one of them ended.
_FAILURE = "domainbed failure"

# How long a process that hangs, or the rest of a failed job, is left alone.
_GRACE_SECONDS = 20.0

# How often a process looks whether the one that has started it lives.
_LOOK_AFTER_PARENT_SECONDS = 0.1

# So many numbers are added up at a time: 64 MiB, which is the memory that it takes.
_AT_A_TIME = 2**24


class ProcessExitedError(PassingError):
    """Another process of this job has ended."""


@dataclass(eq=False)
class ProcessGroup:
    """The processes of a job, as one of them sees them; without arguments it is alone."""

    rank: int = 0  # its number
    size: int = 1  # how many there are
    local_size: int = 1  # how many of them share this machine
    store: Any = None
    children: Sequence[subprocess.Popen[bytes]] = ()

    @property
    def is_leader(self) -> bool:
        """Whether it is the first, which writes the job's files."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This process's slice of `count` items."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_of(self, number: int) -> int:
        return self._of_all(number, dist.ReduceOp.SUM)

    def max_of(self, number: int) -> int:
        return self._of_all(number, dist.ReduceOp.MAX)

    def _of_all(self, number: int, how: Any) -> int:
        tensor = torch.tensor(number)
        if self.size > 1:
            with self._others():
                dist.all_reduce(tensor, how)
        return int(tensor)

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, of one device, by their sums over the processes."""
        ends = itertools.accumulate(tensor.numel() for tensor in tensors if self.size > 1)
        for _, some in itertools.groupby(zip(ends, tensors), lambda one: one[0] // _AT_A_TIME):
            bucket = [tensor for _, tensor in some]
            sums = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self._others():
                dist.all_reduce(sums)
            for tensor, found in zip(bucket, sums.split([tensor.numel() for tensor in bucket])):
                tensor.copy_(found.view_as(tensor))

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise a CarftError that names what differs from the first process's."""
        found: list[Any] = [facts] * self.size
        if self.size > 1:
            with self._others():
                dist.all_gather_object(found, facts)
        for rank, name in itertools.product(range(self.size), facts):
            if found[rank].get(name) != found[0][name]:
                value, expected = text.differences(found[rank].get(name), found[0][name])
                raise CarftError(
                    f"process {rank} of {self.size} has other settings than the first: {name} is "
                    f"{value}, expected {expected}. Give all the same "
                    "arguments, output_dir, data and kind of GPU"
                )

    @contextlib.contextmanager
    def _others(self) -> Iterator[None]:
        """Inside the block this process waits for the others, and raises why one has ended."""
        try:
            yield
        except RuntimeError as error:
            raise self.exit_error() from error

    def exit_error(self) -> CarftError:
        """What to raise where another process has ended, with its reason if it left one."""
        patience = time.monotonic() + 3
        while time.monotonic() < patience:
            for rank, child in enumerate(self.children, 1):
                if (status := child.poll() or 0) < 0:
                    how = f"was killed by {signal.Signals(-status).name}"
                    return ProcessExitedError(f"process {rank} of {self.size} {how}")
            with contextlib.suppress(RuntimeError):  # who had the store is gone
                if hasattr(self.store, "check") and self.store.check([_FAILURE]):  # torch 2.3
                    passing, words = json.loads(self.store.get(_FAILURE))
                    return (ProcessExitedError if passing else CarftError)(words)
            time.sleep(0.05)
        told = f"one of the {self.size} processes of this job ended without a word"
        return ProcessExitedError(f"{told}; often it was killed for its memory")

    def report_failure(self, error: Exception) -> None:
        """Leave the reason why this process ends for the first one, which prints it."""
        known = isinstance(error, CarftError)
        words = str(error) if known else "".join(traceback.format_exception(error)).rstrip()
        told = f"process {self.rank} of {self.size}: {words}"
        passing = not known or isinstance(error, PassingError)
        with contextlib.suppress(RuntimeError):  # the first process is gone
            self.store.set(_FAILURE, json.dumps([passing, told]))

    def watch(self, over: threading.Event) -> None:
        """End this process if one that it has started ends while it, or its GPU, waits for that."""
        while not over.wait(1.0):
            failed = any(child.poll() not in (None, 0, STOPPED) for child in self.children)
            if failed and not over.wait(_GRACE_SECONDS):
                print(f"train: {self.exit_error()}", file=sys.stderr)
                for child in self.children:
                    child.kill()
                os._exit(1)


SINGLE_PROCESS = ProcessGroup()


def _told(name: str, otherwise: int) -> int:
    told = os.environ.get(name, "")
    return int(told) if told.isdecimal() else otherwise


def is_first() -> bool:
    return _told("WORLD_SIZE", 1) < 2 or _told("RANK", 0) == 0


def attach_process_group(algorithm: Any, process_group: ProcessGroup, batch_size: int) -> None:
    """Tell an algorithm that it gets slices; raises CarftError where that cannot be."""
    several = f"cannot be trained by {process_group.size} processes"
    if batch_size < process_group.size:
        raise CarftError(f"batches of {batch_size} {several}; give them that many pictures or more")
    # Which a class that has changed its step has to say anew.
    said = "indivisible" in defining_class(algorithm, "indivisible", "step_on_device", "update")
    if why := (type(algorithm) if said else Algorithm).indivisible(algorithm):
        raise CarftError(f"{type(algorithm).__name__} {several}: {why}. Use one process")
    algorithm.process_group = process_group


@contextlib.contextmanager
def join_process_group(
    processes: int, arguments: Sequence[str], output_dir: str
) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started, or start so many with the `arguments` of train.

    On GPUs each has the card of its number; raises CarftError if there are too few. If the first
    is killed, one that it has started says so in err.txt in `output_dir`.
    """
    size, over = _told("WORLD_SIZE", processes), threading.Event()
    if size < 2:
        yield SINGLE_PROCESS
        return
    rank, here = _told("RANK", 0), _told("LOCAL_WORLD_SIZE", size)
    on_gpu = torch.cuda.is_available()
    if on_gpu and (cards := torch.cuda.device_count()) < here:
        raise CarftError(f"{here} processes need a GPU each, and there are {cards}; start fewer")
    children: list[subprocess.Popen[bytes]] = []
    try:
        if "WORLD_SIZE" in os.environ:
            _follow_the_parent(rank, size, Path(output_dir) / ERRORS)
            store = next(dist.rendezvous("env://"))[0]
        else:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            children = _started(size, store.port, arguments)
        process_group = ProcessGroup(rank, size, here, store, children)
        threading.Thread(target=process_group.watch, args=(over,), daemon=True).start()
        if on_gpu:
            torch.cuda.set_device(_told("LOCAL_RANK", rank))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable of torchrun's is missing
        over.set()
        _end(children)
        raise CarftError(
            f"the {size} processes of this job cannot join: {brief(error)}. Start them with "
            "torchrun or --processes; for one process unset WORLD_SIZE"
        ) from error
    try:
        yield process_group
    except Exception as error:
        if rank and not isinstance(error, ProcessExitedError):
            process_group.report_failure(error)
        raise
    finally:
        dist.destroy_process_group()
        _end(children)
        over.set()


def _started(size: int, port: int, arguments: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Start the processes 1, 2, ... of a job on this machine, with the variables of torchrun."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
    shared |= {"LOCAL_WORLD_SIZE": size, _PARENT: os.getpid()}
    words = [sys.executable, "-m", "domainbed.scripts.train", *arguments]
    found = []
    for rank in range(1, size):
        told = {name: str(v) for name, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        found.append(subprocess.Popen(words, env={**os.environ, **told}, stdin=subprocess.DEVNULL))
    return found


def _follow_the_parent(rank: int, size: int, errors: Path) -> None:
    """End this process as soon as the one that has started it, the first of the job, has ended.

    The first ends before the others only if it was killed or has crashed. It cannot report that
    itself, so process 1 appends the reason to the file `errors`. Without such a parent, as under
    torchrun, nothing happens.
    """
    parent = os.environ.get(_PARENT)
    if not parent:
        return
    one_at_a_time = threading.Lock()

    def end_without_parent() -> None:
        with one_at_a_time:
            if os.getppid() == int(parent):
                return
            if rank == 1:
                _append_line(
                    errors,
                    f"train: process 0 of {size} exited without an error message; it may have run "
                    "out of memory, or a signal killed it. To resume, rerun the command",
                )
            os._exit(1)

    def watch() -> None:
        while True:
            end_without_parent()
            time.sleep(_LOOK_AFTER_PARENT_SECONDS)

    atexit.register(end_without_parent)  # this process may fail first, for want of the other
    threading.Thread(target=watch, daemon=True).start()


def _append_line(path: Path, line: str) -> None:
    """Append a line to a file, if that can be done without waiting."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a pipe might have no reader
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags, 0o666)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until they have noticed that the job is over, but not for long."""
    for child in children:
        try:
            child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
