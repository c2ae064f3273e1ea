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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.escaping import print_lines
from domainbed_carft.machine.devices import choose_device
from domainbed_carft.progress_bar import log, progress
from domainbed_carft.results import cells, collection, columns, formats, suites, tables
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.metrics import ECE_BINS
from domainbed_carft.runs import SOME_SKIPPED
from domainbed_carft.runs.evaluate import evaluate, evaluate_on_suite
from domainbed_carft.runs.export import describe_unknown_transforms, export
from domainbed_carft.runs.predict import (
    ImagePrediction,
    find_images,
    get_most_likely,
    predict_files,
)
from domainbed_carft.runs.predictions import worker_count
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import describe_choice, load_run
from domainbed_carft.runs.scores import Scores
from domainbed_carft.runs.soup import soup
from domainbed_carft.runs.sweep import (
    SweepScores,
    measure_sweep,
    measure_sweep_on_suite,
)
from domainbed_carft.runs.sweep_run import SweepOptions
from domainbed_carft.runs.wise_ft import format_alphas, sort_alphas, wise_ft
from domainbed_carft.suites import catalogue
from domainbed_carft.text_tables import table
from domainbed_carft.wording import limit_lines, quantity

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


def evaluate_run_command(arguments: argparse.Namespace) -> int:
    """Evaluate a run on its splits or a suite, and save scores on a suite; return the status."""
    if arguments.path is None:
        raise CarftError("pass a run, a sweep's output folder, or --clip NAME --suite NAME")
    # Notes on a CLIP model must not mix with the result on standard output.
    with contextlib.redirect_stdout(sys.stderr):
        run = load_run(arguments.path, arguments.which, arguments.device)
        files.require_output(arguments.output, [run.path])
        if arguments.suite:
            scores = evaluate_on_suite(
                arguments.suite,
                run,
                original=arguments.original,
                record=True,
                **_get_loading(arguments),
            )
        else:
            scores = evaluate(run, record=True, **_get_loading(arguments))

    lines = [*_choice_lines(arguments, run), *scores_lines(scores)]
    _print_result(arguments, _as_json(scores), lines)
    return _get_status([scores])


def _get_status(scores: Sequence[Scores]) -> int:
    """Print why evaluations could not be saved, if so, and return the exit status."""
    reasons = dict.fromkeys(part.reason_unsaved for part in scores if part.reason_unsaved)
    for reason in reasons:
        log(f"the results were not saved next to the records: {reason}")
    if reasons:
        return 1
    return SOME_SKIPPED if any(part.has_unread_sets for part in scores) else 0


def evaluate_clip_command(arguments: argparse.Namespace) -> int:
    """Evaluate a CLIP checkpoint zero-shot on a suite; return the exit status."""
    if not arguments.suite:
        raise CarftError("--clip needs the test sets of a suite; add --suite NAME")
    files.require_output(arguments.output)
    with contextlib.redirect_stdout(sys.stderr):
        scores = evaluate_on_suite(
            arguments.suite,
            clip=arguments.clip,
            device=arguments.device,
            **_get_loading(arguments),
        )
    _print_result(arguments, _as_json(scores), scores_lines(scores))
    return SOME_SKIPPED if scores.has_unread_sets else 0


def evaluate_sweep_command(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep, and print or write the metrics; return the exit status."""
    files.require_output(arguments.output)
    collected = collection.gather([arguments.path], arguments.select)
    options = SweepOptions(arguments.device, original=arguments.original, **_get_loading(arguments))
    scores = measure_sweep(collected, options, arguments.jobs)
    lines = sweep_lines(scores, collected, str(arguments.path))
    _print_result(arguments, _as_json(scores), lines)
    if not any(run.problem for run in scores.runs):
        return 0
    return SOME_SKIPPED if any(run.metrics for run in scores.runs) else 1


def evaluate_sweep_on_suite_command(arguments: argparse.Namespace) -> int:
    """Evaluate a sweep on a suite, and print or write the suite's table; return the status."""
    files.require_output(arguments.output)
    groups = collection.gather([arguments.path]).groups
    options = SweepOptions(arguments.device, original=arguments.original, **_get_loading(arguments))
    ends = measure_sweep_on_suite(groups, arguments.suite, options, arguments.jobs)

    suite_tables = [
        table for group in groups for table in suites.build(group) if table.suite == arguments.suite
    ]
    captions = [suites.caption()]
    text = formats.as_text([table.grid() for table in suite_tables], captions)
    document = {"caption": captions, "suites": [table.as_dict() for table in suite_tables]}
    _print_result(arguments, formats.as_json(document), text.splitlines())
    measured = sum(end.was_measured for end in ends.values())
    log(f"evaluate: {quantity(measured, 'run')} measured on {arguments.suite}")
    has_problem = [bool(end.problem) for end in ends.values()]
    if not any(has_problem):
        return 0
    return 1 if all(has_problem) else SOME_SKIPPED


def _get_loading(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("batch_size", "workers", "data_dir")
    return {name: getattr(arguments, name) for name in names}


def _as_json(scores: Scores | SweepScores) -> str:
    return json.dumps(dataclasses.asdict(scores), indent=1) + "\n"


def _print_result(arguments: argparse.Namespace, as_json: str, lines: Sequence[str]) -> None:
    """Print a result or write it to ``--output``, as JSON if ``--json`` is given."""
    with files.open_output(arguments.output) as out:
        if arguments.json:
            out.write(as_json)
        else:
            print_lines(*lines, stream=out)


def predict_command(arguments: argparse.Namespace) -> int:
    """Print a line per image; return 3 if some images were skipped, 1 if all were."""
    paths = list(find_images(arguments.images))
    run = load_run(arguments.path, arguments.which, arguments.device)
    files.require_output(arguments.output, (run.path, *paths))
    print_lines(*_choice_lines(arguments, run, "carft: "), stream=sys.stderr)

    workers = worker_count(
        arguments.workers, has_many_images=any(map(os.path.isdir, arguments.images))
    )
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
                if prediction.error:
                    skipped += 1
                    reason = f"carft: {prediction.path} skipped: {prediction.error}"
                    with tqdm.external_write_mode(sys.stderr):  # clears the bar
                        print_lines(reason, stream=sys.stderr)
                if arguments.format == "jsonl":
                    out.write(json.dumps(prediction.as_dict(arguments.top)) + "\n")
                elif not prediction.error:
                    print_lines(prediction_line(prediction, arguments.top or TOP), stream=out)
            out.flush()

    if not skipped:
        return 0
    print(f"carft: skipped {skipped} of {len(paths)} images", file=sys.stderr)
    return SOME_SKIPPED if skipped < len(paths) else 1


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
        record=True,
    )

    print_lines(*_choice_lines(arguments, run), *wise_ft_lines(scores))
    if saved_alphas:
        sets_text = quantity(len(saved_alphas), "set of weights", "sets of weights")
        print_lines(f"Saved the results and {sets_text} in {arguments.output}")
    else:
        hint = "to save weights, add --save all or some of --alphas"
        print_lines(f"Results: {arguments.output}; {hint}")
    return _get_status(list(scores.values()))


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

    print_lines(
        f"{soups['uniform'].dataset}: soups of {quantity(len(runs), 'run')}",
        *soups_lines(soups),
        f"Results and weights: {arguments.output}",
    )
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

    dataset = benchmarks.dataset_title(run.args["dataset"])
    description = f"{run.title} on {dataset}, {run.path.name}"
    print_lines(
        *_choice_lines(arguments, run),
        f"{arguments.output}: {description} (see {exported.readme})",
        *describe_unknown_transforms(run),
    )


def _choice_lines(arguments: argparse.Namespace, run: Run, prefix: str = "") -> list[str]:
    choice = describe_choice(arguments.path, arguments.which, run.path)
    return [prefix + choice] if choice else []


def percent(share: float | None) -> str:
    """Return a share in [0, 1] in percent, or a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def scores_lines(scores: Scores) -> list[str]:
    """Return a table by split and by class, or by test set, with means, notes and problems."""
    suite = catalogue.get(scores.suite) if scores.suite else None
    subject = f"the suite {suite.name}" if suite else benchmarks.dataset_title(str(scores.dataset))
    lines = [f"{scores.title} on {subject}{_weights_remark(scores)}"]
    if scores.weights:
        lines.append(scores.run)
    if scores.soup:
        lines.append(IMAGES_OF_A_SOUP)

    published = {} if suite is None else suite.published.get(scores.run, {})
    lines += ["", *_table_by_set(scores, published), ""]
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
        lines += ["", heading, *_table_by_class(scores)]
    if scores.test_set and scores.test_set.sets:
        lines += ["", *scores_lines(scores.test_set)]
    elif scores.test_set:
        lines += ["", *_problem_lines(scores.test_set)]
    return lines


def _weights_remark(scores: Scores) -> str:
    """Return the step of a run's weights (not of a soup's), and their alpha if they have one."""
    remark = ""
    if scores.weights and not scores.soup:
        step = "the last step" if scores.step is None else f"step {scores.step}"
        remark = f", weights of {step}"
    if scores.wise_ft_alpha is not None:
        remark += f", WiSE-FT alpha {scores.wise_ft_alpha:g}"
    return remark


def _table_by_set(scores: Scores, published: Mapping[str, float]) -> list[str]:
    reported_per_class: set[str] = set()
    if scores.suite:
        sets = catalogue.get(scores.suite).sets
        reported_per_class = {part.name for part in sets if part.reports_mean_per_class}
    rows = []
    for name, part in scores.sets.items():
        images = part.image_set
        environment = "" if scores.suite else images.environment
        rows.append(
            [
                name if images.is_complete else f"{name} (incomplete)",
                f"{environment} (test)" if environment and images.is_target else environment,
                f"{images.images:,}",
                percent(part.accuracy),
                " to ".join(map(percent, part.interval)) if scores.suite else "",
                percent(part.calibration.ece),
                percent(part.mean_per_class) if name in reported_per_class else "-",
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
    return table(head, rows).splitlines()


def _table_by_class(scores: Scores) -> list[str]:
    accuracies_of_splits = [split.class_accuracies for split in scores.sets.values()]
    rows = [
        [name, *map(percent, accuracies)]
        for name, *accuracies in zip(scores.classes, *accuracies_of_splits)
    ]
    return table(["class", *scores.sets], rows).splitlines()


def suite_lines(head: str, scores_by_name: Mapping[str, Scores]) -> list[str]:
    """Return the accuracies of several models on one suite, and the missing sets.

    ``head`` is the header of the column of the models' names.
    """
    (first, *_) = scores_by_name.values()
    mean_titles = catalogue.get(str(first.suite)).mean_titles
    set_titles = [
        name if part.image_set.is_complete else f"{name}*" for name, part in first.sets.items()
    ]

    rows = []
    for name, scores in scores_by_name.items():
        accuracies = [percent(part.accuracy) for part in scores.sets.values()]
        means = [percent(scores.means[key]) for key in mean_titles]
        rows.append([name, *accuracies, *means])
    head_row = [head, *set_titles, *mean_titles.values()]
    return [*table(head_row, rows).splitlines(), *_problem_lines(first)]


def _problem_lines(scores: Scores) -> list[str]:
    if not scores.problems:
        return []
    lines = ["Means are shown only if all sets are complete. Missing or incomplete:"]
    for name, sentences in scores.problems.items():
        lines.append(f"  {name}: {'; '.join(sentences)}")
    return lines


def wise_ft_lines(scores_by_alpha: Mapping[float, Scores]) -> list[str]:
    """Return a table with the accuracies of each alpha."""
    (first, *_) = scores_by_alpha.values()
    title = f"{first.title} on {benchmarks.dataset_title(str(first.dataset))}"
    lines = [f"{title}: alpha 0 is the original CLIP model, alpha 1 the run"]
    if first.suite:
        by_name = {f"{alpha:g}": scores for alpha, scores in scores_by_alpha.items()}
        return lines + suite_lines("alpha", by_name)

    rows = [
        [f"{alpha:g}", percent(scores.in_domain), percent(scores.out_of_domain)]
        for alpha, scores in scores_by_alpha.items()
    ]
    lines += table(["alpha", "in-domain (%)", "out-of-domain (%)"], rows).splitlines()
    return lines + ([IMAGES_OF_A_SOUP] if first.soup else [])


def soups_lines(soups: Mapping[str, Scores]) -> list[str]:
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
    lines = [*table(head, rows).splitlines(), IMAGES_OF_A_SOUP]
    is_on_suite = any(scores.suite for scores in soups.values())
    return lines + (suite_lines("soup", soups) if is_on_suite else [])


def prediction_line(prediction: ImagePrediction, top: int) -> str:
    """Return the most likely classes and contexts of an image."""
    parts = []
    for probabilities in (prediction.classes, prediction.contexts):
        most_likely = get_most_likely(probabilities, top).items()
        parts.append(", ".join(f"{name} {100 * share:.1f}%" for name, share in most_likely))
    return f"{prediction.path}: {' | '.join(parts)}"


def sweep_lines(scores: SweepScores, collected: Collection, folder: str) -> list[str]:
    """Return a table for each dataset and selection rule, with explanations and problems."""
    measured = quantity(scores.measured, "run")
    heading = f"{folder}: {measured} evaluated, {scores.current:,} were evaluated before"
    shown_tables = tables.build_by_environment(collected, SWEEP_COLUMNS)
    captions = [
        "Means over the trials. With errors, and in other formats: carft collect "
        f"{shlex.quote(folder)} --columns {columns.EVALUATED}",
        *columns.explain_columns(
            column for shown_table in shown_tables for column in shown_table.printed
        ),
    ]
    grids = [shown_table.grid(means_only=True) for shown_table in shown_tables]
    lines = [heading, "", *formats.as_text(grids, captions).splitlines()]

    problems = {(run.folder, run.step): run.problem for run in scores.runs if run.problem}
    if problems:
        lines += ["", f"{cells.NO_VALUE}: the metrics are incomplete."]
        problem_lines = [
            f"- {folder}, step {step}: {problem}" for (folder, step), problem in problems.items()
        ]
        lines += limit_lines(problem_lines)
    return lines


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "evaluate-run": evaluate_run_command,
    "evaluate-run-on-suite": evaluate_run_command,
    "evaluate-clip": evaluate_clip_command,
    "evaluate-sweep": evaluate_sweep_command,
    "evaluate-sweep-on-suite": evaluate_sweep_on_suite_command,
    "predict": predict_command,
    "wise-ft": wise_ft_command,
    "soup": soup_command,
    "export": export_command,
}
