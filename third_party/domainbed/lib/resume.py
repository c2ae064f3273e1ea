"""The file from which a run goes on: written whole or not at all, and read without executing code.

Upstream has nothing like it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from domainbed.lib import errors
from domainbed_carft.files import weights

NAME = "state.pt"

# What `training.Run` puts into a state.
_PARTS = {
    *(
        "arguments",
        "hyperparameters",
        "data",
        "torch",
        "steps_done",
        "recorded",
        "interval",
        "files",
    ),
    *("generators", "cuda_generators", "algorithm"),
}

# Arguments that do not change the result, so that a run may go on with others.
_INDIFFERENT = (
    *("output_dir", "data_dir", "workers"),
    *("skip_model_save", "save_model_every_checkpoint", "keep_weights", "skip_training_in_splits"),
)


COMFORT = "What was saved before is untouched: make room, then start the same again."


class ResumeError(errors.Failure):
    """The run cannot be saved or cannot go on; the message says what to do."""


class StateFile:
    """The state of the run in `folder`."""

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, NAME)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.path.getsize(self.path)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state; if that fails, the one before is still there.

        Raises:
            ResumeError: there is no space, or the folder cannot be written.
        """
        save_whole(state, self.path, COMFORT)

    def load(self) -> dict[str, Any] | None:
        """Return the state, or None if there is none.

        Raises:
            ResumeError: the file cannot be read.
        """
        if not os.path.exists(self.path):
            return None
        try:
            state = weights.load_weights(self.path)
            if not isinstance(state, dict) or not state.keys() >= _PARTS:
                raise ValueError(f"{self.path} is not the state of a run")
        except ValueError as error:
            raise ResumeError(
                f"{error}. Put a good copy in its place, or start over with --restart, which "
                "deletes it."
            ) from error
        return state

    def remove(self) -> None:
        """Delete the state and what a killed process left half-written beside it."""
        for path in (self.path, f"{self.path}.part"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def save_whole(contents: Any, path: str, comfort: str = "") -> None:
    """Write by torch.save under another name, then rename: the file is complete or not there.

    Raises:
        ResumeError: there is no space, or the folder cannot be written.
    """
    part = f"{path}.part"
    with told(path, comfort):
        try:
            with open(part, "wb") as file:
                _write(contents, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


@contextlib.contextmanager
def told(path: str, comfort: str = "") -> Iterator[None]:
    """Inside the block a failing write becomes a ResumeError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise ResumeError(_unwritable(path, error, comfort)) from error


def _write(contents: Any, file: BinaryIO) -> None:
    """torch.save, but the error of a write comes through, which torch hides behind its own."""
    watched = _Watched(file)
    try:
        torch.save(contents, watched)
    except RuntimeError:
        if watched.error is not None:
            raise watched.error from None
        raise


class _Watched:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _unwritable(path: str, error: OSError, comfort: str) -> str:
    folder = os.path.dirname(path) or "."
    free = ""
    with contextlib.suppress(OSError):
        free = f" {shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there."
    return f"{path} cannot be written: {error.strerror or error}.{free} {comfort}".rstrip()


def identity(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the result depends on."""
    return {name: value for name, value in args.items() if name not in _INDIFFERENT}


def require_same(path: str, what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ResumeError that names each difference, if there is one."""
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    if names:
        listed = "; ".join(f"{n}: {before.get(n)!r} then, {now.get(n)!r} now" for n in names)
        raise ResumeError(
            f"{path} is of a run with other {what} ({listed}). To go on with it give what it had; "
            "to train anew give another --output_dir, or --restart, which deletes it."
        )
