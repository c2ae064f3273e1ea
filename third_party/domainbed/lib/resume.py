"""The file from which a run resumes: written whole or not at all, read without executing code."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from domainbed_carft import files, text
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.files import weights
from domainbed_carft.jobs.folder import JobFolder

# Arguments that do not change the result, so that a run may resume with other values.
_IRRELEVANT_ARGUMENTS = {
    "output_dir",
    "data_dir",
    "workers",
    "skip_model_save",
    "keep_weights",
    "save_model_every_checkpoint",
    "skip_training_in_splits",
}

# Of the state; a state with another number is not read.
FORMAT = 1
_STATE_KEYS = {
    "format",
    "steps_done",
    "recorded",
    "interval",
    "files",
    "generators",
    "cuda_generators",
    "arguments",
    "hyperparameters",
    "facts",
    "data",
    "torch",
    "algorithm",
}


class ResumeError(TransientError):
    """The run cannot be saved, or its state read; the message says what to do."""


def load(folder: str) -> dict[str, Any] | None:
    """Return the state of the run in `folder`, or None; raises CarftError if it is damaged."""
    tidy_up(Path(folder))
    path = JobFolder(folder).state_path
    try:
        state = weights.load_weights(path) if path.exists() else None
        if state is not None and not (isinstance(state, dict) and state.keys() >= _STATE_KEYS):
            raise ValueError(f"{path} is not the state of a run")
        if state is not None and state["format"] != FORMAT:
            raise ValueError(f"{path} has format {state['format']}, expected {FORMAT}")
        return state
    except TransientError:  # too little memory: the file may be whole
        raise
    except ValueError as error:
        advice = "Replace the file with a good copy, or delete the folder to start over"
        # A fault of the disk may pass.
        kind = ResumeError if isinstance(error.__cause__, OSError) else CarftError
        raise kind(f"{error}. {advice}") from error


def tidy_up(folder: Path) -> None:
    """Delete half-written files of killed processes; the holder of the lock is alone here."""
    for path in folder.glob(files.PART_FILE_PATTERN):
        path.unlink(missing_ok=True)


def save_whole(contents: Any, path: Path) -> None:
    """Write by torch.save: the file is complete or not there. Raises ResumeError if that fails."""
    with (
        naming_failed_writes(path),
        files.replace_atomically(path) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming_failed_writes(path: Path) -> Iterator[None]:
    """Inside the block a failing write becomes a ResumeError that names the file and the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save has the latter for a full disk
        free = shutil.disk_usage(path.parent).free / 2**20
        # torch hides the error of a write behind one of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise ResumeError(
            f"{path} cannot be written: {reason}. {free:.0f} MiB are free; earlier saves are "
            "untouched: free disk space, then rerun the command"
        ) from error


def identity(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the result depends on."""
    return {name: value for name, value in args.items() if name not in _IRRELEVANT_ARGUMENTS}


def require_same(path: Path, kind: str, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise a CarftError that names each difference between the state at ``path`` and this run.

    ``kind`` says what is compared: arguments, hyperparameters or data.
    """
    differing = []
    for name in sorted({*stored, *current}):
        if stored.get(name) != current.get(name):
            old, new = text.trim_differences(stored.get(name), current.get(name))
            differing.append(f"{name}: {old} then, {new} now")
    if differing:
        listed = "; ".join(differing)
        raise CarftError(
            f"{path} is of a run with other {kind} ({listed}). Resume with its values, or start a "
            "new run with another --output_dir; to start this one over, delete its folder."
        )
