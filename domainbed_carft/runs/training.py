"""Train from Python: run `python -m domainbed.scripts.train` in a process and load its run."""

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
    NATURALS,
    NUMBER,
    TEXT,
    TEXTS,
    WORKERS,
    require_kind,
)
from domainbed_carft.errors import CarftError, TransientError
from domainbed_carft.jobs.job import make_train_command
from domainbed_carft.jobs.job_folder import WEIGHTS
from domainbed_carft.launchers.attempt import Children, describe_end, stop_on_signals
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
    """Train one algorithm on one dataset.

    This function runs ``python -m domainbed.scripts.train`` in a process and prints its output. The
    arguments are the command's flags; None omits a flag. An interrupted job is resumed, and a
    finished job is trained again. SIGTERM and Ctrl-C save the state of the training before they end
    this process; call ``train`` again to resume.

    Args:
        algorithm: name of the algorithm, such as "CARFT".
        dataset: name of the dataset, or your own folder environment/class/image, or a CSV
            file with the columns path, environment and class.
        test_envs: indices of the environments to hold out; an empty list trains on all.
        output_dir: the job's folder.
        hparams: hyperparameters to change, by name.
        steps: number of steps. Default: chosen by the dataset.
        data_dir: the folder that contains the dataset's folder.
        task: DomainBed's task, "domain_generalization" or "domain_adaptation".
        hparams_seed: seed of the random hyperparameters; 0 for the defaults.
        trial_seed: seed of the splits and of the random hyperparameters.
        seed: seed of everything else.
        checkpoint_freq: number of steps between checkpoints. Default: chosen by the dataset.
        holdout_fraction: share of each environment in its out-split.
        uda_holdout_fraction: share of a test environment's in-split without labels, for domain
            adaptation.
        workers: number of processes that load images. Default: chosen by the dataset, at most one
            per CPU.
        processes: number of processes that train, each on its slice of every batch.
        image_memory: memory for evaluation images, such as "8G"; "0" for none.
        skip_training_in_splits: skip accuracies on the in-splits of the training environments.
        skip_model_save: save no weights.
        save_model_every_checkpoint: save the weights at every checkpoint.
        keep_weights: weights to save, "last", "best", "both" or "none".
        log: names of the logs to write, "tensorboard" or "wandb".

    Returns:
        The run, or None if the job saved no weights or the algorithm is not part of this package.

    Raises:
        CarftError: if the training fails, with the command's error output, or if the domainbed in
            use is a checkout, which has its own train.
    """
    if not is_carft_harness():
        raise CarftError(
            "domainbed_carft.train needs the harness of this package, but the domainbed in use is "
            "a checkout; run python -m domainbed.scripts.train in the checkout instead"
        )

    targets = as_list(test_envs)
    require_kind(TEXT, algorithm=algorithm)
    require_kind(NATURALS, test_envs=targets)
    require_kind(MAPPING, hparams=hparams)
    require_kind(COUNT, is_optional=True, steps=steps, checkpoint_freq=checkpoint_freq)
    require_kind(COUNT, is_optional=True, processes=processes)
    require_kind(WORKERS, is_optional=True, workers=workers)
    require_kind(INTEGER, hparams_seed=hparams_seed, trial_seed=trial_seed, seed=seed)
    require_kind(
        NUMBER, holdout_fraction=holdout_fraction, uda_holdout_fraction=uda_holdout_fraction
    )
    require_kind(TEXT, is_optional=True, task=task, image_memory=image_memory)
    require_kind(TEXT, is_optional=True, keep_weights=keep_weights)
    require_kind(TEXTS, is_optional=True, log=log)
    require_kind(
        FLAG, skip_training_in_splits=skip_training_in_splits, skip_model_save=skip_model_save
    )
    require_kind(FLAG, save_model_every_checkpoint=save_model_every_checkpoint)

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
            "uda_holdout_fraction": uda_holdout_fraction or None,  # the recorded default is an int
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

    from domainbed_carft.runs.saved import load_run  # imports the host's algorithms

    folder = as_path(output_dir)  # a process variable can also disable saving weights
    return load_run(folder) if any((folder / name).exists() for name in WEIGHTS.values()) else None


def _run(arguments: Mapping[str, Any]) -> None:
    """Run train in a process and print its output.

    Raises CarftError if the training fails, KeyboardInterrupt or SystemExit after signals.
    """
    try:
        words = [sys.executable, *make_train_command(arguments)[1:]]
    except TypeError as error:
        raise CarftError(f"hparams has a value that JSON cannot hold: {error}") from error

    children = Children()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        stop_on_signals(children, "train"),
    ):
        with (
            subprocess.Popen(
                words,
                start_new_session=True,  # otherwise the process would receive Ctrl-C twice
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
        kind = CarftError if status == _WRONG_ARGUMENTS else TransientError
        raise kind(errors.strip() or describe_end(status, ""))
    print(errors, end="", file=sys.stderr)
