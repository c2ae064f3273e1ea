"""A run's scalars as TensorBoard reads them.

`JOB/tensorboard/NAME/events.out.tfevents...` is one file, written by this process from the first
record on, so that a run is called by its name wherever TensorBoard is pointed at. Values are single
precision: TensorBoard's own server shows no others.

The file is written at once and not, as by SummaryWriter, by a thread: then a full disk is told to
who logs, and only once.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from domainbed.lib import optional_library

# By which our files are told from those that a user has put there.
_SUFFIX = ".domainbed"

_COMPARED_BY = ("algorithm", "dataset", "test_envs", "trial_seed", "hparams_seed")


def problems() -> list[str]:
    """Say if the library is missing."""
    return optional_library.problems("tensorboard", "--log tensorboard")


def forget(folder: str) -> None:
    """Remove the logs in a job's folder."""
    _remove(os.path.join(glob.escape(folder), "tensorboard", "*"))
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(folder, "tensorboard"))


def _remove(pattern: str, but: str = "") -> None:
    """Remove our files in the folders of that pattern, and the folders that are then empty."""
    for path in glob.glob(os.path.join(pattern, f"*{_SUFFIX}")):
        if path != but:
            os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(path))


class TensorBoard:
    """A file of events. Arguments are those of `scalar_logs.KINDS`."""

    title = "TensorBoard"

    def __init__(
        self, folder: str, name: str, args: Mapping[str, Any], hparams: Mapping[str, Any]
    ) -> None:
        self._parent = folder
        self._folder = os.path.join(folder, "tensorboard", name)
        self._args, self._hparams = args, hparams

    def open(self) -> str:
        """Begin a new file with arguments and hyperparameters, as text and to compare runs by."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._summary = event_pb2.Event, summary
        os.makedirs(self._folder, exist_ok=True)
        unique = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = os.path.join(self._folder, f"events.out.tfevents.{unique}{_SUFFIX}")
        self._file = open(self._path, "xb")  # noqa: SIM115 - until `close`
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # A TensorBoard that shows the file of an earlier process forgets it.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(session_log=start)
        compared = {name: self._args[name] for name in _COMPARED_BY} | dict(self._hparams)
        plain = {name: _plain(value) for name, value in sorted(compared.items())}
        _, session, _ = summary.hparams(plain, {})
        self._write(summary=session)
        for title, values in (("args", self._args), ("hparams", self._hparams)):
            listed = json.dumps(values, indent=4, sort_keys=True, default=str)
            # Indented, it is code to Markdown.
            self._write(summary=summary.text(title, "    " + listed.replace("\n", "\n    ")))
        self._file.flush()
        return f"tensorboard --logdir {self._parent}"

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write a record's scalars."""
        for name, value in scalars.items():
            self._write(step=step, summary=self._summary.scalar(name, value))
        self._file.flush()

    def replaces_earlier(self) -> None:
        """Remove the files of earlier processes."""
        _remove(glob.escape(self._folder), but=self._path)

    def close(self, done: bool) -> None:
        """Close the file."""
        self._file.close()


def _plain(value: Any) -> bool | float | str:
    """Return what the hparams plugin takes."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return json.dumps(value, default=str)
