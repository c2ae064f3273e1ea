"""The table of ``carft demo``, and what it shows: this run beside the records of ten trials."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import fmean

from domainbed_carft.results import comparisons
from domainbed_carft.results.columns import mean_cell, format_accuracy
from domainbed_carft.results.comparisons import ENVIRONMENT, LEVEL, PAIR, TRIAL, Accuracies
from domainbed_carft.results.formats import Grid
from domainbed_carft.text import quantity

CARFT = "CARFT"
FINE_TUNE = "CLIPFineTune"  # ERM, in DomainBed's words
TITLE = "Accuracy on the drawing style left out, in %"
NOTE = (
    "This run: on each style, by the model that was trained on the three others, and the mean. "
    "Recorded: the same jobs as we trained them, and all ten trials of them, mean ± standard error "
    "(benchmarks/records/fresh-emoji.tar.xz)."
)


def recorded_accuracies(dataset: str) -> Accuracies:
    """Algorithm -> (``dataset``, target, trial) -> accuracy in percent, of README's table.

    From the package's file ``assets/demo.csv``, which ``tools/demo_numbers.py`` makes.
    """
    file = resources.files("domainbed_carft") / "assets" / "demo.csv"
    accuracies: dict[str, dict[comparisons.PairKey, float]] = {}
    for line in csv.DictReader(file.read_text().splitlines()):
        pair = (dataset, int(line["target"]), int(line["trial"]))
        accuracies.setdefault(line["algorithm"], {})[pair] = float(line["accuracy"])
    return accuracies


def grid(accuracies: Accuracies, recorded: Accuracies, environments: Sequence[str]) -> Grid:
    """A row for each algorithm of this run: its accuracies and our recorded means.

    ``accuracies`` and ``recorded``: of this run, and of our records; ``environments``: the
    names of all targets, by number.
    """
    targets = sorted({target for by_pair in accuracies.values() for _, target, _ in by_pair})
    rows = []
    for algorithm, by_pair in accuracies.items():
        recorded_by_pair = recorded.get(algorithm, {})
        same_jobs = {pair: recorded_by_pair[pair] for pair in by_pair if pair in recorded_by_pair}
        all_trials = {
            pair: accuracy for pair, accuracy in recorded_by_pair.items() if pair[1] in targets
        }
        of_targets = [
            fmean(accuracy for pair, accuracy in by_pair.items() if pair[1] == target)
            for target in targets
        ]
        rows.append(
            [
                algorithm,
                *map(format_accuracy, of_targets),
                format_accuracy(fmean(of_targets)),
                _mean_text(same_jobs) if same_jobs.keys() == by_pair.keys() else "-",
                _mean_text(all_trials),
            ]
        )

    styles = [environments[target] for target in targets]
    header = ["Algorithm", *styles, "this run", "recorded", "recorded, ten trials"]
    return Grid(TITLE, header, rows, notes=[])


def _mean_text(by_pair: Mapping[comparisons.PairKey, float]) -> str:
    """The mean over the trials of each trial's mean, and its error if there are several."""
    by_trial: dict[int, list[float]] = {}
    for (_, _, trial), accuracy in by_pair.items():
        by_trial.setdefault(trial, []).append(accuracy)
    if not by_trial:
        return "-"

    means = {trial: fmean(accuracies) for trial, accuracies in by_trial.items()}
    cell = mean_cell(means, scale=1)
    return format_accuracy(cell.mean, cell.standard_error)


def conclusion(accuracies: Accuracies, recorded: Accuracies) -> str:
    """Whether CARFT is ahead in this run, and what a single trial can show and what it cannot.

    "" without CARFT and another algorithm in the run.
    """
    means = {algorithm: fmean(by_pair.values()) for algorithm, by_pair in accuracies.items()}
    others = [algorithm for algorithm in means if algorithm != CARFT]
    if CARFT not in means or not others:
        return ""

    ahead_of = [name for name in others if means[CARFT] > means[name]]
    behind = [name for name in others if name not in ahead_of]
    clauses = []
    if ahead_of:
        clauses.append(f"ahead of {_with_means(ahead_of, means)}")
    if behind:
        clauses.append(f"not ahead of {_with_means(behind, means)}")
    first = f"In this run CARFT ({means[CARFT]:.1f}) is {', but '.join(clauses)}."

    second = (
        "One trial can show that your machine trains what ours trained, since the jobs are the "
        "same; it cannot show which method is better, for which there are the ten trials"
    )
    return f"{first} {second}{_over_trials(recorded)}."


def _with_means(names: Sequence[str], means: Mapping[str, float]) -> str:
    *first, last = [f"{name} ({means[name]:.1f})" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def _over_trials(recorded: Accuracies) -> str:
    """``: CARFT minus CLIPFineTune is ...``, with intervals over styles, trials and pairs."""
    pair = {name: recorded[name] for name in (CARFT, FINE_TUNE)}
    by_style, by_trial, by_pair = (
        comparisons.compare(pair, FINE_TUNE, unit)[0] for unit in (ENVIRONMENT, TRIAL, PAIR)
    )
    return (
        f": there CARFT minus {FINE_TUNE} is {by_style.mean_difference:+.1f} points, with {LEVEL}% "
        f"intervals of {by_style.interval_text(digits=1)} over {quantity(by_style.n, 'style')}, "
        f"{by_trial.interval_text(digits=1)} over {quantity(by_trial.n, 'trial')} and "
        f"{by_pair.interval_text(digits=1)} over {quantity(by_pair.n, 'pair')} of both. The last "
        "two are optimistic, since all trials share their test images"
    )
