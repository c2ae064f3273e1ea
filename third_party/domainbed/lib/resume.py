"""The file from which a job resumes: written atomically, read without executing code."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from domainbed_carft import files, wording
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.files import weights
from domainbed_carft.jobs.job_folder import JobFolder

# Arguments that do not change the result, so that a job can resume with other values.
_IRRELEVANT_ARGUMENTS = {
    "output_dir",
    "data_dir",
    "workers",
    "skip_model_save",
    "keep_weights",
    "save_model_every_checkpoint",
    "skip_training_in_splits",
}

# Number of the state's format; states with another number are not read.
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
    """The state of a job cannot be saved or read."""


def load(folder: str) -> dict[str, Any] | None:
    """Return the state of the job in a folder, or None if there is no state.

    Raises:
        CarftError: the state is damaged.
    """
    delete_partial_files(Path(folder))
    path = JobFolder(folder).state_path

    try:
        state = weights.load_weights(path) if path.exists() else None
        if state is not None and not (isinstance(state, dict) and state.keys() >= _STATE_KEYS):
            raise ValueError(f"{path} is not the state of a job")
        if state is not None and state["format"] != FORMAT:
            raise ValueError(f"{path} has format {state['format']}, expected {FORMAT}")
        return state
    except TransientError:  # too little memory: the file can still be good
        raise
    except ValueError as error:
        advice = "Replace the file with a good copy, or delete the folder to start over"
        # A retry can succeed after an error of the disk.
        error_class = ResumeError if isinstance(error.__cause__, OSError) else CarftError
        raise error_class(f"{error}. {advice}") from error


def delete_partial_files(folder: Path) -> None:
    """Delete partial files of killed processes; the caller must hold the folder's lock."""
    for path in folder.glob(files.PART_FILE_PATTERN):
        path.unlink(missing_ok=True)


def save_atomically(contents: Any, path: Path) -> None:
    """Write a file with torch.save, atomically.

    Raises:
        ResumeError: writing fails.
    """
    with (
        explain_failed_writes(path),
        files.replace_atomically(path) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def explain_failed_writes(path: Path) -> Iterator[None]:
    """Replace a failed write in the block by a ResumeError with the file's path and the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        free = shutil.disk_usage(path.parent).free / 2**20
        # torch replaces the error of a write by a less specific one.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise ResumeError(
            f"{path} cannot be written: {reason}. {free:.0f} MiB are free, and earlier files are "
            "intact. Free disk space, then rerun the command"
        ) from error


def identity(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the results depend on."""
    return {name: value for name, value in args.items() if name not in _IRRELEVANT_ARGUMENTS}


def require_same(path: Path, kind: str, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare the values stored in a state with a job's values.

    Args:
        path: the state's file, for the message.
        kind: what the values are, for the message: arguments, hyperparameters, facts or data.
        stored: the values in the state.
        current: the job's values.

    Raises:
        CarftError: values differ; the message names each of them.
    """
    differing = []
    for name in sorted({*stored, *current}):
        if stored.get(name) != current.get(name):
            old, new = wording.trim_differences(stored.get(name), current.get(name))
            differing.append(f"{name}: {old} then, {new} now")
    if differing:
        raise CarftError(
            f"{path} belongs to a job with other {kind} ({'; '.join(differing)}). Resume with its "
            "values, or start a new job with another --output_dir; to start this job over, delete "
            "its folder"
        )
