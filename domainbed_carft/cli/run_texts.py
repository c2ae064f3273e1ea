"""What the commands on saved runs print for people: tables and lines, without terminal escapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from domainbed_carft.data import benchmarks
from domainbed_carft.results import selection
from domainbed_carft.results.evaluations import (
    ALIGNED_FROM,
    ECE_BINS,
    HIGHEST_ALIGNMENT,
    LOWEST_ALIGNMENT,
    SplitFigures,
)
from domainbed_carft.runs.evaluate import Evaluation
from domainbed_carft.runs.merge import ModelStock, Soups, WiseFT
from domainbed_carft.runs.predict import PicturePrediction, most_likely
from domainbed_carft.runs.suites import SuiteEvaluation, SuiteScores
from domainbed_carft.runs.sweep import EvaluatedRun, SweepEvaluation
from domainbed_carft.suites import catalogue
from domainbed_carft.text import limited, printable, quantity, table

PICTURES_OF_A_SOUP = (
    "Pictures: all through the test transform; a soup has no seed and no step to augment by."
)
TOP = 3  # classes and contexts of a picture, unless --top says otherwise


def percent(share: float | None) -> str:
    """A share of 1 as a number of percent; a dash for none."""
    return "-" if share is None else f"{100 * share:.1f}"


def evaluation_text(evaluation: Evaluation) -> str:
    """A table by split and one by class; for a task also that of its own test set."""
    dataset = benchmarks.dataset_title(evaluation.dataset)
    lines = [printable(f"{evaluation.title} on {dataset}{_weights_remark(evaluation)}")]
    lines.append(printable(evaluation.run))
    if evaluation.soup:
        lines.append(PICTURES_OF_A_SOUP)

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
    """Of which step the weights are, and their alpha; "" where neither is known of a soup."""
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
        figures = split.figures
        rows.append(
            [
                split.name,
                environment,
                str(split.pictures),
                percent(figures.accuracy if figures else None),
                percent(figures.calibration.ece if figures else None),
            ]
        )
    return table(["split", "environment", "pictures", "accuracy (%)", "ECE (%)"], rows)


def _table_by_class(evaluation: Evaluation) -> str:
    accuracies_of_splits = [split.class_accuracies() for split in evaluation.splits]
    rows = [
        [name, *map(percent, accuracies)]
        for name, *accuracies in zip(evaluation.classes, *accuracies_of_splits)
    ]
    return table(["class", *(split.name for split in evaluation.splits)], rows)


def suite_text(evaluation: SuiteEvaluation) -> str:
    """A table of the test sets, the means, and what is missing."""
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
                f"{set_scores.pictures:,}",
                percent(set_scores.accuracy),
                f"{low} to {high}",
                percent(set_scores.ece),
                percent(set_scores.mean_per_class),
                f"{published.get(name, '-')}",
            ]
        )
    head = [
        "test set",
        "pictures",
        "accuracy (%)",
        "95% interval",
        "ECE (%)",
        "mean per class (%)",
        "published (%)",
    ]
    return table(head, rows)


def suite_rows(head: str, scores_by_name: Mapping[str, SuiteScores]) -> str:
    """The accuracies of several models on one suite, a row each by its name, and what is missing.

    ``head``: of the column of names.
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
    lines = ["Means are shown only if every set is complete. Missing or incomplete:"]
    for name, sentences in scores.problems.items():
        lines.append(printable(f"  {name}: {'; '.join(sentences)}"))
    return lines


def wise_ft_text(result: WiseFT, is_soup: bool) -> str:
    """The accuracies of each alpha."""
    lines = [f"{printable(result.title)}: alpha 0 is the original CLIP, alpha 1 the run"]
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
        lines.append(PICTURES_OF_A_SOUP)
    return "\n".join(lines)


def soups_text(soups: Soups) -> str:
    """The accuracies of both soups and, in validation, of the runs."""
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
    lines = [table(head, rows), PICTURES_OF_A_SOUP]

    uniform = soups.uniform.suite
    greedy = soups.greedy.suite
    if uniform and greedy:
        lines.append(suite_rows("soup", {"uniform": uniform, "greedy": greedy}))
    return "\n".join(lines)


def model_stock_text(stock: ModelStock) -> str:
    """The accuracies of Model Stock, and the range of its ratios."""
    accuracies = stock.accuracies
    row = [percent(accuracies.in_domain), percent(accuracies.out_of_domain)]
    lines = [table(["in-domain (%)", "out-of-domain (%)"], [row])]
    if stock.suite:
        lines.append(suite_rows("soup", {"model-stock": stock.suite}))

    ratios = sorted(stock.ratios.values())
    if ratios:
        middle = ratios[len(ratios) // 2]
        lines.append(
            f"Ratios of {quantity(len(ratios), 'tensor')}: {ratios[0]:.2f} to {ratios[-1]:.2f}, "
            f"median {middle:.2f} (0 is the original CLIP, 1 the runs' mean)"
        )
    return "\n".join([*lines, PICTURES_OF_A_SOUP])


def prediction_line(prediction: PicturePrediction, top: int | None) -> str:
    """The most likely classes and contexts of a picture; "" for one that was skipped."""
    if prediction.error:
        return ""

    classes = _listed(most_likely(prediction.classes, top or TOP))
    contexts = _listed(most_likely(prediction.contexts, top or TOP))
    return f"{printable(prediction.path)}: {printable(f'{classes} | {contexts}')}\n"


def _listed(probabilities: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in probabilities.items())


def _scaled_ece(figures: SplitFigures) -> float | None:
    return figures.scaled.ece if figures.scaled else None


def _scaled_nll(figures: SplitFigures) -> float | None:
    return figures.scaled.nll if figures.scaled else None


def _scaled_brier(figures: SplitFigures) -> float | None:
    return figures.scaled.brier if figures.scaled else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# Head of a column, the figure of a run, how it is written.
_COLUMNS: Sequence[
    tuple[str, Callable[[SplitFigures], float | None], Callable[[float | None], str]]
] = (
    ("acc", lambda figures: figures.accuracy, percent),
    ("per class", lambda figures: figures.mean_per_class, percent),
    ("worst", lambda figures: figures.worst_class.accuracy, percent),
    ("ECE", lambda figures: figures.calibration.ece, percent),
    ("ECE/T", _scaled_ece, percent),
    ("NLL", lambda figures: figures.calibration.nll, _number),
    ("NLL/T", _scaled_nll, _number),
    ("Brier", lambda figures: figures.calibration.brier, _number),
    ("Brier/T", _scaled_brier, _number),
    ("gained", lambda figures: figures.gained, percent),
    ("lost", lambda figures: figures.lost, percent),
    ("aligned", lambda figures: figures.alignment.aligned, percent),
    ("unaligned", lambda figures: figures.alignment.unaligned, percent),
)


def sweep_text(evaluation: SweepEvaluation) -> str:
    """A table for each data set and selection method, what its columns mean, and the problems."""
    lines = [
        printable(
            f"{evaluation.folder}: {quantity(evaluation.measured, 'run')} evaluated, "
            f"{evaluation.current:,} were evaluated before"
        )
    ]
    for title, runs in itertools.groupby(evaluation.runs, _title):
        lines += ["", printable(title), _table(list(runs))]
    lines += ["", *_legend()]

    if evaluation.problems:
        lines += ["", "X: the figures are incomplete."]
        problems = [
            printable(f"- {folder}, step {step}: {problem}")
            for (folder, step), problem in evaluation.problems.items()
        ]
        lines += limited(problems)
    return "\n".join([*lines, ""])


def _title(run: EvaluatedRun) -> str:
    dataset = benchmarks.dataset_title(run.selected.dataset)
    parts = [dataset, selection.METHODS[run.method].title, run.setting]
    return "; ".join(filter(None, parts))


def _table(runs: Sequence[EvaluatedRun]) -> str:
    """A row for each algorithm and environment: means over the trials."""
    cells: dict[tuple[str, str], list[EvaluatedRun]] = {}
    for run in runs:
        cells.setdefault((run.selected.row, run.environment), []).append(run)

    rows = []
    for (algorithm, environment), trials in cells.items():
        figures = [run.on_target for run in trials if run.on_target]
        if len(figures) < len(trials):
            values = ["X" for _ in _COLUMNS]
        else:
            values = [
                write(_mean(figure(part) for part in figures)) for _, figure, write in _COLUMNS
            ]
        rows.append([algorithm, environment, str(len(trials)), *values])
    return table(["algorithm", "environment", "trials", *(head for head, _, _ in _COLUMNS)], rows)


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean over the trials; None if one of them has no value."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _legend() -> list[str]:
    return [
        "acc, per class, worst: accuracy (%), its mean over classes, and that of the worst class.",
        f"ECE (%) over {ECE_BINS} bins, NLL in nats, Brier score; /T: at the temperature fitted on "
        "the out-splits of the training environments.",
        "gained, lost (%): pictures that only the run, or only zero-shot CLIP predicts correctly.",
        f"aligned, unaligned: accuracy (%) of pictures with an alignment score from "
        f"{ALIGNED_FROM:g} to {HIGHEST_ALIGNMENT:g}, and from {LOWEST_ALIGNMENT:g} to "
        f"{ALIGNED_FROM:g}.",
    ]
