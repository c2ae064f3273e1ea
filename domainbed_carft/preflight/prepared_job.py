"""A job of the sweep in this process, as the harness's `train` prepares it up to its first step."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed_carft.jobs.job import Job
from domainbed_carft.sweep import host

if TYPE_CHECKING:
    from domainbed.lib.job_batches import JobBatches
    from domainbed.lib.training import Trainer

_NEVER = 2**40  # a step that no rehearsal reaches


def prepare(
    job: Job, variables: Mapping[str, str], folder: Path, targets: Sequence[int] | None = None
) -> Trainer:
    """Build the trainer of a job: check its arguments, load its data, build its algorithm.

    ``variables``: the process variables that its launcher gives it, which stay set. ``folder``:
    takes the place of the job's. ``targets``: take the place of its test environments. Raises what
    `train` would.
    """
    os.environ.update(variables)
    train_arguments = host.module("lib.train_arguments")
    preparation = host.module("lib.preparation")
    words = Job({**job.args}, folder).command[3:]  # after python -m domainbed.scripts.train
    args = train_arguments.build_parser().parse_args(words)
    unrecorded = {name: vars(args).pop(name) for name in train_arguments.UNRECORDED_FLAGS}
    with quiet():
        overrides = train_arguments.check(args, argparse.Namespace(**unrecorded))
        hparams = preparation.choose_hparams(args, overrides)
        args.steps = args.checkpoint_freq = _NEVER
        if targets is not None:
            args.test_envs = [*targets]
        prepared = preparation.prepare(args, hparams, memory_limit=0)
        stop = host.module("lib.stopping").StopSignals()
        trainer: Trainer = host.module("lib.training").Trainer(prepared, None, stop, lock=None)
    return trainer


@contextlib.contextmanager
def loaded_batches(trainer: Trainer, evaluates: bool = False) -> Iterator[JobBatches]:
    """The batches of a trainer's steps, by its loaders; with ``evaluates``, an evaluation first."""
    batches = trainer.batches
    batches.begin(
        step=1,  # there is an evaluation after step 0
        pending=evaluates,
        once=False,
        workers=trainer.n_workers,
        pictures=trainer.pictures,
    )
    with contextlib.closing(batches), quiet():
        yield batches


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what jobs print on standard output is dropped: the rows say what matters."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
