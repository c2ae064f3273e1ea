"""What the commands on saved runs print for people: tables and lines, without terminal escapes."""

from __future__ import annotations

from collections.abc import Mapping

from domainbed_carft.data import benchmarks
from domainbed_carft.runs.confusion import ECE_BINS
from domainbed_carft.runs.evaluate import Evaluation
from domainbed_carft.runs.model_stock import ModelStock
from domainbed_carft.runs.predict import PicturePrediction, most_likely
from domainbed_carft.runs.retained import RetainedAbility
from domainbed_carft.runs.soup import Soups
from domainbed_carft.runs.suite_scores import SuiteEvaluation, SuiteScores
from domainbed_carft.runs.wise_ft import WiseFT
from domainbed_carft.suites import catalogue
from domainbed_carft.text import printable, quantity, table

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
        counts = split.counts
        rows.append(
            [
                split.name,
                environment,
                str(counts.count),
                percent(counts.accuracy),
                percent(counts.ece),
            ]
        )
    return table(["split", "environment", "pictures", "accuracy (%)", "ECE (%)"], rows)


def _table_by_class(evaluation: Evaluation) -> str:
    by_class_of_splits = [split.counts.by_class for split in evaluation.splits]
    rows = []
    for label, name in enumerate(evaluation.classes):
        accuracies = [percent(by_class[label].accuracy) for by_class in by_class_of_splits]
        rows.append([name, *accuracies])
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


def retained_text(retained: RetainedAbility) -> str:
    """A table of the test sets with both encoders, the means, and what is missing."""
    suite = catalogue.get(retained.original.suite)
    title = f"{retained.model['title']} ({retained.model['run']})"
    rows = []
    for name, original in retained.original.sets.items():
        fine_tuned = retained.fine_tuned.sets[name]
        rows.append(
            [
                name if original.is_complete else f"{name} (incomplete)",
                f"{original.pictures:,}",
                percent(original.accuracy),
                percent(fine_tuned.accuracy),
                f"{100 * (fine_tuned.accuracy - original.accuracy):+.1f}",
            ]
        )

    head = ["test set", "pictures", "original CLIP (%)", "fine-tuned (%)", "difference"]
    lines = [
        printable(f"{title} under the original text head on the suite {suite.name}"),
        "",
        table(head, rows),
        "",
    ]
    for key, mean_title in suite.mean_titles.items():
        means = (retained.original.means[key], retained.fine_tuned.means[key])
        lines.append(f"{mean_title}: {percent(means[0])}, fine-tuned {percent(means[1])}")
    lines += _problem_lines(retained.original)
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
