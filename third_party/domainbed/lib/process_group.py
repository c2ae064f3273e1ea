"""Processes that train one job together, each with its slice of every batch.

All processes draw the same batches and all-reduce the sums over their slices, so each computes the
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
from domainbed_carft import wording
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.jobs.job_folder import STOPPED, UNCOUNTED_STATUSES

# Key of the error message of a failed process, in the store that all processes share.
_FAILURE = "domainbed failure"

# Time for processes to end after another process has failed, or after the job.
GRACE_SECONDS = 20.0

# Time to wait for the error message of another process.
_REASON_PATIENCE = datetime.timedelta(seconds=3)

# All-reduce is called for about this many numbers at a time (64 MiB).
_BUCKET_SIZE = 2**24


class ProcessExitedError(TransientError):
    """Another process of this job has ended."""


@dataclass(eq=False)
class ProcessGroup:
    """The processes of a job, seen from one of them; without arguments a single process."""

    rank: int = 0  # number of this process
    size: int = 1  # number of processes
    local_size: int = 1  # number of processes on this machine
    store: Any = None  # torch's store, for messages between processes
    children: Sequence[subprocess.Popen[bytes]] = ()  # processes that this process has started

    @property
    def is_leader(self) -> bool:
        """True for the first process, which writes the job's files."""
        return self.rank == 0

    def get_slice(self, count: int) -> slice:
        """Return this process's slice of `count` items."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_over_processes(self, number: int) -> int:
        """Return the sum of a number over the processes; all must call this together."""
        return self._all_reduce_number(number, dist.ReduceOp.SUM)

    def max_over_processes(self, number: int) -> int:
        """Return the maximum of a number over the processes; all must call this together."""
        return self._all_reduce_number(number, dist.ReduceOp.MAX)

    def _all_reduce_number(self, number: int, operation: Any) -> int:
        tensor = torch.tensor(number)
        if self.size > 1:
            with self._explained_failures():
                dist.all_reduce(tensor, operation)
        return int(tensor)

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors on one device by their sums over the processes."""
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
        """Raise a CarftError that names the first fact that differs from the first process's."""
        gathered: list[Any] = [facts] * self.size
        if self.size > 1:
            with self._explained_failures():
                dist.all_gather_object(gathered, facts)

        for rank, name in itertools.product(range(self.size), facts):
            if gathered[rank].get(name) != gathered[0][name]:
                value, expected = wording.trim_differences(
                    gathered[rank].get(name), gathered[0][name]
                )
                raise CarftError(
                    f"process {rank} of {self.size} has other settings than the first: {name} is "
                    f"{value}, expected {expected}. Start all with the same arguments, "
                    "--output_dir, data and kind of GPU"
                )

    @contextlib.contextmanager
    def _explained_failures(self) -> Iterator[None]:
        """Replace a failed communication in the block by the error of the process that ended."""
        try:
            yield
        except RuntimeError as error:
            raise self.exit_error() from error

    def exit_error(self) -> CarftError:
        """Return the error to raise after the end of another process, with its message if any."""
        with contextlib.suppress(RuntimeError):  # no message, or the store's process has ended
            self.store.wait([_FAILURE], _REASON_PATIENCE)
            is_passing, message = json.loads(self.store.get(_FAILURE))
            first_line, *traceback_lines = message.splitlines()
            error_class = ProcessExitedError if is_passing else CarftError
            return error_class(first_line, details=traceback_lines)

        return ProcessExitedError(
            f"one of the {self.size} processes of this job exited without an error message; check "
            "whether it ran out of memory"
        )

    def report_failure(self, error: Exception) -> None:
        """Store the error that ends this process; the first process prints it."""
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
        """Wait for a child process, and end this process if the child fails.

        Otherwise this process could wait forever for the child, for example while they join. If a
        signal killed the child, this is stored as the error message for all other processes.

        Args:
            rank: number of the child process.
            is_over: event that keeps this process running if it is set within GRACE_SECONDS.
        """
        status = self.children[rank - 1].wait()
        if status in (0, STOPPED):
            return

        with contextlib.suppress(RuntimeError):  # this process ends as well
            # A new connection: torch locks the one of `self.store` while a thread waits for a key.
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
    """Set an algorithm's process group, so that it trains on slices of batches.

    Raises:
        CarftError: a batch has fewer images than there are processes, or the algorithm cannot sum
            its gradients over the processes.
    """
    problem = f"cannot be trained by {process_group.size} processes"
    if batch_size < process_group.size:
        raise CarftError(
            f"batches of {batch_size} images {problem}; use a batch_size of at least "
            f"{process_group.size}, or fewer processes"
        )

    # A class that overrides the step must override `single_process_reason` as well.
    names = ("single_process_reason", "step_on_device", "update")
    overrides_reason = "single_process_reason" in defining_class(algorithm, *names)
    reason = (type(algorithm) if overrides_reason else Algorithm).single_process_reason(algorithm)
    if reason:
        raise CarftError(f"{type(algorithm).__name__} {problem}: {reason}. Use one process")
    algorithm.process_group = process_group
