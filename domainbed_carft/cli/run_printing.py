"""Run the commands on saved runs: call a function of `runs`, and print or write its result."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.cli import run_texts
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordWarning, describe_warnings
from domainbed_carft.results import collection, formats, suites
from domainbed_carft.runs import SOME_SKIPPED
from domainbed_carft.runs.evaluate import Evaluation, evaluate
from domainbed_carft.runs.export import export
from domainbed_carft.runs.predict import ImagePrediction, find_images, predict_files
from domainbed_carft.runs.predictions import LoadingOptions, choose_device, worker_count
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import choose_weights, describe_choice, load_run
from domainbed_carft.runs.soup import soup
from domainbed_carft.runs.suites import SuiteEvaluation, append_record, evaluate_clip
from domainbed_carft.runs.sweep import (
    SweepOptions,
    evaluate_sweep,
    evaluate_sweep_on_suite,
    is_sweep_folder,
)
from domainbed_carft.runs.wise_ft import format_alphas, sort_alphas, wise_ft
from domainbed_carft.text import log, printable, progress, quantity


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print or write the scores, and save scores on a suite; return the exit status."""
    if arguments.path is not None and is_sweep_folder(arguments.path):
        return _evaluate_sweep(arguments)

    has_run = arguments.path is not None
    has_clip = arguments.clip is not None
    if has_run == has_clip or (has_clip and not arguments.suite):
        raise CarftError("pass RUN [--suite NAME], or --clip NAME --suite NAME")
    _refuse_flags(arguments, "select jobs original", "is for a sweep's folder")
    if not has_run:
        _refuse_flags(arguments, "which", "is for a run's folder")
        files.require_output(arguments.output)
        options = LoadingOptions(
            device=choose_device(arguments.device),
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            data_dir=arguments.data_dir,
        )
        # Notes on the CLIP model must not mix with the result on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            clip_evaluation = evaluate_clip(arguments.clip, arguments.suite, options)
        return _print_evaluation(arguments, clip_evaluation)

    file = choose_weights(arguments.path, arguments.which)
    files.require_output(arguments.output, (file,))
    evaluation = evaluate(
        load_run(file, device=arguments.device),
        suite=arguments.suite,
        data_dir=arguments.data_dir,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    assert isinstance(evaluation, (Evaluation, SuiteEvaluation))  # a run has no other kind
    choice = describe_choice(arguments.path, arguments.which, file)
    status = _print_evaluation(arguments, evaluation, choice)

    suite_evaluation = evaluation.test_set if isinstance(evaluation, Evaluation) else evaluation
    if suite_evaluation:
        append_record(file, suite_evaluation)
    return status


def _refuse_flags(arguments: argparse.Namespace, names: str, reason: str, hint: str = "") -> None:
    """Raise CarftError if one of these flags was given, which would have no effect."""
    for name in names.split():
        if getattr(arguments, name) is not None:
            hints = " or ".join(filter(None, [hint, "omit the flag"]))
            raise CarftError(f"--{name} {reason}; {hints}")


def _print_evaluation(
    arguments: argparse.Namespace, evaluation: Evaluation | SuiteEvaluation, choice: str = ""
) -> int:
    """Print or write the scores after a line on the chosen weights; return the exit status."""
    text = f"{choice}\n" if choice else ""
    if isinstance(evaluation, SuiteEvaluation):
        text += run_texts.suite_text(evaluation)
    else:
        text += run_texts.evaluation_text(evaluation)
    _print_result(arguments, _as_json(evaluation.as_dict()), text)
    return SOME_SKIPPED if evaluation.has_unread_sets else 0


def _print_result(arguments: argparse.Namespace, as_json: str, text: str) -> None:
    """Print a result or write it to ``--output``, as JSON if ``--json`` is given."""
    with files.open_output(arguments.output) as out:
        out.write(as_json if arguments.json else text)


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _sweep_status(problems: Collection[object], has_metrics: bool) -> int:
    """Return the exit status: 0 without problems, 3 if some runs have metrics, otherwise 1."""
    if not problems:
        return 0
    return SOME_SKIPPED if has_metrics else 1


def _evaluate_sweep(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep, and print or write the metrics; return the exit status."""
    reason = f"is for a run, and {arguments.path} is a sweep's folder"
    _refuse_flags(arguments, "which clip", reason, "pass the folder of one of its jobs")
    if arguments.suite:
        _refuse_flags(arguments, "select original", "is for a sweep without --suite")
    files.require_output(arguments.output)
    options = SweepOptions(
        device=arguments.device,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        data_dir=arguments.data_dir,
        original=arguments.original,
        jobs=arguments.jobs,
    )
    if arguments.suite:
        return _evaluate_sweep_on_suite(arguments, options)

    evaluation = evaluate_sweep(arguments.path, options, arguments.select)
    _print_result(arguments, _as_json(evaluation.as_dict()), run_texts.sweep_text(evaluation))
    return _sweep_status(evaluation.problems, any(run.figures for run in evaluation.runs))


def _evaluate_sweep_on_suite(arguments: argparse.Namespace, options: SweepOptions) -> int:
    """Evaluate a sweep on a suite, and print or write the suite's table; return the status."""
    outcome = evaluate_sweep_on_suite(arguments.path, arguments.suite, options)
    warnings: list[RecordWarning] = []
    tables = [
        table
        for group in collection.gather([arguments.path]).groups
        for table in suites.build(group, warnings)
        if table.suite == arguments.suite
    ]
    _print_result(
        arguments,
        formats.as_json(
            {"caption": [suites.caption()], "suites": [table.as_dict() for table in tables]}
        ),
        formats.as_text([table.grid() for table in tables], [suites.caption()]),
    )
    log(f"evaluate: {quantity(outcome.measured, 'run')} measured on {arguments.suite}")
    for line in describe_warnings(warnings):
        print(line, file=sys.stderr)
    for problem in outcome.problems:
        log(f"evaluate: not measured: {problem}")
    return _sweep_status(outcome.problems, has_metrics=bool(tables))


def predict_command(arguments: argparse.Namespace) -> int:
    """Print a line per image; return 3 if some images were skipped, 1 if all were."""
    paths = list(find_images(arguments.images))
    file = choose_weights(arguments.path, arguments.which)
    files.require_output(arguments.output, (file, *paths))

    workers = worker_count(
        arguments.workers, has_many_images=any(map(os.path.isdir, arguments.images))
    )
    run = load_run(file, device=arguments.device)
    choice = describe_choice(arguments.path, arguments.which, file)
    if choice:
        print(f"carft: {choice}", file=sys.stderr)

    batches = progress(
        predict_files(run, paths, arguments.batch_size, workers),
        total=math.ceil(len(paths) / arguments.batch_size),
        unit="batch",
        description="predicting",
        delay=2,
    )
    skipped = 0
    with files.open_output(arguments.output) as out:
        for batch in batches:
            for prediction in batch:
                skipped += bool(prediction.error)
                _print_skipped(prediction)
                out.write(_prediction_line(prediction, arguments.format, arguments.top))
            out.flush()

    if not skipped:
        return 0
    print(f"carft: skipped {skipped} of {len(paths)} images", file=sys.stderr)
    return SOME_SKIPPED if skipped < len(paths) else 1


def _print_skipped(prediction: ImagePrediction) -> None:
    if prediction.error:
        message = f"carft: {printable(prediction.path)} skipped: {printable(prediction.error)}"
        tqdm.write(message, sys.stderr)


def _prediction_line(prediction: ImagePrediction, line_format: str, top: int | None) -> str:
    if line_format == "jsonl":
        return json.dumps(prediction.as_dict(top)) + "\n"
    return run_texts.prediction_line(prediction, top)


def wise_ft_command(arguments: argparse.Namespace) -> int:
    """Write results and weights, and print the accuracies; return the exit status."""
    alphas = sort_alphas(arguments.alphas)
    saved_alphas = _parse_saved_alphas(arguments.save, alphas)
    run = load_run(arguments.path, arguments.which, arguments.device)
    result = wise_ft(
        run,
        alphas,
        suite=arguments.suite,
        data_dir=arguments.data_dir,
        original=arguments.original,
        output=arguments.output,
        save=saved_alphas,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )

    _print_choice(arguments, run)
    print(run_texts.wise_ft_text(result, is_soup=run.soup is not None))
    for evaluation in result.suite_evaluations:
        append_record(run.path, evaluation)

    folder = printable(str(arguments.output))
    if saved_alphas:
        print(f"Results and weights of {quantity(len(saved_alphas), 'alpha')}: {folder}")
    else:
        print(f"Results: {folder}; to save weights, add --save all or some of --alphas")
    return SOME_SKIPPED if result.has_unread_sets else 0


def _parse_saved_alphas(words: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """Parse the words of ``--save``. Raises CarftError for a number that is not in ``alphas``."""
    if list(words) == ["all"]:
        return list(alphas)
    if list(words) == ["none"]:
        return []
    try:
        return sorted({alphas[alphas.index(float(word))] for word in words})
    except ValueError:
        raise CarftError(
            f"--save {' '.join(words)}: expected all, none, or some of --alphas "
            f"{format_alphas(alphas)}"
        ) from None


def soup_command(arguments: argparse.Namespace) -> int:
    """Write results and weights, and print the accuracies; return the exit status."""
    # The runs stay on the CPU, because only their average is evaluated on the device.
    device = str(choose_device(arguments.device))
    runs = [load_run(path, arguments.which, "cpu") for path in arguments.paths]
    result = soup(
        runs,
        suite=arguments.suite,
        data_dir=arguments.data_dir,
        device=device,
        output=arguments.output,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )

    dataset = printable(str(result.arguments["dataset"]))
    print(f"{dataset}: soups of {quantity(len(runs), 'run')}")
    print(run_texts.soups_text(result))
    print(f"Results and weights: {printable(str(arguments.output))}")
    return SOME_SKIPPED if result.has_unread_sets else 0


def export_command(arguments: argparse.Namespace) -> None:
    """Write the export, and print its path."""
    run = load_run(arguments.path, arguments.which, "cpu")
    exported = export(
        run,
        arguments.output,
        original=arguments.original,
        half=arguments.half,
        force=arguments.force,
    )

    _print_choice(arguments, run)
    dataset = benchmarks.dataset_title(run.args["dataset"])
    description = f"{run.title} on {dataset}, {run.path.name}"
    print(printable(f"{arguments.output}: {description} (see {exported.readme})"))


def _print_choice(arguments: argparse.Namespace, run: Run) -> None:
    choice = describe_choice(arguments.path, arguments.which, run.path)
    if choice:
        print(choice)


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "evaluate": evaluate_command,
    "predict": predict_command,
    "wise-ft": wise_ft_command,
    "soup": soup_command,
    "export": export_command,
}
