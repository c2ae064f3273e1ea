"""The commands on saved runs: each calls a function of `runs`, and prints or writes the result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.cli import run_texts, sweep_printing
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import SOME_SKIPPED, saved
from domainbed_carft.runs.alphas import choose_saved_alphas, sorted_alphas
from domainbed_carft.runs.default_weights import choose_weights, describe_choice
from domainbed_carft.runs.evaluate import Evaluation, evaluate
from domainbed_carft.runs.export import export
from domainbed_carft.runs.layer_shares import UNIFORM
from domainbed_carft.runs.measuring import LoadingOptions, choose_device
from domainbed_carft.runs.model_stock import model_stock
from domainbed_carft.runs.predict import (
    PicturePrediction,
    default_workers,
    find_pictures,
    predict_files,
)
from domainbed_carft.runs.retained import RetainedAbility, evaluate_retained
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.soup import soup
from domainbed_carft.runs.suite_evaluation import append_record, evaluate_clip, evaluate_on_suite
from domainbed_carft.runs.suite_scores import SuiteEvaluation
from domainbed_carft.runs.sweep_evaluation import is_sweep_folder
from domainbed_carft.runs.wise_ft import wise_ft
from domainbed_carft.text import printable, quantity


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print or write the scores, and keep those on a suite; 3 if a test set cannot be read."""
    if arguments.path is not None and is_sweep_folder(arguments.path):
        return sweep_printing.evaluate_sweep_command(arguments)

    has_run = arguments.path is not None
    if has_run == (arguments.clip is not None) or (arguments.clip and not arguments.suite):
        raise CarftError("give RUN [--suite NAME], or --clip NAME --suite NAME")
    if arguments.retained and (arguments.suite or not has_run):
        raise CarftError("--retained SUITE is of a run, and takes the place of --suite; give RUN")

    file = choose_weights(arguments.path, arguments.which) if has_run else None
    files.require_output(arguments.output, (file,))
    evaluation, text = _evaluation_and_text(arguments, file)
    if file:
        choice = describe_choice(arguments.path, arguments.which, file)
        text = f"{choice}\n{text}" if choice else text

    with files.stream(arguments.output) as out:
        out.write(json.dumps(evaluation.as_dict(), indent=1) + "\n" if arguments.json else text)
    if file:
        _append_record(file, evaluation)
    return SOME_SKIPPED if evaluation.has_unread_sets else 0


def _evaluation_and_text(
    arguments: argparse.Namespace, file: Path | None
) -> tuple[Evaluation | SuiteEvaluation | RetainedAbility, str]:
    """What was measured, of the weights in ``file`` or of a CLIP without a run; how it reads."""
    options = _loading_options(arguments, arguments.data_dir)
    if file is None:
        of_clip = evaluate_clip(arguments.clip, arguments.suite, options)
        return of_clip, run_texts.suite_text(of_clip)

    run = saved.open_run(file)
    if arguments.retained:
        retained = evaluate_retained(arguments.retained, run, options, arguments.original)
        return retained, run_texts.retained_text(retained)
    if arguments.suite:
        on_suite = evaluate_on_suite(arguments.suite, run, options)
        return on_suite, run_texts.suite_text(on_suite)

    evaluation = evaluate(run, options)
    return evaluation, run_texts.evaluation_text(evaluation)


def _append_record(file: Path, evaluation: Evaluation | SuiteEvaluation | RetainedAbility) -> None:
    """Keep the scores on a suite, if there are any, in the folder of the job."""
    on_suite = evaluation.test_set if isinstance(evaluation, Evaluation) else evaluation
    if isinstance(on_suite, SuiteEvaluation):
        append_record(file, on_suite)


def predict_command(arguments: argparse.Namespace) -> int:
    """Print a line per picture; returns 3 if some pictures were skipped, 1 if all were."""
    paths = list(find_pictures(arguments.pictures))
    file = choose_weights(arguments.path, arguments.which)
    files.require_output(arguments.output, (file, *paths))

    workers = default_workers(arguments.pictures, arguments.workers)
    options = _loading_options(arguments, workers=workers)
    run = saved.open_run(file)
    choice = describe_choice(arguments.path, arguments.which, file)
    if choice:
        print(f"carft: {choice}", file=sys.stderr)

    skipped = 0
    with files.stream(arguments.output) as out:
        for batch in predict_files(run, paths, options):
            for prediction in batch:
                skipped += bool(prediction.error)
                _print_skipped(prediction)
                out.write(_prediction_line(prediction, arguments.format, arguments.top))
            out.flush()

    if not skipped:
        return 0
    print(f"carft: skipped {skipped} of {len(paths)} pictures", file=sys.stderr)
    return SOME_SKIPPED if skipped < len(paths) else 1


def _print_skipped(prediction: PicturePrediction) -> None:
    if prediction.error:
        message = f"carft: {printable(prediction.path)} skipped: {printable(prediction.error)}"
        tqdm.write(message, sys.stderr)


def _prediction_line(prediction: PicturePrediction, line_format: str, top: int | None) -> str:
    if line_format == "jsonl":
        return json.dumps(prediction.as_dict(top)) + "\n"
    return run_texts.prediction_line(prediction, top)


def wise_ft_command(arguments: argparse.Namespace) -> int:
    """Write results and weights, and print the accuracies; 3 if a test set cannot be read."""
    alphas = sorted_alphas(arguments.alphas)
    saved_alphas = choose_saved_alphas(arguments.save, alphas)
    options = _loading_options(arguments, arguments.data_dir)
    run = saved.open_run(choose_weights(arguments.path, arguments.which))
    result = wise_ft(
        run,
        alphas,
        options,
        suite=arguments.suite,
        original=arguments.original,
        folder=arguments.output,
        saved_alphas=saved_alphas,
        layers=arguments.layers,
    )

    choice = describe_choice(arguments.path, arguments.which, run.path)
    if choice:
        print(choice)
    print(run_texts.wise_ft_text(result, is_soup=run.soup is not None))
    if arguments.layers == UNIFORM:  # in a record, an alpha is that of all layers
        for evaluation in result.suite_evaluations:
            append_record(run.path, evaluation)

    folder = printable(str(arguments.output))
    if saved_alphas:
        print(f"Results and weights of {quantity(len(saved_alphas), 'alpha')}: {folder}")
    else:
        print(f"Results: {folder}; for weights add --save all, or some of --alphas")
    return SOME_SKIPPED if result.has_unread_sets else 0


def soup_command(arguments: argparse.Namespace) -> int:
    """Write results and weights, and print the accuracies; 3 if a test set cannot be read."""
    options = _loading_options(arguments, arguments.data_dir)
    weights = [choose_weights(path, arguments.which) for path in arguments.paths]
    runs = [saved.open_run(file) for file in weights]
    if arguments.method == "model-stock":
        return _model_stock(arguments, runs, options)

    soups = soup(runs, options, suite=arguments.suite, folder=arguments.output)

    dataset = printable(str(soups.arguments["dataset"]))
    print(f"{dataset}: soups of {quantity(len(runs), 'run')}")
    print(run_texts.soups_text(soups))
    print(f"Results and weights: {printable(str(arguments.output))}")
    return SOME_SKIPPED if soups.has_unread_sets else 0


def _model_stock(
    arguments: argparse.Namespace, runs: Sequence[TrainedRun], options: LoadingOptions
) -> int:
    stock = model_stock(
        runs,
        options,
        original=arguments.original,
        suite=arguments.suite,
        folder=arguments.output,
    )
    dataset = printable(str(stock.arguments["dataset"]))
    print(f"{dataset}: Model Stock of {quantity(len(runs), 'run')}")
    print(run_texts.model_stock_text(stock))
    print(f"Results and weights: {printable(str(arguments.output))}")
    return SOME_SKIPPED if stock.has_unread_sets else 0


def export_command(arguments: argparse.Namespace) -> None:
    """Write the export, and print where it is."""
    run = saved.open_run(choose_weights(arguments.path, arguments.which))
    exported = export(
        run,
        arguments.output,
        original=arguments.original,
        half=arguments.half,
        force=arguments.force,
    )

    choice = describe_choice(arguments.path, arguments.which, run.path)
    if choice:
        print(choice)
    dataset = benchmarks.dataset_title(run.args["dataset"])
    description = f"{run.title} on {dataset}, {run.path.name}"
    print(printable(f"{arguments.output}: {description} (see {exported.readme})"))


def _loading_options(
    arguments: argparse.Namespace, data_dir: str | None = None, workers: int | None = None
) -> LoadingOptions:
    """The options by which pictures are loaded; ``workers``: instead of those of the arguments."""
    return LoadingOptions(
        device=choose_device(arguments.device),
        batch_size=arguments.batch_size,
        workers=arguments.workers if workers is None else workers,
        data_dir=data_dir,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "evaluate": evaluate_command,
    "predict": predict_command,
    "wise-ft": wise_ft_command,
    "soup": soup_command,
    "export": export_command,
}
