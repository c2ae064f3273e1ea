"""Training from Python: `python -m domainbed.scripts.train` in a process, and the run it leaves."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from domainbed_carft.launchers.attempt import Children, describe_end, stopping
from domainbed_carft.method.algorithms import CLASSES
from domainbed_carft.method.host_lookup import is_carft_harness
from domainbed_carft.paths import AnyPath, as_list, as_path, as_text

if TYPE_CHECKING:
    from domainbed_carft.runs.run import Run

_WRONG_ARGUMENTS = 2  # train's exit status


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
    image_memory: str | None = None,
    skip_training_in_splits: bool = False,
    skip_model_save: bool = False,
    save_model_every_checkpoint: bool = False,
    keep_weights: str | None = None,
    log: Sequence[str] | None = None,
) -> Run | None:
    """Train one algorithm on one dataset, and return the run, as `load_run` of its folder does.

    It runs ``python -m domainbed.scripts.train`` in a process and prints its lines; the arguments
    are the command's flags, and None stands for a flag that is not given. An interrupted job
    resumes, a finished one is trained anew. SIGTERM and Ctrl-C have the training save its state,
    then end this process as they usually do; call ``train`` again to resume.

    Args:
        dataset: a name, or your own folder environment/class/image.
        test_envs: the numbers of the environments left out; an empty list trains on all.

    Returns:
        The run; None if the job kept no weights, or its algorithm is not of this package.

    Raises:
        CarftError: with what the command prints on its error stream, or if the domainbed in use is
            a checkout, which has a train of its own.
    """
    if not is_carft_harness():
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
    check(TEXT, is_optional=True, task=task, image_memory=image_memory)
    check(TEXT, is_optional=True, keep_weights=keep_weights)
    check(TEXTS, is_optional=True, log=log)
    check(FLAG, skip_training_in_splits=skip_training_in_splits, skip_model_save=skip_model_save)
    check(FLAG, save_model_every_checkpoint=save_model_every_checkpoint)

    _run(
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
            "image_memory": image_memory,
            "skip_training_in_splits": skip_training_in_splits,
            "skip_model_save": skip_model_save,
            "save_model_every_checkpoint": save_model_every_checkpoint,
            "keep_weights": keep_weights,
            "log": log,
        }
    )
    if skip_model_save or keep_weights == "none" or algorithm not in CLASSES:
        return None

    from domainbed_carft.runs.saved import load_run  # which needs more of a host

    folder = as_path(output_dir)  # a process variable, too, may say to keep no weights
    return load_run(folder) if any((folder / name).exists() for name in WEIGHTS.values()) else None


def _run(arguments: Mapping[str, Any]) -> None:
    """Run train in a process and print its lines.

    Raises CarftError if it fails, KeyboardInterrupt and SystemExit after signals.
    """
    try:
        words = [sys.executable, *command(arguments)[1:]]
    except TypeError as error:
        raise CarftError(f"hparams has a value that JSON cannot hold: {error}") from error

    children = Children()
    with tempfile.TemporaryFile("w+", errors="replace") as stderr, stopping(children, "train"):
        with (
            subprocess.Popen(
                words,
                start_new_session=True,  # or Ctrl-C would come to it twice
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
            children.running(process),
        ):
            for line in process.stdout or ():
                print(line, end="", flush=True)
            status = process.wait()
        stderr.seek(0)
        errors = stderr.read()

    if status:
        kind = CarftError if status == _WRONG_ARGUMENTS else PassingError
        raise kind(errors.strip() or describe_end(status, ""))
    print(errors, end="", file=sys.stderr)
