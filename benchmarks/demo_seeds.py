"""The demo with other seeds: CARFT's differences in each, their errors, and how much they vary.

    python benchmarks/demo_seeds.py OUT --seeds 10

Trains what `carft demo` trains, with the trials 200 and 201 for the first seed, 202 and 203 for the
second, and so on, tests all runs on the drawing styles that they were not trained on, and prints a
Markdown table: CARFT minus each other algorithm in points, with the standard error over the 8 pairs
of runs that the demo prints. Below, over the seeds: the mean, the standard deviation, which a
standard error should equal, and the root mean square of the standard errors. The last row has the
latter for what the demo was before: one trial, on the in-split of the style left out.

What is done is not redone; an interrupted command goes on where it was. --no-train only reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from domainbed_carft import launchers
from domainbed_carft.cli.demo import CARFT, DATA_DIR
from domainbed_carft.data.emoji import UNSEEN
from domainbed_carft.errors import raise_for
from domainbed_carft.results import against_one, collection, suite_pairs
from domainbed_carft.results.method_names import TRAINING_DOMAIN
from domainbed_carft.results.settings import Group
from domainbed_carft.runs.evaluation_processes import SweepOptions
from domainbed_carft.runs.runs_on_suite import evaluate_sweep_on_suite
from domainbed_carft.sweep import declaration_file, launch
from domainbed_carft.sweep.fields import Seeds

FIRST_TRIAL = 200
TRIALS_OF_DEMO = 2
OTHERS = ("CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")


def train(output: Path, seeds: int) -> None:
    """Run the jobs of all seeds, and their tests on other styles."""
    trials = Seeds.model_validate({"from": FIRST_TRIAL, "n": TRIALS_OF_DEMO * seeds})
    declaration = declaration_file.load("demo").model_copy(update={"trials": trials})
    pool = launchers.make("pool", {})
    launch.run(declaration, DATA_DIR, output, pool, skip_training_in_splits=True)
    raise_for(evaluate_sweep_on_suite(output, UNSEEN, SweepOptions()).problems)


def group_of_trials(group: Group, first: int, count: int) -> Group:
    """The runs of ``count`` trials."""
    runs = [run for run in group.runs if first <= run.job.key.trial < first + count]
    return group._replace(runs=runs)


def rows_of(group: Group, seeds: int) -> list[list[str]]:
    """A row for each seed, then those over the seeds."""
    means = []
    errors = []
    rows = []
    for seed in range(seeds):
        demo = group_of_trials(group, FIRST_TRIAL + TRIALS_OF_DEMO * seed, TRIALS_OF_DEMO)
        pairs = {pair.against: pair for pair in suite_pairs.compare([demo], UNSEEN, CARFT)}
        means.append([pairs[name].mean_difference for name in OTHERS])
        errors.append([pairs[name].standard_error for name in OTHERS])
        cells = [f"{m:+.2f} ({e:.2f})" for m, e in zip(means[-1], errors[-1], strict=True)]
        rows.append([str(seed), *cells])

    rows.append(["mean", *(f"{value:+.2f}" for value in np.mean(means, axis=0))])
    if seeds > 1:
        deviations = np.std(means, axis=0, ddof=1)
        rows.append(["standard deviation", *(f"{value:.2f}" for value in deviations)])
    rows.append(["standard error", *_root_mean_squares(errors)])
    rows.append(["standard error of one trial, in-splits", *_root_mean_squares(earlier(group))])
    return rows


def earlier(group: Group) -> list[list[float | None]]:
    """The standard errors of each single trial, on the in-split of the style left out."""
    errors = []
    for trial in sorted({run.job.key.trial for run in group.runs}):
        of_trial = group_of_trials(group, trial, 1)
        entries = against_one.compare([of_trial], [TRAINING_DOMAIN], CARFT)
        by_name = {
            entry.algorithm: entry.standard_error
            for entry in entries
            if entry.unit == against_one.PAIR
        }
        errors.append([by_name[name] for name in OTHERS])
    return errors


def _root_mean_squares(errors: Sequence[Sequence[float | None]]) -> list[str]:
    values = np.array(errors, dtype=float)
    return [f"{value:.2f}" for value in np.sqrt((values**2).mean(axis=0))]


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
