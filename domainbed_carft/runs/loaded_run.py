"""A trained run in a notebook: its words, its device, and predictions for pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from domainbed_carft.paths import AnyPath, as_list, as_path, as_text
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs import predict as predicting
from domainbed_carft.runs.default_weights import choose_weights
from domainbed_carft.runs.measuring import LoadingOptions, choose_device
from domainbed_carft.runs.predict import Picture, Predictions
from domainbed_carft.runs.saved import TrainedRun, open_run


@dataclass(frozen=True)
class Run:
    """A trained run, ready to predict; `load_run` makes it.

    ``trained``: everything that the weights file holds; its ``algorithm`` is a torch module.
    """

    trained: TrainedRun

    @property
    def path(self) -> Path:
        """The weights file."""
        return self.trained.path

    @property
    def classes(self) -> list[str]:
        """The names of the K classes, in label order."""
        return self.trained.classes

    @property
    def contexts(self) -> list[str]:
        """The M templates, such as "a sketch of a {}."."""
        return self.trained.contexts

    @property
    def hparams(self) -> Mapping[str, Any]:
        """The hyperparameters that it was trained with."""
        return self.trained.hparams

    @property
    def step(self) -> int | None:
        """After which the weights were saved; None for the last step, and for a soup."""
        return self.trained.step

    @property
    def device(self) -> torch.device:
        """Where the run predicts."""
        return self.trained.algorithm.context_weights.device

    def predict(
        self, pictures: Picture | Sequence[Picture], batch_size: int = BATCH_SIZE
    ) -> Predictions:
        """Class and context probabilities of one or several pictures.

        ``pictures``: paths, Pillow pictures, and uint8 tensors (3, H, W) or (N, 3, H, W) from 0 to
        255, which all go through the run's test transform. Floating-point tensors are taken as they
        are: transform them first, as `domainbed_carft.runs.predict.picture_transform` does.

        Raises CarftError for a picture that cannot be read, and if there is none.

        >>> predictions = load_run(job).predict([picture, picture])
        >>> predictions.class_probabilities.shape
        torch.Size([2, 2])
        >>> predictions.class_probabilities.sum(dim=1).round(decimals=6).tolist()
        [1.0, 1.0]
        >>> sorted(predictions.as_dict())
        ['class_probabilities', 'classes', 'context_probabilities', 'contexts']
        """
        return predicting.predict(self.trained, pictures, batch_size)


# A run that is loaded, or the folder of its job, or a weights file.
AnyRun: TypeAlias = Run | AnyPath


def load_run(path: AnyPath, which: str | None = None, device: str | None = None) -> Run:
    """The run in a job's folder or a weights file.

    ``which``: in a folder "last" for model.pkl or "best" for model_best.pkl; by default the weights
    that the tables are of, which is "best" if the job left environments out and has that file.
    ``device``: where to predict, such as "cpu" or "cuda:1"; by default the GPU if there is one.

    Nothing in the file is executed. Raises CarftError for a folder without the weights, a file that
    is not a run of one of our algorithms, weights that are not finite, and an unknown device.

    >>> run = load_run(job, device="cpu")
    >>> run.classes
    ['cat', 'wild dog']
    >>> len(run.contexts) > 1
    True
    """
    chosen_device = choose_device(device)
    trained = open_run(choose_weights(as_path(path), which))
    trained.algorithm.to(chosen_device)
    return Run(trained)


def loaded_run(run: AnyRun, device: str | None) -> Run:
    """The run, on ``device`` if that is given."""
    if not isinstance(run, Run):
        return load_run(run, device=device)
    if device is not None:
        run.trained.algorithm.to(choose_device(device))
    return run


def loaded_runs(runs: AnyRun | Iterable[AnyRun], device: str | None) -> list[Run]:
    """The runs, one or several, on ``device`` if that is given."""
    return [loaded_run(run, device) for run in as_list(runs)]


def options_of(
    runs: Sequence[Run],
    device: str | None,
    data_dir: AnyPath | None,
    batch_size: int,
    workers: int | None,
) -> LoadingOptions:
    """The options for several runs, which are on the first one's device unless one is given."""
    if runs and device is None:
        return options_for(runs[0], data_dir, batch_size, workers)
    return LoadingOptions(choose_device(device), batch_size, workers, as_text(data_dir))


def options_for(
    run: Run, data_dir: AnyPath | None, batch_size: int, workers: int | None
) -> LoadingOptions:
    return LoadingOptions(run.device, batch_size, workers, as_text(data_dir))
