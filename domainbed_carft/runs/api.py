"""The Python API: trained runs in a notebook, as `carft` uses them on the command line.

`import domainbed_carft` has these names as attributes, which load this module when they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.runs import BATCH_SIZE
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import export as exporting
from domainbed_carft.runs import model_stock as stocking
from domainbed_carft.runs import soup as souping
from domainbed_carft.runs import wise_ft as mixing
from domainbed_carft.runs.alphas import DEFAULT_ALPHAS
from domainbed_carft.runs.evaluate import Evaluation
from domainbed_carft.runs.evaluation_processes import SweepOptions
from domainbed_carft.runs.export import ExportedFiles
from domainbed_carft.runs.layer_shares import UNIFORM
from domainbed_carft.runs.loaded_run import (
    AnyRun,
    Run,
    loaded_run,
    loaded_runs,
    options_for,
    options_of,
)
from domainbed_carft.runs.model_stock import ModelStock
from domainbed_carft.runs.soup import Soups
from domainbed_carft.runs.suite_evaluation import evaluate_on_suite
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.runs.sweep_evaluation import (
    SweepEvaluation,
    evaluate_sweep,
    is_sweep_folder,
)
from domainbed_carft.runs.wise_ft import WiseFT


def evaluate(
    run: AnyRun,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
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
    if not isinstance(run, Run) and is_sweep_folder(as_path(run)):
        options_of_flags = SweepOptions(
            device=device,
            batch_size=batch_size,
            workers=workers,
            data_dir=as_text(data_dir),
        )
        return evaluate_sweep(as_path(run), sweep_options or options_of_flags)

    loaded = loaded_run(run, device)
    options = options_for(loaded, data_dir, batch_size, workers)
    if suite:
        return evaluate_on_suite(suite, loaded.trained, options)
    return evaluating.evaluate(loaded.trained, options)


def wise_ft(
    run: AnyRun,
    alphas: Iterable[float] = DEFAULT_ALPHAS,
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    original: AnyPath | None = None,
    output: AnyPath | None = None,
    save: Sequence[float] = (),
    layers: str = UNIFORM,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> WiseFT:
    """The accuracies at weights between the original CLIP (alpha 0) and a run (alpha 1).

    ``original``: the CLIP that the run started from, needed unless that is a published one.
    ``output``: a folder for the results, the curve, and the weights of the alphas in ``save``; by
    default nothing is written. ``layers``: "uniform", or "linear" for shares that grow from alpha
    in the first block to 1 in the last, as in LiNeS. The others as in `evaluate`. The run itself is
    left as it was.

    Raises CarftError unless the alphas are different numbers from 0 to 1 and ``save`` has some of
    them, if a file is in ``output`` already, for runs that no line connects to a CLIP, and as
    `evaluate`.

    >>> result = wise_ft(job, [0, 0.5, 1], workers=0)
    >>> [scores.alpha for scores in result.alphas]
    [0.0, 0.5, 1.0]
    >>> sorted(result.alphas[1].as_dict())
    ['alpha', 'in_domain', 'out_of_domain', 'splits']
    """
    loaded = loaded_run(run, device)
    return mixing.wise_ft(
        loaded.trained,
        alphas,
        options_for(loaded, data_dir, batch_size, workers),
        suite=suite,
        original=as_text(original),
        folder=as_path(output) if output is not None else None,
        saved_alphas=save,
        layers=layers,
    )


def soup(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    output: AnyPath | None = None,
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
    opened_runs = loaded_runs(runs, device)
    return souping.soup(
        [run.trained for run in opened_runs],
        options_of(opened_runs, device, data_dir, batch_size, workers),
        suite=suite,
        folder=as_path(output) if output is not None else None,
    )


def model_stock(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    original: AnyPath | None = None,
    output: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> ModelStock:
    """Two or more runs and their original CLIP, combined by Model Stock (arXiv 2403.19522).

    ``original``: the CLIP that the runs started from, needed unless that is a published one.
    ``output``: a folder for the results and the weights; by default nothing is written. The others
    as in `evaluate`.

    Raises CarftError as `soup`, and if the original is missing or not the runs'.

    >>> stock = model_stock([job, second_job], workers=0)
    >>> all(0 <= ratio <= 1 for ratio in stock.ratios.values())
    True
    """
    opened_runs = loaded_runs(runs, device)
    return stocking.model_stock(
        [run.trained for run in opened_runs],
        options_of(opened_runs, device, data_dir, batch_size, workers),
        original=as_text(original),
        suite=suite,
        folder=as_path(output) if output is not None else None,
    )


def export(
    run: AnyRun,
    path: AnyPath,
    *,
    original: AnyPath | None = None,
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
        loaded_run(run, "cpu" if not isinstance(run, Run) else None).trained,
        as_path(path),
        original=as_text(original),
        half=half,
        force=force,
    )
