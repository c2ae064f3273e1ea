"""Training from Python: what `python -m domainbed.scripts.train` does, in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from domainbed_carft.arguments import (
    COUNT,
    FLAG,
    INTEGER,
    MAPPING,
    NATURAL,
    NATURALS,
    NUMBER,
    TEXT,
    TEXTS,
    check,
)
from domainbed_carft.errors import CarftError, PassingError
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.jobs.job import command
from domainbed_carft.machine import devices
from domainbed_carft.method.algorithms import CLASSES
from domainbed_carft.method.host_lookup import in_our_harness
from domainbed_carft.paths import AnyPath, as_list, as_path, as_text
from domainbed_carft.pictures import rng

if TYPE_CHECKING:
    from domainbed_carft.runs.run import Run

# Of the words of a command line: python -m domainbed.scripts.train.
_WORDS_BEFORE_ARGUMENTS = 3


def train(
    algorithm: str,
    dataset: AnyPath,
    test_envs: int | Iterable[int],
    output_dir: AnyPath,
    *,
    hparams: Mapping[str, Any] = {},
    steps: int | None = None,
    data_dir: AnyPath | None = None,
    task: str | None = None,
    hparams_seed: int = 0,
    trial_seed: int = 0,
    seed: int = 0,
    checkpoint_freq: int | None = None,
    holdout_fraction: float = 0.2,
    uda_holdout_fraction: float = 0,
    workers: int | None = None,
    processes: int | None = None,
    picture_memory: str | None = None,
    skip_training_in_splits: bool = False,
    skip_model_save: bool = False,
    save_model_every_checkpoint: bool = False,
    keep_weights: str | None = None,
    log: Sequence[str] | None = None,
) -> Run | None:
    """Train one algorithm on one data set, and return the run, as `load_run` of its folder does.

    It does what ``python -m domainbed.scripts.train`` does, with the same folder, bit for bit: an
    interrupted job resumes, a finished one is trained anew. It prints what the command prints. The
    arguments are the command's flags; None stands for a flag that is not given. ``dataset``: a
    name, or your own folder environment/class/picture. ``test_envs``: the numbers of the
    environments left out; an empty list trains on all.

    Afterwards, also after an error, the state of this process is as before: random generators,
    torch's threads, signal handlers, cuDNN's flags, process variables, warnings, and the standard
    streams. SIGTERM and SIGUSR1 stop the training with its state saved, and then do what they do
    otherwise. With ``processes`` above 1 a crash of one of them ends all, this one included.

    Returns None if the job has kept no weights, or is of an algorithm that is not of this package.
    Raises CarftError with the message that the command prints, and where the domainbed in use is a
    checkout, which has a train of its own.
    """
    if not in_our_harness():
        raise CarftError(
            "domainbed_carft.train trains with the harness of this package, but the domainbed in "
            "use is a checkout; run its own: python -m domainbed.scripts.train"
        )

    targets = as_list(test_envs)
    check(TEXT, algorithm=algorithm)
    check(NATURALS, test_envs=targets)
    check(MAPPING, hparams=hparams)
    check(COUNT, is_optional=True, steps=steps, checkpoint_freq=checkpoint_freq)
    check(COUNT, is_optional=True, processes=processes)
    check(NATURAL, is_optional=True, workers=workers)
    check(INTEGER, hparams_seed=hparams_seed, trial_seed=trial_seed, seed=seed)
    check(NUMBER, holdout_fraction=holdout_fraction, uda_holdout_fraction=uda_holdout_fraction)
    check(TEXT, is_optional=True, task=task, picture_memory=picture_memory)
    check(TEXT, is_optional=True, keep_weights=keep_weights)
    check(TEXTS, is_optional=True, log=log)
    check(FLAG, skip_training_in_splits=skip_training_in_splits, skip_model_save=skip_model_save)
    check(FLAG, save_model_every_checkpoint=save_model_every_checkpoint)

    words = _words(
        {
            "algorithm": algorithm,
            "dataset": as_text(dataset),
            "test_envs": targets,
            "output_dir": as_text(output_dir),
            "hparams": dict(hparams) or None,
            "steps": steps,
            "data_dir": as_text(data_dir),
            "task": task,
            "hparams_seed": hparams_seed,
            "trial_seed": trial_seed,
            "seed": seed,
            "checkpoint_freq": checkpoint_freq,
            "holdout_fraction": holdout_fraction,
            "uda_holdout_fraction": uda_holdout_fraction or None,  # by default a whole number
            "workers": workers,
            "processes": processes,
            "picture_memory": picture_memory,
            "skip_training_in_splits": skip_training_in_splits,
            "skip_model_save": skip_model_save,
            "save_model_every_checkpoint": save_model_every_checkpoint,
            "keep_weights": keep_weights,
            "log": log,
        }
    )
    keeps_weights = not skip_model_save and keep_weights != "none"
    run = None
    with preserved_process_state():
        stopped_by = _train(words)
        if not stopped_by and keeps_weights and algorithm in CLASSES:
            run = _load_run(as_path(output_dir))

    if stopped_by:
        # Its handler is the caller's again; by default it ends this process.
        signal.raise_signal(signal.Signals[stopped_by])
        raise PassingError(f"stopped by {stopped_by}; to resume, call train again")
    return run


def _words(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments as words of the command line; CarftError for hparams that JSON cannot hold."""
    try:
        return command(arguments)[_WORDS_BEFORE_ARGUMENTS:]
    except TypeError as error:
        raise CarftError(f"hparams has a value that JSON cannot hold: {error}") from error


def _train(words: Sequence[str]) -> str:
    """Run the harness's train; the name of the signal that stopped it, "" if none did."""
    from domainbed.lib.stopping import Stopped
    from domainbed.scripts import train as script

    devices.begin_peak_memory(devices.default_device())  # the records have the job's own
    try:
        script.train(words)
    except Stopped as error:
        return str(error)
    return ""


def _load_run(folder: Path) -> Run | None:
    """The run in a job's folder; None if a process variable says to keep no weights."""
    from domainbed_carft.runs.saved import load_run  # which needs more of a host

    has_weights = any((folder / name).exists() for name in WEIGHTS.values())
    return load_run(folder) if has_weights else None


@contextlib.contextmanager
def preserved_process_state() -> Iterator[None]:
    """Restore after the block what training changes in a process, even if it fails.

    These are the random generators, torch's threads, signal handlers, cuDNN's flags, process
    variables, warnings, and the standard streams.
    """
    device = devices.default_device()
    gpu_generators = devices.generator_states(device)
    threads = torch.get_num_threads()
    deterministic = torch.backends.cudnn.deterministic
    benchmark = torch.backends.cudnn.benchmark
    variables = dict(os.environ)
    handlers: dict[int, Any] = {
        number: signal.getsignal(number) for number in signal.valid_signals()
    }

    with rng.preserved_states(), warnings.catch_warnings():
        try:
            yield
        finally:
            devices.set_generator_states(gpu_generators, device)
            torch.set_num_threads(threads)
            torch.backends.cudnn.deterministic = deterministic
            torch.backends.cudnn.benchmark = benchmark
            _restore_variables(variables)
            _restore_handlers(handlers)


def _restore_variables(variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _restore_handlers(handlers: Mapping[int, Any]) -> None:
    """Set the changed ones of these signal handlers; other threads than the main one set none."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)
