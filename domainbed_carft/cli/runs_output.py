"""Run the commands on saved runs: call a function of `runs`, and print or write its result."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import RecordWarning, describe_warnings
from domainbed_carft.results import cells, collection, columns, formats, suites, tables
from domainbed_carft.results.collection import Collection as CollectedRuns
from domainbed_carft.results.evaluations import ECE_BINS
from domainbed_carft.runs import SOME_SKIPPED
from domainbed_carft.runs.evaluate import evaluate, evaluate_on_suite
from domainbed_carft.runs.export import export
from domainbed_carft.runs.predict import (
    ImagePrediction,
    find_images,
    get_most_likely,
    predict_files,
)
from domainbed_carft.runs.predictions import choose_device, worker_count
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import choose_weights, describe_choice, load_run
from domainbed_carft.runs.scores import Scores
from domainbed_carft.runs.soup import soup
from domainbed_carft.runs.suites import append_record
from domainbed_carft.runs.sweep import (
    SweepScores,
    is_sweep_folder,
    measure_sweep,
    measure_sweep_on_suite,
)
from domainbed_carft.runs.sweep_run import SweepOptions
from domainbed_carft.runs.wise_ft import format_alphas, sort_alphas, wise_ft
from domainbed_carft.suites import catalogue
from domainbed_carft.text import limit_lines, log, print_lines, printable, progress, quantity, table

IMAGES_OF_A_SOUP = (
    "Images: test transform for all, because a soup has neither the seed nor the step that "
    "augmentation needs."
)
# Columns of the table of a sweep, from `carft collect --columns`.
SWEEP_COLUMNS = (
    "accuracy",
    "in-domain-unaugmented",
    "per-class",
    "worst-class",
    "ece",
    "ece-scaled",
    "nll",
    "nll-scaled",
    "brier",
    "brier-scaled",
    "gained",
    "lost",
)
TOP = 3  # default number of classes and contexts per image


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Print or write the scores, and save scores on a suite; return the exit status."""
    if arguments.path is not None and is_sweep_folder(arguments.path):
        reason = f"is for a run, and {arguments.path} is a sweep's folder"
        _refuse_flags(arguments, "which clip", reason, "pass the folder of one of its jobs")
        files.require_output(arguments.output)
        if not arguments.suite:
            return _evaluate_sweep(arguments)
        _refuse_flags(arguments, "select original", "is for a sweep without --suite")
        return _evaluate_sweep_on_suite(arguments)

    has_run = arguments.path is not None
    has_clip = arguments.clip is not None
    if has_run == has_clip or (has_clip and not arguments.suite):
        raise CarftError("pass RUN [--suite NAME], or --clip NAME --suite NAME")
    _refuse_flags(arguments, "select jobs original", "is for a sweep's folder")
    if has_clip:
        _refuse_flags(arguments, "which", "is for a run's folder")
    return _evaluate_weights(arguments)


def _refuse_flags(arguments: argparse.Namespace, names: str, reason: str, hint: str = "") -> None:
    """Raise CarftError if one of these flags was given, which would have no effect."""
    for name in names.split():
        if getattr(arguments, name) is not None:
            hints = " or ".join(filter(None, [hint, "omit the flag"]))
            raise CarftError(f"--{name} {reason}; {hints}")


def _get_loading(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("device", "batch_size", "workers", "data_dir")
    return {name: getattr(arguments, name) for name in names}


def _evaluate_weights(arguments: argparse.Namespace) -> int:
    """Evaluate a run on its splits, or a run or CLIP checkpoint on a suite; return the status."""
    file = choose_weights(arguments.path, arguments.which) if arguments.path else None
    files.require_output(arguments.output, (file,) if file else ())
    # Notes on a CLIP model must not mix with the result on standard output.
    with contextlib.redirect_stdout(sys.stderr):
        if file and not arguments.suite:
            scores = evaluate(file, **_get_loading(arguments))
        else:
            scores = evaluate_on_suite(
                arguments.suite, file, clip=arguments.clip, **_get_loading(arguments)
            )

    choice = describe_choice(arguments.path, arguments.which, file) if file else ""
    _print_result(arguments, _as_json(scores), f"{choice}\n{scores_text(scores)}".lstrip("\n"))
    on_suite = scores if arguments.suite else scores.test_set
    if file and on_suite and on_suite.sets:
        append_record(file, on_suite)
    return SOME_SKIPPED if scores.has_unread_sets else 0


def _print_result(arguments: argparse.Namespace, as_json: str, text: str) -> None:
    """Print a result or write it to ``--output``, as JSON if ``--json`` is given."""
    with files.open_output(arguments.output) as out:
        out.write(as_json if arguments.json else text)


def _as_json(scores: Scores | SweepScores) -> str:
    return json.dumps(dataclasses.asdict(scores), indent=1) + "\n"


def _get_sweep_options(arguments: argparse.Namespace) -> SweepOptions:
    return SweepOptions(original=arguments.original, **_get_loading(arguments))


def _sweep_status(problems: Collection[object], has_metrics: bool) -> int:
    """Return the exit status: 0 without problems, 3 if some runs have metrics, otherwise 1."""
    if not problems:
        return 0
    return SOME_SKIPPED if has_metrics else 1


def _evaluate_sweep(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep, and print or write the metrics; return the exit status."""
    collected = collection.gather([arguments.path], arguments.select)
    scores = measure_sweep(collected, _get_sweep_options(arguments), arguments.jobs)
    text = sweep_text(scores, collected, str(arguments.path))
    _print_result(arguments, _as_json(scores), text)
    problems = [run.problem for run in scores.runs if run.problem]
    return _sweep_status(problems, any(run.metrics for run in scores.runs))


def _evaluate_sweep_on_suite(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep on a suite, and print or write the suite's table; return the status."""
    groups = collection.gather([arguments.path]).groups
    options = _get_sweep_options(arguments)
    outcomes = measure_sweep_on_suite(groups, arguments.suite, options, arguments.jobs)

    warnings: list[RecordWarning] = []
    suite_tables = [
        table
        for group in groups
        for table in suites.build(group, warnings)
        if table.suite == arguments.suite
    ]
    entries = [table.as_dict() for table in suite_tables]
    _print_result(
        arguments,
        formats.as_json({"caption": [suites.caption()], "suites": entries}),
        formats.as_text([table.grid() for table in suite_tables], [suites.caption()]),
    )
    measured = list(outcomes.values()).count(True)
    log(f"evaluate: {quantity(measured, 'run')} measured on {arguments.suite}")
    print_lines(*describe_warnings(warnings), stream=sys.stderr)
    problems = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    return _sweep_status(problems, has_metrics=bool(suite_tables))


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
    return prediction_line(prediction, top)


def wise_ft_command(arguments: argparse.Namespace) -> int:
    """Write results and weights, and print the accuracies; return the exit status."""
    alphas = sort_alphas(arguments.alphas)
    saved_alphas = _parse_saved_alphas(arguments.save, alphas)
    run = load_run(arguments.path, arguments.which, arguments.device)
    scores = wise_ft(
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
    print(wise_ft_text(scores))
    for part in scores.values():
        if part.suite:
            append_record(run.path, part)

    folder = printable(str(arguments.output))
    if saved_alphas:
        print(f"Results and weights of {quantity(len(saved_alphas), 'alpha')}: {folder}")
    else:
        print(f"Results: {folder}; to save weights, add --save all or some of --alphas")
    return SOME_SKIPPED if any(part.has_unread_sets for part in scores.values()) else 0


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
    soups = soup(
        runs,
        suite=arguments.suite,
        data_dir=arguments.data_dir,
        device=device,
        output=arguments.output,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )

    print(f"{printable(str(soups['uniform'].dataset))}: soups of {quantity(len(runs), 'run')}")
    print(soups_text(soups))
    print(f"Results and weights: {printable(str(arguments.output))}")
    return SOME_SKIPPED if any(scores.has_unread_sets for scores in soups.values()) else 0


def export_command(arguments: argparse.Namespace) -> None:
    """Write the export, and print its path."""
    run = load_run(arguments.path, arguments.which, "cpu")
    exported = export(
        run,
        arguments.output,
        format=arguments.format,
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


def percent(share: float | None) -> str:
    """Return a share in [0, 1] in percent, or a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def scores_text(scores: Scores) -> str:
    """Return a table by split and by class, or by test set, with means, notes and problems."""
    suite = catalogue.get(scores.suite) if scores.suite else None
    subject = f"the suite {suite.name}" if suite else benchmarks.dataset_title(str(scores.dataset))
    lines = [printable(f"{scores.title} on {subject}{_weights_remark(scores)}")]
    if scores.weights:
        lines.append(printable(scores.run))
    if scores.soup:
        lines.append(IMAGES_OF_A_SOUP)

    published = {} if suite is None else suite.published.get(scores.run, {})
    lines += ["", _table_by_set(scores, published), ""]
    if suite:
        for key, mean_title in suite.mean_titles.items():
            lines.append(f"{mean_title}: {percent(scores.means[key])}")
        lines += _problem_lines(scores)
        lines.append("Intervals are Wilson's.")
    if suite and published:
        lines.append(f"Published: {suite.source}.")
    lines.append(
        f"ECE: expected calibration error over {ECE_BINS} equal-width bins of the top probability "
        "(Guo et al. 2017)."
    )
    if not suite:
        heading = "Accuracy (%) by class (confusion matrices: --json)"
        lines += ["", heading, _table_by_class(scores)]
    if scores.test_set and scores.test_set.sets:
        lines += ["", scores_text(scores.test_set).removesuffix("\n")]
    elif scores.test_set:
        lines += ["", *_problem_lines(scores.test_set)]
    return "\n".join([*lines, ""])


def _weights_remark(scores: Scores) -> str:
    """Return the step of a run's weights (not of a soup's), and their alpha if they have one."""
    remark = ""
    if scores.weights and not scores.soup:
        step = "the last step" if scores.step is None else f"step {scores.step}"
        remark = f", weights of {step}"
    if scores.wise_ft_alpha is not None:
        remark += f", WiSE-FT alpha {scores.wise_ft_alpha:g}"
    return remark


def _table_by_set(scores: Scores, published: Mapping[str, float]) -> str:
    rows = []
    for name, part in scores.sets.items():
        environment = "" if scores.suite else part.environment
        low, high = map(percent, part.interval or (None, None))
        rows.append(
            [
                name if part.is_complete else f"{name} (incomplete)",
                f"{environment} (test)" if environment and part.is_target else environment,
                f"{part.images:,}",
                percent(part.accuracy),
                f"{low} to {high}" if part.interval else "",
                percent(part.ece),
                percent(part.mean_per_class),
                f"{published.get(name, '-')}",
            ]
        )
    head = [
        "test set" if scores.suite else "split",
        "environment",
        "images",
        "accuracy (%)",
        "95% interval",
        "ECE (%)",
        "mean per class (%)",
        "published (%)",
    ]
    return table(head, rows)


def _table_by_class(scores: Scores) -> str:
    accuracies_of_splits = [split.class_accuracies for split in scores.sets.values()]
    rows = [
        [name, *map(percent, accuracies)]
        for name, *accuracies in zip(scores.classes, *accuracies_of_splits)
    ]
    return table(["class", *scores.sets], rows)


def suite_rows(head: str, scores_by_name: Mapping[str, Scores]) -> str:
    """Return the accuracies of several models on one suite, and the missing sets.

    ``head`` is the header of the column of the models' names.
    """
    (first, *_) = scores_by_name.values()
    mean_titles = catalogue.get(str(first.suite)).mean_titles
    set_titles = [
        name if test_set.is_complete else f"{name}*" for name, test_set in first.sets.items()
    ]

    rows = []
    for name, scores in scores_by_name.items():
        accuracies = [percent(test_set.accuracy) for test_set in scores.sets.values()]
        means = [percent(scores.means[key]) for key in mean_titles]
        rows.append([name, *accuracies, *means])
    head_row = [head, *set_titles, *mean_titles.values()]
    return "\n".join([table(head_row, rows), *_problem_lines(first)])


def _problem_lines(scores: Scores) -> list[str]:
    if not scores.problems:
        return []
    lines = ["Means are shown only if all sets are complete. Missing or incomplete:"]
    for name, sentences in scores.problems.items():
        lines.append(printable(f"  {name}: {'; '.join(sentences)}"))
    return lines


def wise_ft_text(scores_by_alpha: Mapping[float, Scores]) -> str:
    """Return a table with the accuracies of each alpha."""
    (first, *_) = scores_by_alpha.values()
    title = f"{first.title} on {benchmarks.dataset_title(str(first.dataset))}"
    lines = [f"{printable(title)}: alpha 0 is the original CLIP model, alpha 1 the run"]
    if first.suite:
        lines.append(suite_rows("alpha", {f"{a:g}": part for a, part in scores_by_alpha.items()}))
        return "\n".join(lines)

    rows = [
        [f"{alpha:g}", percent(scores.in_domain), percent(scores.out_of_domain)]
        for alpha, scores in scores_by_alpha.items()
    ]
    lines.append(table(["alpha", "in-domain (%)", "out-of-domain (%)"], rows))
    if first.soup:
        lines.append(IMAGES_OF_A_SOUP)
    return "\n".join(lines)


def soups_text(soups: Mapping[str, Scores]) -> str:
    """Return a table with the accuracies of both soups and the validation of the runs."""
    descriptions = [scores.soup or {} for scores in soups.values()]
    rows = [
        [
            soup["kind"],
            str(len(soup["members"])),
            percent(soup["in_domain"]),
            percent(soup["out_of_domain"]),
        ]
        for soup in descriptions
    ]
    for member in descriptions[0]["members"]:
        rows.append([member["run"], "", percent(member["validation"]), ""])
    head = ["soup or run", "runs", "in-domain (%)", "out-of-domain (%)"]
    lines = [table(head, rows), IMAGES_OF_A_SOUP]
    if any(scores.suite for scores in soups.values()):
        lines.append(suite_rows("soup", soups))
    return "\n".join(lines)


def prediction_line(prediction: ImagePrediction, top: int | None) -> str:
    """Return the most likely classes and contexts of an image, or "" if it was skipped."""
    if prediction.error:
        return ""

    classes = _format_probabilities(get_most_likely(prediction.classes, top or TOP))
    contexts = _format_probabilities(get_most_likely(prediction.contexts, top or TOP))
    return f"{printable(prediction.path)}: {printable(f'{classes} | {contexts}')}\n"


def _format_probabilities(probabilities: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in probabilities.items())


def sweep_text(scores: SweepScores, collected: CollectedRuns, folder: str) -> str:
    """Return a table for each dataset and selection method, with explanations and problems."""
    measured = quantity(scores.measured, "run")
    heading = f"{folder}: {measured} evaluated, {scores.current:,} were evaluated before"
    shown_tables = tables.build_by_environment(collected, SWEEP_COLUMNS)
    captions = [
        "Means over the trials. With errors, and in other formats: carft collect "
        f"{shlex.quote(folder)} --columns {columns.EVALUATED}",
        *columns.explanations(
            column for shown_table in shown_tables for column in shown_table.printed
        ),
    ]
    grids = [shown_table.grid(means_only=True) for shown_table in shown_tables]
    lines = [printable(heading), "", formats.as_text(grids, captions).removesuffix("\n")]

    problems = {(run.folder, run.step): run.problem for run in scores.runs if run.problem}
    if problems:
        lines += ["", f"{cells.NO_VALUE}: the metrics are incomplete."]
        problem_lines = [
            printable(f"- {folder}, step {step}: {problem}")
            for (folder, step), problem in problems.items()
        ]
        lines += limit_lines(problem_lines)
    return "\n".join([*lines, ""])


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "evaluate": evaluate_command,
    "predict": predict_command,
    "wise-ft": wise_ft_command,
    "soup": soup_command,
    "export": export_command,
}
