"""Measure weights: a run on its splits, a run or a CLIP checkpoint on a suite, a sweep's runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from domainbed_carft.arguments import COUNT, TEXT, TEXTS, require_kind
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.machine.devices import choose_device
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.results import collection
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs.predictions import LoadingOptions, check_loading, make_predictor
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, as_run
from domainbed_carft.runs.scores import Scores, describe_run, measure_splits
from domainbed_carft.runs.splits import read_data
from domainbed_carft.runs.suite_files import measure_on_suite
from domainbed_carft.runs.suites import measure_clip
from domainbed_carft.runs.sweep import SweepScores, measure_sweep
from domainbed_carft.runs.sweep_run import SweepOptions
from domainbed_carft.suites import catalogue


def evaluate(
    run: AnyRun,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    record: bool = False,
) -> Scores:
    """Evaluate a run on the splits of its dataset and, if there is one, its official test set.

    Args:
        run: a `Run`, a job's folder, or a weights file.
        data_dir: the folder that contains the dataset's folder or, for your own data, the data
            folder itself. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the device of a `Run`, otherwise the GPU if
            there is one.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.
        record: save the evaluation on the official test set in the folder of the run's job, for the
            tables of `collect`, as ``carft evaluate`` does.

    Returns:
        The scores on each split that has images.

    Raises:
        CarftError: if the data is missing or differs from the run's, or an image of a split cannot
            be read.

    Examples:
        >>> scores = evaluate(job, workers=0)
        >>> list(scores.sets)[0], scores.sets["env0_in"].image_set.is_target
        ('env0_in', True)
        >>> 0 <= scores.sets["env0_in"].accuracy <= 1
        True
    """
    check_loading(batch_size, workers)
    loaded = as_run(run, device)
    options = LoadingOptions(loaded.device, batch_size, workers, as_text(data_dir))
    splits = read_data(loaded, options.data_dir).splits
    (scores,) = measure_splits(
        splits,
        make_predictor(loaded, options.device),
        options,
        [describe_run(loaded, options.data_dir)],
        with_confusion=True,
    )
    return dataclasses.replace(scores, test_set=_measure_official_test_set(loaded, options, record))


def _measure_official_test_set(run: Run, options: LoadingOptions, record: bool) -> Scores | None:
    """Return the scores on a task's test set, with a problem if there are none; None otherwise."""
    task = run.args["dataset"]
    if task not in TASKS or tuple(run.classes) != catalogue.get(task).classes:
        return None

    try:
        return measure_on_suite(task, run, options, record=record)
    except CarftError as error:  # the scores on the splits are still worth reporting
        return dataclasses.replace(
            describe_run(run),
            suite=task,
            problems={task: [str(error)]},
            unread=[task] if isinstance(error, UnreadableError) else [],
        )


def evaluate_on_suite(
    suite: str,
    run: AnyRun | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    *,
    clip: AnyPath | None = None,
    original: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    record: bool = False,
) -> Scores:
    """Evaluate a run, or a CLIP checkpoint zero-shot, on all test sets of a suite.

    Args:
        suite: name of a suite of test sets, such as "imagenet".
        run: a `Run`, a job's folder, or a weights file.
        data_dir: the folder that contains the test sets' folders. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the device of a `Run`, otherwise the GPU if
            there is one.
        clip: instead of a run, a CLIP model: a name of OpenAI such as "ViT-B/16",
            "open_clip:MODEL/TAG", or a weights file.
        original: the CLIP checkpoint that the run started from, unless it is a published one. With
            it, a recorded evaluation has the zero-shot predictions.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.
        record: save the evaluation in the folder of the run's job, for the tables of `collect`, as
            ``carft evaluate --suite`` does.

    Returns:
        The scores on each test set. Unreadable test sets are listed in ``unread``.

    Raises:
        CarftError: if the suite is unknown, no test set is found or can be read, the classes of
            the run differ from those of the suite, or not exactly one of run and CLIP is given.
    """
    require_kind(TEXT, suite=suite)
    check_loading(batch_size, workers)
    if (run is None) == (clip is None):
        raise CarftError("pass either run or clip")
    if run is None:
        options = LoadingOptions(choose_device(device), batch_size, workers, as_text(data_dir))
        return measure_clip(str(as_text(clip)), suite, options)

    loaded = as_run(run, device)
    options = LoadingOptions(loaded.device, batch_size, workers, as_text(data_dir))
    return measure_on_suite(suite, loaded, options, record=record, original=as_text(original))


def evaluate_sweep(
    folder: AnyPath,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    *,
    select: Sequence[str] | None = None,
    original: AnyPath | None = None,
    jobs: int | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> SweepScores:
    """Evaluate every run of a sweep that a selection rule chose, unless it is up to date.

    The metrics and the prediction of each image are saved in the folders of the runs, so that a
    further call continues an interrupted one.

    Args:
        folder: output folder of the sweep.
        data_dir: folder of the data. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the GPU if there is one.
        select: names of selection rules. Default: the rules shown in the tables.
        original: the CLIP checkpoint that the runs started from; required unless it is a published
            one.
        jobs: number of runs evaluated at a time, each in a process; 1 evaluates in this process.
            Default: one per GPU, or one per core without a GPU. A script that evaluates several at
            a time needs ``if __name__ == "__main__":``, as for all processes of multiprocessing.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.

    Returns:
        The metrics of the selected runs, or the reasons why there are none.

    Raises:
        CarftError: if there are no records, a selection rule is unknown, or ``original`` does not
            exist.
    """
    check_loading(batch_size, workers)
    require_kind(TEXTS, is_optional=True, select=select)
    require_kind(COUNT, is_optional=True, jobs=jobs)
    options = SweepOptions(device, batch_size, workers, as_text(data_dir), as_text(original))
    return measure_sweep(collection.gather([as_path(folder)], select), options, jobs)
