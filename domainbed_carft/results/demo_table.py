"""The table of ``carft demo``: this run next to ten recorded trials, and a conclusion."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from domainbed_carft.results import comparisons
from domainbed_carft.results.cells import Cell, format_accuracy, mean_over_trials
from domainbed_carft.results.comparisons import ENVIRONMENT, LEVEL, PAIR, TRIAL, Accuracies
from domainbed_carft.results.findings import BASELINE, FEATURED
from domainbed_carft.results.formats import Grid
from domainbed_carft.wording import quantity

TITLE = "Accuracy on the drawing style held out, in %"
NOTE = (
    "This run: accuracy on each style of the model trained on the other three, and the mean. "
    "Recorded: the same jobs, trained by the authors, and all ten recorded trials, mean ± standard "
    "error (benchmarks/records/fresh-emoji.tar.xz)."
)


def recorded_accuracies(dataset: str) -> Accuracies:
    """Return algorithm -> (``dataset``, target, trial) -> accuracy in percent of README's table.

    ``tools/demo_numbers.py`` makes the file ``assets/demo.csv`` from the records.
    """
    file = resources.files("domainbed_carft") / "assets" / "demo.csv"
    accuracies: dict[str, dict[comparisons.PairKey, float]] = {}
    for line in csv.DictReader(file.read_text().splitlines()):
        pair = (dataset, int(line["target"]), int(line["trial"]))
        accuracies.setdefault(line["algorithm"], {})[pair] = float(line["accuracy"])
    return accuracies


def grid(accuracies: Accuracies, recorded: Accuracies, environments: Sequence[str]) -> Grid:
    """Return a table with a row for each algorithm of this run.

    Args:
        accuracies: accuracies of this run.
        recorded: accuracies of all recorded trials.
        environments: name of each environment, by index.
    """
    targets = sorted({target for by_pair in accuracies.values() for _, target, _ in by_pair})
    rows = []
    for algorithm, by_pair in accuracies.items():
        recorded_by_pair = recorded.get(algorithm, {})
        on_targets = [pair for pair in recorded_by_pair if pair[1] in targets]
        same_jobs = [pair for pair in by_pair if pair in recorded_by_pair]
        rows.append(
            [
                algorithm,
                *(
                    _mean_text(by_pair, [pair for pair in by_pair if pair[1] == target])
                    for target in targets
                ),
                _mean_text(by_pair, by_pair),
                _mean_text(recorded_by_pair, same_jobs) if len(same_jobs) == len(by_pair) else "-",
                _mean_text(recorded_by_pair, on_targets),
            ]
        )

    styles = [environments[target] for target in targets]
    header = ["Algorithm", *styles, "this run", "recorded", "recorded, ten trials"]
    return Grid(TITLE, header, rows, notes=[])


def _mean_text(
    by_pair: Mapping[comparisons.PairKey, float], pairs: Iterable[comparisons.PairKey]
) -> str:
    """Return the mean over trials of each trial's mean, with its error if there are several."""
    cell = _average(by_pair, pairs)
    return format_accuracy(cell.mean, cell.standard_error) or "-"


def _average(
    by_pair: Mapping[comparisons.PairKey, float], pairs: Iterable[comparisons.PairKey]
) -> Cell:
    return mean_over_trials([(pair[2], by_pair[pair]) for pair in pairs], scale=1)


def conclusion(accuracies: Accuracies, recorded: Accuracies) -> str:
    """Return a conclusion about CARFT in this run, with the limits of a single trial.

    The text is "" unless the run has CARFT and another algorithm.
    """
    cells = {name: _average(by_pair, by_pair) for name, by_pair in accuracies.items()}
    means = {name: cell.mean for name, cell in cells.items() if cell.mean is not None}
    baselines = [name for name in means if name != FEATURED]
    if FEATURED not in means or not baselines:
        return ""

    beaten = [name for name in baselines if means[FEATURED] > means[name]]
    unbeaten = [name for name in baselines if name not in beaten]
    clauses = []
    if beaten:
        clauses.append(f"ahead of {_list_with_means(beaten, means)}")
    if unbeaten:
        clauses.append(f"not ahead of {_list_with_means(unbeaten, means)}")
    first = f"In this run {FEATURED} ({means[FEATURED]:.1f}) is {', but '.join(clauses)}."

    second = (
        "Since the jobs are the same as the recorded ones, one trial can show that training works "
        "on your machine. It cannot show which method is better; for that, see the ten recorded "
        "trials"
    )
    return f"{first} {second}{_describe_recorded_difference(recorded)}."


def _list_with_means(names: Sequence[str], means: Mapping[str, float]) -> str:
    *first, last = [f"{name} ({means[name]:.1f})" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _describe_recorded_difference(recorded: Accuracies) -> str:
    """Return ``: CARFT minus CLIPFineTune is ...``, with intervals and their limits."""
    pair = {name: recorded[name] for name in (FEATURED, BASELINE)}
    by_style, by_trial, by_pair = (
        comparisons.compare(pair, BASELINE, unit)[0] for unit in (ENVIRONMENT, TRIAL, PAIR)
    )
    return (
        f": {FEATURED} minus {BASELINE} is {by_style.mean_difference:+.1f} points, with {LEVEL}% "
        f"intervals of {by_style.interval_text(digits=1)} over {quantity(by_style.n, 'style')}, "
        f"{by_trial.interval_text(digits=1)} over {quantity(by_trial.n, 'trial')} and "
        f"{by_pair.interval_text(digits=1)} over {quantity(by_pair.n, 'pair')} of style and trial. "
        "The last two are optimistic, because all trials share their test images. The recorded "
        "sweep compares CARFT with six methods, and none of these intervals is corrected for that: "
        "the page Methods compared of the documentation has the corrected p-values"
    )
