"""A job of the sweep, prepared in this process as `train` prepares it, up to its first step."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.splits import EnvironmentSplits
from domainbed_carft.method import dataset_facts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.job import resolve_amp
from domainbed_carft.preflight import device as job_device
from domainbed_carft.sweep import host

if TYPE_CHECKING:
    from domainbed.lib.preparation import PreparedJob

Batch = tuple[Tensor, Tensor]

_NEVER = 2**40  # a step that no rehearsal reaches
# Hparams on which a data set and its transforms depend.
_DATA_HPARAMS = (
    "clip_backbone",
    "class_names",
    "protocol",
    "preprocessing",
    "data_edition",
    "data_augmentation",
)


@dataclass(frozen=True)
class _LoadedData:
    """A data set, its splits and facts, by all that they depend on."""

    key: Mapping[str, Any]
    dataset: Any
    environments: Sequence[EnvironmentSplits]
    facts: DatasetFacts


_last_data: _LoadedData | None = None


@dataclass(frozen=True)
class RehearsedJob:
    """A job of the sweep as the harness in use prepares it.

    ``job``: the harness's `PreparedJob`. ``worker_count``: the processes that load its pictures.
    """

    job: PreparedJob
    worker_count: int

    @property
    def pictures_per_step(self) -> int:
        """How many pictures a step trains on."""
        return len(self.job.training_envs) * int(self.job.hparams["batch_size"])

    @property
    def precision(self) -> str:
        """In which precision it computes: "bf16" or "off"."""
        amp = str(self.job.hparams.get("amp", "off"))
        return resolve_amp(amp) if amp == "auto" else amp

    @property
    def picture_bytes(self) -> int:
        """The bytes of a picture as loaders hand it on: float32, or before a GPU uint8."""
        channels, height, width = self.job.dataset.input_shape
        return int(channels * height * width * (1 if job_device.has_gpu() else 4))

    def build_algorithm(
        self, device: torch.device, changed_hparams: Mapping[str, Any] | None = None
    ) -> Any:
        """The job's algorithm on ``device``, with some hparams changed; equal each time."""
        self._seed()
        with quiet():
            algorithm = self.job.build_algorithm({**self.job.hparams, **(changed_hparams or {})})
        return algorithm.to(device)

    @contextlib.contextmanager
    def loaded_batches(
        self, device: torch.device, evaluated: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        """The harness's batches of this job's steps; its loader processes end with the block.

        ``evaluated``: splits by name, of which an evaluation comes first.
        """
        self._seed()
        batches = self.job.batches(
            evaluated or {},
            steps=_NEVER,
            checkpoint_freq=_NEVER,
            device=device,
            process_group=host.module("lib.process_group").SINGLE_PROCESS,
        )
        batches.begin(
            step=1,  # there is an evaluation after step 0
            pending=bool(evaluated),
            once=False,
            workers=self.worker_count,
            pictures=self.job.pictures,
        )
        with contextlib.closing(batches):
            yield batches

    def _seed(self) -> None:
        """Seed all random numbers as the job does."""
        host.module("lib.preparation").seed_everything(self.job.args.seed)


def prepare(job: Job, variables: Mapping[str, str], output: Path) -> RehearsedJob:
    """Prepare a job: check its arguments, load and split its data.

    ``variables``: the process variables that its launcher gives it; they stay set. ``output``: what
    takes the place of the job's folder. Raises what `train` would.
    """
    os.environ.update(variables)
    args, flags = _arguments(job, output)
    overrides = host.module("lib.train_arguments").check(args, flags)
    hparams = host.module("lib.preparation").choose_hparams(args, overrides)
    return _prepare(args, hparams)


def clip_of(job: Job, variables: Mapping[str, str], output: Path) -> str:
    """The hparam clip_backbone of a job; "" if its algorithm has none. Arguments of `prepare`."""
    os.environ.update(variables)
    args, _ = _arguments(job, output)
    overrides = host.module("lib.checks").parse_hparams(args.hparams)
    hparams = host.module("lib.preparation").choose_hparams(args, overrides)
    return str(hparams.get("clip_backbone", ""))


def prepare_zero_shot(job: Job, variables: Mapping[str, str], output: Path) -> RehearsedJob:
    """Prepare CLIPZeroShot on a job's data set, with its CLIP, prompts and protocol.

    No environment is augmented: all of them are left out of training.
    """
    os.environ.update(variables)
    args, _ = _arguments(job, output)
    check = host.module("lib.checks").parse_hparams
    preparation = host.module("lib.preparation")
    hparams = preparation.choose_hparams(args, check(args.hparams))

    args.algorithm = "CLIPZeroShot"
    args.test_envs = list(range(len(host.dataset_facts(args.dataset).labels)))
    zero_shot_hparams = preparation.choose_hparams(args, {})
    shared = {name: hparams.get(name, value) for name, value in zero_shot_hparams.items()}
    if shared["contexts"] == "domains-without-target":  # nothing would be left
        shared["contexts"] = "domains"
    return _prepare(args, shared)


def _prepare(args: argparse.Namespace, hparams: dict[str, Any]) -> RehearsedJob:
    preparation = host.module("lib.preparation")
    with quiet():
        job = preparation.prepare(args, hparams, memory_limit=0, load=_load_data)
    workers = preparation.share_cores(args.workers, job.dataset, job_device.has_gpu())
    return RehearsedJob(job, workers)


def _load_data(args: argparse.Namespace, hparams: dict[str, Any]) -> tuple[Any, Any]:
    """The data set and its splits; those of the job before where both read the same.

    Listing a data set takes minutes on some network file systems, and a sweep has many algorithms.
    """
    global _last_data
    names = "dataset data_dir test_envs trial_seed holdout_fraction uda_holdout_fraction".split()
    key = {name: getattr(args, name) for name in names}
    key |= {name: hparams.get(name) for name in _DATA_HPARAMS}

    if _last_data is None or _last_data.key != key:
        dataset, environments = host.module("lib.preparation").load_environments(args, hparams)
        facts = dataset_facts.recall(hparams)
        _last_data = _LoadedData(key, dataset, environments, facts)
    loaded = _last_data
    dataset_facts.remember(hparams, type(loaded.dataset).__name__, *loaded.facts)
    return loaded.dataset, loaded.environments


def _arguments(job: Job, output: Path) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The arguments of the job's `train`, and those of them that no record has."""
    train_arguments = host.module("lib.train_arguments")
    words = Job({**job.args}, output).command[3:]  # after python -m domainbed.scripts.train
    args = train_arguments.build_parser().parse_args(words)
    flags = argparse.Namespace()
    for name in train_arguments.UNRECORDED_FLAGS:
        setattr(flags, name, vars(args).pop(name))
    return args, flags


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what jobs print on standard output is dropped: the rows say what matters."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
