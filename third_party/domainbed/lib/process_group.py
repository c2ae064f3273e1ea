"""The processes that train one job together, each with its slice of every batch.

All draw the same batches, and all-reduce what they compute of their slices, so that each has the
weights of a single process. `process_start` starts them. Upstream has no equivalent.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from domainbed.algorithms import Algorithm
from domainbed.lib.step_meters import defining_class
from domainbed_carft import text
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.jobs.folder import STOPPED, UNCOUNTED_STATUSES

# The key, in the store that all processes share, of the reason why one of them ended.
_FAILURE = "domainbed failure"

# How long processes may take to end after another one has failed, or after the job.
GRACE_SECONDS = 20.0

# How long to wait for the reason why another process has ended.
_REASON_PATIENCE = datetime.timedelta(seconds=3)

# All-reduce is done for about so many numbers at a time: 64 MiB.
_BUCKET_SIZE = 2**24


class ProcessExitedError(TransientError):
    """Another process of this job has ended."""


@dataclass(eq=False)
class ProcessGroup:
    """The processes of a job, as one of them sees them; without arguments a single process."""

    rank: int = 0  # this process's number
    size: int = 1  # how many processes there are
    local_size: int = 1  # how many of them share this machine
    store: Any = None  # torch's, for messages between them
    children: Sequence[subprocess.Popen[bytes]] = ()  # those that this process has started

    @property
    def is_leader(self) -> bool:
        """Whether it is the first, which writes the job's files."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This process's slice of `count` items."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_of(self, number: int) -> int:
        """The sum of a number over the processes; all have to call this together."""
        return self._all_reduce_number(number, dist.ReduceOp.SUM)

    def max_of(self, number: int) -> int:
        """The maximum of a number over the processes; all have to call this together."""
        return self._all_reduce_number(number, dist.ReduceOp.MAX)

    def _all_reduce_number(self, number: int, operation: Any) -> int:
        tensor = torch.tensor(number)
        if self.size > 1:
            with self._explained_failures():
                dist.all_reduce(tensor, operation)
        return int(tensor)

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, of one device, by their sums over the processes."""
        if self.size == 1:
            return

        ends = itertools.accumulate(tensor.numel() for tensor in tensors)
        buckets = itertools.groupby(zip(ends, tensors), lambda pair: pair[0] // _BUCKET_SIZE)
        for _, pairs in buckets:
            bucket = [tensor for _, tensor in pairs]
            sums = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self._explained_failures():
                dist.all_reduce(sums)
            parts = sums.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts):
                tensor.copy_(part.view_as(tensor))

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise a CarftError that names what differs from the first process's."""
        gathered: list[Any] = [facts] * self.size
        if self.size > 1:
            with self._explained_failures():
                dist.all_gather_object(gathered, facts)

        for rank, name in itertools.product(range(self.size), facts):
            if gathered[rank].get(name) != gathered[0][name]:
                value, expected = text.trim_differences(gathered[rank].get(name), gathered[0][name])
                raise CarftError(
                    f"process {rank} of {self.size} has other settings than the first: {name} is "
                    f"{value}, expected {expected}. Give all the same "
                    "arguments, output_dir, data and kind of GPU"
                )

    @contextlib.contextmanager
    def _explained_failures(self) -> Iterator[None]:
        """If communication in the block fails, raise why another process has ended instead."""
        try:
            yield
        except RuntimeError as error:
            raise self.exit_error() from error

    def exit_error(self) -> CarftError:
        """The error to raise if another process has ended, with its reason if it left one."""
        with contextlib.suppress(RuntimeError):  # none was left, or the store's process has ended
            self.store.wait([_FAILURE], _REASON_PATIENCE)
            is_passing, message = json.loads(self.store.get(_FAILURE))
            return ProcessExitedError(message) if is_passing else CarftError(message)

        return ProcessExitedError(
            f"one of the {self.size} processes of this job exited without an error message; it may "
            "have run out of memory"
        )

    def report_failure(self, error: Exception) -> None:
        """Leave the reason why this process ends for the first one, which prints it."""
        if isinstance(error, CarftError):
            message = str(error)
            is_passing = isinstance(error, TransientError)
        else:
            message = "".join(traceback.format_exception(error)).rstrip()
            is_passing = True

        report = json.dumps([is_passing, f"process {self.rank} of {self.size}: {message}"])
        with contextlib.suppress(RuntimeError):  # the first process has ended
            self.store.set(_FAILURE, report)

    def end_with_child(self, rank: int, is_over: threading.Event) -> None:
        """Wait for a process that this one has started; end this one if that has failed.

        For this one may wait for that forever, as it does while they join. Leaves the reason for
        all others if a signal killed it. Returns if `is_over` is set in time.
        """
        status = self.children[rank - 1].wait()
        if status in (0, STOPPED):
            return

        with contextlib.suppress(RuntimeError):  # this process ends, too
            # Not the connection of `self.store`, which torch locks while a thread waits for a key.
            store = dist.TCPStore(self.store.host, self.store.port)
            if status < 0:
                reason = (
                    f"process {rank} of {self.size} was killed by {signal.Signals(-status).name}"
                )
                store.set(_FAILURE, json.dumps([True, reason]))
            error = replace(self, store=store).exit_error()
            if is_over.wait(GRACE_SECONDS if dist.is_initialized() else 0):
                return

            print(f"train: {error}", file=sys.stderr)
            for child in self.children:
                child.kill()
            os._exit(STOPPED if status in UNCOUNTED_STATUSES else 1)


SINGLE_PROCESS = ProcessGroup()


def attach_process_group(algorithm: Any, process_group: ProcessGroup, batch_size: int) -> None:
    """Give an algorithm its process group, so that it can train on slices of batches.

    Raises CarftError if there are fewer images in a batch than processes, or if the algorithm
    cannot sum its gradients over the processes.
    """
    problem = f"cannot be trained by {process_group.size} processes"
    if batch_size < process_group.size:
        raise CarftError(f"batches of {batch_size} {problem}; give them that many images or more")

    # A class that overrides the step has to override `indivisible` as well.
    names = ("indivisible", "step_on_device", "update")
    has_answer = "indivisible" in defining_class(algorithm, *names)
    reason = (type(algorithm) if has_answer else Algorithm).indivisible(algorithm)
    if reason:
        raise CarftError(f"{type(algorithm).__name__} {problem}: {reason}. Use one process")
    algorithm.process_group = process_group
