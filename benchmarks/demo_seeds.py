"""Ten seeds of a short sweep: CARFT's differences in each, their errors, and how much they vary.

    python benchmarks/demo_seeds.py OUT --seeds 10

Trains benchmarks/demo_seeds.yaml, the demo of 0.2.0, with the trials 200 and 201 for the first
seed, 202 and 203 for the second, and so on, tests all runs on the drawing styles that they were not
trained on, and prints a Markdown table: CARFT minus each other algorithm in points, with the
interval over the four styles left out. Below, over the seeds: the mean and the standard deviation;
how many of the intervals hold the mean, over styles and over the 8 pairs of runs; and the root mean
squares of the standard errors, which should equal the standard deviation. The last row has that of
one trial, on the in-split of the style left out.

What is done is not redone; an interrupted command goes on where it was. --no-train only reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from domainbed_carft.data.emoji import UNSEEN
from domainbed_carft.errors import raise_for
from domainbed_carft.results import collection, comparisons, suites
from domainbed_carft.results.collection import Group
from domainbed_carft.results.comparisons import Comparison
from domainbed_carft.results.method_names import TRAINING_DOMAIN
from domainbed_carft.runs.sweep import SweepOptions, evaluate_sweep_on_suite
from domainbed_carft.sweep import declaration_file, launch
from domainbed_carft.sweep.declaration import Seeds

SWEEP = Path(__file__).with_suffix(".yaml")
DATA_DIR = "embedded"  # not read: the pictures are in the package
FIRST_TRIAL = 200
TRIALS_OF_DEMO = 2
CARFT = "CARFT"
OTHERS = ("CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")


def train(output: Path, seeds: int) -> None:
    """Run the jobs of all seeds, and their tests on other styles."""
    trials = Seeds.model_validate({"from": FIRST_TRIAL, "n": TRIALS_OF_DEMO * seeds})
    declaration = declaration_file.load(SWEEP).model_copy(update={"trials": trials})
    launch.run_plan(launch.plan(declaration, DATA_DIR, output, skip_training_in_splits=True))
    raise_for(evaluate_sweep_on_suite(output, UNSEEN, SweepOptions()).problems)


def group_of_trials(group: Group, first: int, count: int) -> Group:
    """The runs of ``count`` trials."""
    runs = [run for run in group.runs if first <= run.job.key.trial < first + count]
    return replace(group, runs=runs)


def rows_of(group: Group, seeds: int) -> list[list[str]]:
    """A row for each seed, then those over the seeds."""
    entries: dict[str, list[list[Comparison]]] = {unit: [] for unit in comparisons.UNITS}
    for seed in range(seeds):
        demo = group_of_trials(group, FIRST_TRIAL + TRIALS_OF_DEMO * seed, TRIALS_OF_DEMO)
        accuracies = suites.accuracies_by_run(demo, UNSEEN)
        for unit in comparisons.UNITS:
            compared = []
            for name in OTHERS:
                pair = {CARFT: accuracies[CARFT], name: accuracies[name]}
                compared += comparisons.compare(pair, name, unit)
            entries[unit].append(compared)

    by_style = entries[comparisons.ENVIRONMENT]
    by_pair = entries[comparisons.PAIR]
    rows = [
        [str(seed), *(f"{e.mean_difference:+.2f} ({e.interval_text(digits=2)})" for e in of_seed)]
        for seed, of_seed in enumerate(by_style)
    ]
    means = np.array([[entry.mean_difference for entry in of_seed] for of_seed in by_style])
    rows.append(["mean", *(f"{value:+.2f}" for value in means.mean(axis=0))])
    if seeds > 1:
        deviations = means.std(axis=0, ddof=1)
        rows.append(["standard deviation", *(f"{value:.2f}" for value in deviations)])
    rows.append(["intervals over styles with the mean", *_holding(by_style, means.mean(axis=0))])
    rows.append(["intervals over pairs with the mean", *_holding(by_pair, means.mean(axis=0))])
    rows.append(["standard error over styles", *_root_mean_squares(by_style)])
    rows.append(["standard error over pairs", *_root_mean_squares(by_pair)])
    rows.append(["standard error of one trial, in-splits", *_root_mean_squares(earlier(group))])
    return rows


def earlier(group: Group) -> list[list[Comparison]]:
    """Each single trial, on the in-split of the style left out."""
    entries = []
    for trial in sorted({run.job.key.trial for run in group.runs}):
        of_trial = group_of_trials(group, trial, 1)
        accuracies = comparisons.accuracies_of(of_trial.selected(TRAINING_DOMAIN))
        compared = comparisons.compare(accuracies, CARFT, comparisons.ENVIRONMENT)
        by_name = {entry.algorithm: entry for entry in compared}
        entries.append([by_name[name] for name in OTHERS])
    return entries


def _holding(entries: Sequence[Sequence[Comparison]], means: Sequence[float]) -> list[str]:
    """Of how many seeds the interval has the mean of all seeds in it, for each algorithm."""
    columns = zip(*entries, strict=True)
    return [
        f"{sum(entry.low <= mean <= entry.high for entry in column)} of {len(column)}"  # type: ignore[operator]
        for column, mean in zip(columns, means, strict=True)
    ]


def _root_mean_squares(entries: Sequence[Sequence[Comparison]]) -> list[str]:
    """Of the standard errors of the seeds, for each algorithm."""
    errors = np.array([[entry.standard_error for entry in row] for row in entries], dtype=float)
    return [f"{value:.2f}" for value in np.sqrt((errors**2).mean(axis=0))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="output folder of the jobs")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--no-train", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_train:
        train(arguments.output, arguments.seeds)

    (group,) = collection.gather([arguments.output]).groups
    header = ["CARFT minus", *OTHERS]
    print(tabulate(rows_of(group, arguments.seeds), header, tablefmt="github"))


if __name__ == "__main__":
    main()
