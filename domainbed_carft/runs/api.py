"""The Python API: trained runs in a notebook, as `carft` uses them on the command line.

`import domainbed_carft` has these names as attributes, which load this module when they are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import export as exporting
from domainbed_carft.runs import predict as predicting
from domainbed_carft.runs import soup as souping
from domainbed_carft.runs import wise_ft as mixing
from domainbed_carft.runs.alphas import DEFAULT_ALPHAS
from domainbed_carft.runs.default_weights import choose_weights
from domainbed_carft.runs.evaluate import Evaluation
from domainbed_carft.runs.evaluation_processes import SweepOptions
from domainbed_carft.runs.export import ExportedFiles
from domainbed_carft.runs.measuring import LoadingOptions, choose_device
from domainbed_carft.runs.predict import Picture, Predictions
from domainbed_carft.runs.saved import TrainedRun, open_run
from domainbed_carft.runs.soup import Soups
from domainbed_carft.runs.suite_evaluation import evaluate_on_suite
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.runs.sweep_evaluation import (
    SweepEvaluation,
    evaluate_sweep,
    is_sweep_folder,
)
from domainbed_carft.runs.wise_ft import WiseFT


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
AnyRun: TypeAlias = Run | str | os.PathLike[str]


def load_run(
    path: str | os.PathLike[str], which: str | None = None, device: str | None = None
) -> Run:
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
    trained = open_run(choose_weights(Path(path), which))
    trained.algorithm.to(chosen_device)
    return Run(trained)


def evaluate(
    run: AnyRun,
    suite: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    sweep_options: SweepOptions | None = None,
) -> Evaluation | SuiteEvaluation | SweepEvaluation:
    """Accuracy, calibration and confusion of a run on the splits of its data set, or on a suite.

    Of the output folder of a sweep: calibration, flips and alignment of every selected run, which
    are kept in the runs' folders. ``sweep_options`` then takes the place of the other options.

    ``suite``: the name of whole test sets, such as "imagenet", instead of the splits. ``data_dir``:
    the folder above the data set's, or your own data folder itself; by default the recorded one.
    ``device``: by default the run's, of a path the GPU if there is one. ``workers``: processes that
    load pictures; by default one per core where there are many pictures.

    Raises CarftError if the data is missing or not the run's, and for an unknown suite. Unlike
    ``carft evaluate --suite`` it writes no record.

    >>> evaluation = evaluate(job, workers=0)
    >>> evaluation.splits[0].name, evaluation.splits[0].is_target
    ('env0_in', True)
    >>> 0 <= evaluation.splits[0].counts.accuracy <= 1
    True
    >>> evaluation.as_dict()["splits"][0]["pictures"] == evaluation.splits[0].counts.count
    True
    """
    if not isinstance(run, Run) and is_sweep_folder(Path(run)):
        options_of_flags = SweepOptions(
            device=device, batch_size=batch_size, workers=workers, data_dir=data_dir
        )
        return evaluate_sweep(Path(run), sweep_options or options_of_flags)

    loaded = _loaded(run, device)
    options = _options(loaded, data_dir, batch_size, workers)
    if suite:
        return evaluate_on_suite(suite, loaded.trained, options)
    return evaluating.evaluate(loaded.trained, options)


def wise_ft(
    run: AnyRun,
    alphas: Iterable[float] = DEFAULT_ALPHAS,
    *,
    suite: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    original: str | None = None,
    output: str | os.PathLike[str] | None = None,
    save: Sequence[float] = (),
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> WiseFT:
    """The accuracies at weights between the original CLIP (alpha 0) and a run (alpha 1).

    ``original``: the CLIP that the run started from, needed unless that is a published one.
    ``output``: a folder for the results, the curve, and the weights of the alphas in ``save``; by
    default nothing is written. The others as in `evaluate`. The run itself is left as it was.

    Raises CarftError unless the alphas are different numbers from 0 to 1 and ``save`` has some of
    them, if a file is in ``output`` already, for runs that no line connects to a CLIP, and as
    `evaluate`.

    >>> result = wise_ft(job, [0, 0.5, 1], workers=0)
    >>> [scores.alpha for scores in result.alphas]
    [0.0, 0.5, 1.0]
    >>> sorted(result.alphas[1].as_dict())
    ['alpha', 'in_domain', 'out_of_domain', 'splits']
    """
    loaded = _loaded(run, device)
    return mixing.wise_ft(
        loaded.trained,
        alphas,
        _options(loaded, data_dir, batch_size, workers),
        suite=suite,
        original=original,
        folder=Path(output) if output is not None else None,
        saved_alphas=save,
    )


def soup(
    runs: Sequence[AnyRun],
    *,
    suite: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    output: str | os.PathLike[str] | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Soups:
    """The means of several runs' weights: of all (uniform), and of those that help (greedy).

    ``output``: a folder for the results and the weights; by default nothing is written. The others
    as in `evaluate`.

    Raises CarftError unless there are two runs or more that share the initial CLIP, the prompts,
    and the division of the data; if a file is in ``output`` already; and as `evaluate`.

    >>> soups = soup([job, second_job], workers=0)
    >>> [len(soups.uniform.members), soups.greedy.kind]
    [2, 'greedy']
    >>> soups.greedy.accuracies.in_domain >= soups.uniform.members[0].validation
    True
    """
    loaded_runs = [_loaded(run, device) for run in runs]
    options = LoadingOptions(choose_device(device), batch_size, workers, data_dir)
    if loaded_runs and device is None:
        options = _options(loaded_runs[0], data_dir, batch_size, workers)
    return souping.soup(
        [run.trained for run in loaded_runs],
        options,
        suite=suite,
        folder=Path(output) if output is not None else None,
    )


def export(
    run: AnyRun,
    path: str | os.PathLike[str],
    *,
    original: str | None = None,
    half: bool = False,
    force: bool = False,
) -> ExportedFiles:
    """Write a run as a CLIP that clip and open_clip load, with class head and card; returns where.

    ``path``: a name that ends in .pt; of a run that started from open_clip:..., a folder.
    ``original``: the CLIP that the run started from, needed unless that is a published one.
    ``half``: in half precision, as OpenAI publishes its weights. ``force``: overwrite.

    Raises CarftError if a file is there already or cannot be written, and if the original is
    missing or not the run's.

    >>> files = export(job, folder / "clip.pt")
    >>> files.head.name, files.card.name
    ('clip.head.pt', 'clip.json')
    """
    return exporting.export(
        _loaded(run, "cpu" if not isinstance(run, Run) else None).trained,
        Path(path),
        original=original,
        half=half,
        force=force,
    )


def _loaded(run: AnyRun, device: str | None) -> Run:
    """The run, on ``device`` if that is given."""
    if not isinstance(run, Run):
        return load_run(run, device=device)
    if device is not None:
        run.trained.algorithm.to(choose_device(device))
    return run


def _options(
    run: Run, data_dir: str | None, batch_size: int, workers: int | None
) -> LoadingOptions:
    return LoadingOptions(run.device, batch_size, workers, data_dir)
