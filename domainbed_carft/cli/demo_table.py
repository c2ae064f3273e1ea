"""The one table of ``carft demo``, and the sentences on what it shows, from the jobs' records."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from domainbed_carft.data.emoji import UNSEEN
from domainbed_carft.results import formats, suite_pairs
from domainbed_carft.results.cells import PLUS_MINUS, format_accuracy
from domainbed_carft.results.collect import Results
from domainbed_carft.results.document import Document, Grid
from domainbed_carft.results.suite_pairs import SuitePair
from domainbed_carft.text import quantity

# Columns of `collect` on styles trained on, and means of the suite -> titles in the table
TRAINED_ON = "in-domain"
MEANS = {
    "mean_seen": "left out",
    "mean_family_seen": "family seen",
    "mean_never_seen": "never seen",
}
_NOTE = (
    "Accuracy in %. Trained on: held-out pictures of the three styles that a run saw in training. "
    "The other columns are styles that it did not: the one left out; four by teams of whose "
    "styles the CLIP has seen another; five that the CLIP has never seen. All ten: their mean. "
    f"CARFT minus it: the difference in this mean, {PLUS_MINUS} its standard error."
)


def table_text(results: Results, pairs: Sequence[SuitePair]) -> str:
    """The table of a sweep: a row for each algorithm."""
    trained_on = {row.algorithm: row.shown[0].mean for row in results.tables[0].rows}
    all_styles = suite_pairs.mean_accuracies(results.collection.groups, UNSEEN)
    differences = {pair.against: _difference(pair) for pair in pairs}

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
    return formats.FORMATS["text"](Document([_NOTE], [grid], {}, []))


def _difference(pair: SuitePair) -> str:
    text = f"{pair.mean_difference:+.1f}"
    return text if pair.standard_error is None else f"{text} {PLUS_MINUS} {pair.standard_error:.1f}"


def conclusion(pairs: Sequence[SuitePair]) -> str:
    """What the table shows, and how sure that is."""
    clauses = []
    for pair in pairs:
        if not pair.is_clear:
            relation = "not clearly different from"
        else:
            relation = "better than" if pair.mean_difference > 0 else "worse than"
        interval = ""
        if pair.low is not None:
            interval = f", 95% interval {pair.low:+.1f} to {pair.high:+.1f}"
        clauses.append(f"{relation} {pair.against} ({pair.mean_difference:+.1f} points{interval})")

    count = min((pair.pairs for pair in pairs), default=0)
    sentence = (
        f"On styles that it was not trained on, CARFT is {'; '.join(clauses)}. The intervals are "
        f"over {quantity(count, 'pair')} of runs: they say how much other seeds would change the "
        "table. All runs share their test pictures."
    )
    return textwrap.fill(sentence, formats.TEXT_WIDTH) + "\n"
