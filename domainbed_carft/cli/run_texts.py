"""Tables and lines that the commands on saved runs print, without terminal escapes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from domainbed_carft.data import benchmarks
from domainbed_carft.results import cells, columns, formats, tables
from domainbed_carft.results.evaluations import ECE_BINS
from domainbed_carft.runs.evaluate import Evaluation
from domainbed_carft.runs.predict import ImagePrediction, get_most_likely
from domainbed_carft.runs.soup import Soups
from domainbed_carft.runs.suites import SuiteEvaluation, SuiteScores
from domainbed_carft.runs.sweep import SweepEvaluation
from domainbed_carft.runs.wise_ft import WiseFT
from domainbed_carft.suites import catalogue
from domainbed_carft.text import limit_lines, printable, quantity, table

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


def percent(share: float | None) -> str:
    """Return a share in [0, 1] in percent, or a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def evaluation_text(evaluation: Evaluation) -> str:
    """Return a table by split and a table by class; for a task, also its test set's table."""
    dataset = benchmarks.dataset_title(evaluation.dataset)
    lines = [printable(f"{evaluation.title} on {dataset}{_weights_remark(evaluation)}")]
    lines.append(printable(evaluation.run))
    if evaluation.soup:
        lines.append(IMAGES_OF_A_SOUP)

    lines += [
        "",
        _table_by_split(evaluation),
        "",
        f"ECE: expected calibration error over {ECE_BINS} equal-width bins of the top probability "
        "(Guo et al. 2017).",
        "",
        "Accuracy (%) by class (confusion matrices: --json)",
        _table_by_class(evaluation),
    ]
    if evaluation.test_set:
        lines += ["", suite_text(evaluation.test_set).removesuffix("\n")]
    elif evaluation.test_set_error:
        lines += ["", printable(str(evaluation.test_set_error))]
    return "\n".join([*lines, ""])


def _weights_remark(evaluation: Evaluation) -> str:
    """Return the step of the weights (not of a soup's), and their alpha if they have one."""
    remark = ""
    if not evaluation.soup:
        step = "the last step" if evaluation.step is None else f"step {evaluation.step}"
        remark = f", weights of {step}"
    if evaluation.wise_ft_alpha is not None:
        remark += f", WiSE-FT alpha {evaluation.wise_ft_alpha:g}"
    return remark


def _table_by_split(evaluation: Evaluation) -> str:
    rows = []
    for split in evaluation.splits:
        environment = f"{split.environment} (test)" if split.is_target else split.environment
        metrics = split.figures
        rows.append(
            [
                split.name,
                environment,
                str(split.images),
                percent(metrics.accuracy if metrics else None),
                percent(metrics.calibration.ece if metrics else None),
            ]
        )
    return table(["split", "environment", "images", "accuracy (%)", "ECE (%)"], rows)


def _table_by_class(evaluation: Evaluation) -> str:
    accuracies_of_splits = [split.class_accuracies() for split in evaluation.splits]
    rows = [
        [name, *map(percent, accuracies)]
        for name, *accuracies in zip(evaluation.classes, *accuracies_of_splits)
    ]
    return table(["class", *(split.name for split in evaluation.splits)], rows)


def suite_text(evaluation: SuiteEvaluation) -> str:
    """Return a table of the test sets, the means, and the missing sets."""
    scores = evaluation.scores
    suite = catalogue.get(scores.suite)
    clip = evaluation.model.get("clip", "")
    title = clip or f"{evaluation.model['title']} ({evaluation.model['run']})"
    published = suite.published.get(clip, {})

    lines = [
        printable(f"{title} on the suite {suite.name}"),
        "",
        _suite_table(scores, published),
        "",
    ]
    for key, mean_title in suite.mean_titles.items():
        lines.append(f"{mean_title}: {percent(scores.means[key])}")
    lines += _problem_lines(scores)
    lines.append(f"Intervals are Wilson's; ECE has {ECE_BINS} bins.")
    if published:
        lines.append(f"Published: {suite.source}.")
    return "\n".join([*lines, ""])


def _suite_table(scores: SuiteScores, published: Mapping[str, float]) -> str:
    rows = []
    for name, set_scores in scores.sets.items():
        low, high = map(percent, set_scores.interval)
        rows.append(
            [
                name if set_scores.is_complete else f"{name} (incomplete)",
                f"{set_scores.images:,}",
                percent(set_scores.accuracy),
                f"{low} to {high}",
                percent(set_scores.ece),
                percent(set_scores.mean_per_class),
                f"{published.get(name, '-')}",
            ]
        )
    head = [
        "test set",
        "images",
        "accuracy (%)",
        "95% interval",
        "ECE (%)",
        "mean per class (%)",
        "published (%)",
    ]
    return table(head, rows)


def suite_rows(head: str, scores_by_name: Mapping[str, SuiteScores]) -> str:
    """Return the accuracies of several models on one suite, and the missing sets.

    ``head`` is the header of the column of the models' names.
    """
    (first, *_) = scores_by_name.values()
    mean_titles = catalogue.get(first.suite).mean_titles
    set_titles = [
        name if set_scores.is_complete else f"{name}*" for name, set_scores in first.sets.items()
    ]

    rows = []
    for name, scores in scores_by_name.items():
        accuracies = [percent(set_scores.accuracy) for set_scores in scores.sets.values()]
        means = [percent(scores.means[key]) for key in mean_titles]
        rows.append([name, *accuracies, *means])
    head_row = [head, *set_titles, *mean_titles.values()]
    return "\n".join([table(head_row, rows), *_problem_lines(first)])


def _problem_lines(scores: SuiteScores) -> list[str]:
    if not scores.problems:
        return []
    lines = ["Means are shown only if all sets are complete. Missing or incomplete:"]
    for name, sentences in scores.problems.items():
        lines.append(printable(f"  {name}: {'; '.join(sentences)}"))
    return lines


def wise_ft_text(result: WiseFT, is_soup: bool) -> str:
    """Return a table with the accuracies of each alpha."""
    lines = [f"{printable(result.title)}: alpha 0 is the original CLIP model, alpha 1 the run"]
    if result.suite_evaluations:
        scores_by_alpha = {
            f"{scores.alpha:g}": scores.suite for scores in result.alphas if scores.suite
        }
        lines.append(suite_rows("alpha", scores_by_alpha))
        return "\n".join(lines)

    rows = [
        [f"{scores.alpha:g}", percent(scores.in_domain), percent(scores.out_of_domain)]
        for scores in result.alphas
    ]
    lines.append(table(["alpha", "in-domain (%)", "out-of-domain (%)"], rows))
    if is_soup:
        lines.append(IMAGES_OF_A_SOUP)
    return "\n".join(lines)


def soups_text(soups: Soups) -> str:
    """Return a table with the accuracies of both soups and the validation of the runs."""
    rows = []
    for soup in (soups.uniform, soups.greedy):
        accuracies = soup.accuracies
        rows.append(
            [
                soup.kind,
                str(len(soup.members)),
                percent(accuracies.in_domain),
                percent(accuracies.out_of_domain),
            ]
        )
    for member in soups.uniform.members:
        rows.append([str(member.run.path), "", percent(member.validation), ""])
    head = ["soup or run", "runs", "in-domain (%)", "out-of-domain (%)"]
    lines = [table(head, rows), IMAGES_OF_A_SOUP]

    uniform = soups.uniform.suite
    greedy = soups.greedy.suite
    if uniform and greedy:
        lines.append(suite_rows("soup", {"uniform": uniform, "greedy": greedy}))
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


def sweep_text(evaluation: SweepEvaluation) -> str:
    """Return a table for each dataset and selection method, with explanations and problems."""
    measured = quantity(evaluation.measured, "run")
    heading = (
        f"{evaluation.folder}: {measured} evaluated, {evaluation.current:,} were evaluated before"
    )
    shown_tables = tables.build_by_environment(evaluation.collection, SWEEP_COLUMNS)
    captions = [
        "Means over the trials. With errors, and in other formats: carft collect "
        f"{shlex.quote(str(evaluation.folder))} --columns {columns.EVALUATED}",
        *columns.explanations(
            column for shown_table in shown_tables for column in shown_table.printed
        ),
    ]
    grids = [shown_table.grid(means_only=True) for shown_table in shown_tables]
    lines = [printable(heading), "", formats.as_text(grids, captions).removesuffix("\n")]

    if evaluation.problems:
        lines += ["", f"{cells.NO_VALUE}: the metrics are incomplete."]
        problems = [
            printable(f"- {folder}, step {step}: {problem}")
            for (folder, step), problem in evaluation.problems.items()
        ]
        lines += limit_lines(problems)
    return "\n".join([*lines, ""])
