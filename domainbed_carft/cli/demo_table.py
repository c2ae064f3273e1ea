"""The one table of ``carft demo``, and the sentences on what it shows, from the jobs' records."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import fmean

from domainbed_carft.data.emoji import UNSEEN
from domainbed_carft.results import formats
from domainbed_carft.results.collect import Results
from domainbed_carft.results.columns import format_accuracy
from domainbed_carft.results.comparisons import LEVEL, Accuracies, Comparison
from domainbed_carft.results.formats import Grid
from domainbed_carft.text import quantity

# Columns of `collect` on styles trained on, and means of the suite -> titles in the table
TRAINED_ON = "in-domain"
MEANS = {
    "mean_seen": "left out",
    "mean_family_seen": "family seen",
    "mean_never_seen": "never seen",
}
_NOTE = (
    "Accuracy in %. Trained on: held-out pictures of the three styles that a run saw in training, "
    "augmented as in training; so compare within this column, not with the others. "
    "The other columns are styles that it did not: the one left out; four by teams of whose "
    "styles the CLIP has seen another; five that the CLIP has never seen. All ten: their mean. "
    f"CARFT minus it: the difference in this mean, with its {LEVEL}% interval over the styles left "
    "out."
)


def table_text(results: Results, accuracies: Accuracies, by_style: Sequence[Comparison]) -> str:
    """The table of a sweep: a row for each algorithm.

    ``accuracies``: of the runs on all styles that they were not trained on; ``by_style``: CARFT
    against the others, with the style left out as unit.
    """
    trained_on = {row.algorithm: row.printed_cells[0].mean for row in results.tables[0].rows}
    all_styles = {row: fmean(by_run.values()) for row, by_run in accuracies.items()}
    differences = {entry.against: _difference(entry) for entry in by_style}

    rows = [
        [
            scores.algorithm,
            format_accuracy(trained_on[scores.algorithm]),
            *(format_accuracy(scores.cells[key].mean) for key in MEANS),
            format_accuracy(all_styles[scores.algorithm]),
            differences.get(scores.algorithm, "-"),
        ]
        for scores in results.suite_scores
        if scores.suite == UNSEEN and scores.alpha is None
    ]
    header = ["Algorithm", "trained on", *MEANS.values(), "all ten", "CARFT minus it"]
    grid = Grid("Accuracy by drawing style", header, rows, notes=[])
    return formats.as_text([grid], [_NOTE])


def _difference(entry: Comparison) -> str:
    text = f"{entry.mean_difference:+.1f}"
    return text if entry.low is None else f"{text} ({entry.interval_text(digits=1)})"


def conclusion(by_style: Sequence[Comparison], by_pair: Sequence[Comparison]) -> str:
    """What the table shows, and how sure that is: by styles left out, and by pairs of runs."""
    clauses = []
    for style_entry, pair_entry in zip(by_style, by_pair, strict=True):
        relation = "not clearly different from"
        if style_entry.is_clear:
            relation = "better than" if style_entry.mean_difference > 0 else "worse than"
        clauses.append(
            f"{relation} {style_entry.against} ({style_entry.mean_difference:+.1f} points; over "
            f"pairs {pair_entry.interval_text(digits=1)})"
        )

    style_count = min((entry.n for entry in by_style), default=0)
    pair_count = min((entry.n for entry in by_pair), default=0)
    basis = "With one style left out there are no intervals over styles."
    if style_count > 1:
        basis = f"That is by the table's intervals, over {style_count} styles left out."
    paragraph = (
        f"On styles that it was not trained on, CARFT is {'; '.join(clauses)}. {basis} Those over "
        f"{quantity(pair_count, 'pair')} of runs tend to be optimistic, since all runs share their "
        "test pictures."
    )
    return textwrap.fill(paragraph, formats.TEXT_WIDTH) + "\n"
