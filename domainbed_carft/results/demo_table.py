"""The table of ``carft demo``: this run next to ten recorded trials, and a conclusion."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import fmean

from domainbed_carft.results import comparisons
from domainbed_carft.results.cells import format_accuracy, mean_over_trials
from domainbed_carft.results.comparisons import ENVIRONMENT, LEVEL, PAIR, TRIAL, Accuracies
from domainbed_carft.results.formats import Grid
from domainbed_carft.wording import quantity

CARFT = "CARFT"
FINE_TUNE = "CLIPFineTune"  # ERM in DomainBed
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
        same_jobs = {pair: recorded_by_pair[pair] for pair in by_pair if pair in recorded_by_pair}
        all_trials = {
            pair: accuracy for pair, accuracy in recorded_by_pair.items() if pair[1] in targets
        }
        target_means = [
            fmean(accuracy for pair, accuracy in by_pair.items() if pair[1] == target)
            for target in targets
        ]
        rows.append(
            [
                algorithm,
                *map(format_accuracy, target_means),
                format_accuracy(fmean(target_means)),
                _mean_text(same_jobs) if same_jobs.keys() == by_pair.keys() else "-",
                _mean_text(all_trials),
            ]
        )

    styles = [environments[target] for target in targets]
    header = ["Algorithm", *styles, "this run", "recorded", "recorded, ten trials"]
    return Grid(TITLE, header, rows, notes=[])


def _mean_text(by_pair: Mapping[comparisons.PairKey, float]) -> str:
    """Return the mean over trials of each trial's mean, with its error if there are several."""
    cell = mean_over_trials(
        [(trial, accuracy) for (_, _, trial), accuracy in by_pair.items()], scale=1
    )
    return format_accuracy(cell.mean, cell.standard_error) or "-"


def conclusion(accuracies: Accuracies, recorded: Accuracies) -> str:
    """Return a conclusion about CARFT in this run, with the limits of a single trial.

    The text is "" unless the run has CARFT and another algorithm.
    """
    means = {algorithm: fmean(by_pair.values()) for algorithm, by_pair in accuracies.items()}
    baselines = [algorithm for algorithm in means if algorithm != CARFT]
    if CARFT not in means or not baselines:
        return ""

    beaten = [name for name in baselines if means[CARFT] > means[name]]
    unbeaten = [name for name in baselines if name not in beaten]
    clauses = []
    if beaten:
        clauses.append(f"ahead of {_list_with_means(beaten, means)}")
    if unbeaten:
        clauses.append(f"not ahead of {_list_with_means(unbeaten, means)}")
    first = f"In this run CARFT ({means[CARFT]:.1f}) is {', but '.join(clauses)}."

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
    pair = {name: recorded[name] for name in (CARFT, FINE_TUNE)}
    by_style, by_trial, by_pair = (
        comparisons.compare(pair, FINE_TUNE, unit)[0] for unit in (ENVIRONMENT, TRIAL, PAIR)
    )
    return (
        f": CARFT minus {FINE_TUNE} is {by_style.mean_difference:+.1f} points, with {LEVEL}% "
        f"intervals of {by_style.interval_text(digits=1)} over {quantity(by_style.n, 'style')}, "
        f"{by_trial.interval_text(digits=1)} over {quantity(by_trial.n, 'trial')} and "
        f"{by_pair.interval_text(digits=1)} over {quantity(by_pair.n, 'pair')} of style and trial. "
        "The last two are optimistic, because all trials share their test images. The recorded "
        "sweep compares CARFT with six methods, and none of these intervals is corrected for that: "
        "docs/peers.md has the corrected p-values"
    )
