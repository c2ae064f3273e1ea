"""Compare accuracies on EmojiStyles with and without near duplicates of pre-training images.

    carft sweep launch peers-emoji --output_dir peers-emoji
    carft evaluate peers-emoji --select training-domain
    python benchmarks/without_near_duplicates.py peers-emoji/methods

According to assets/emoji_styles_near_duplicates.csv, 163 of the 1,716 images nearly equal an image
that `tiny` was trained on. The accuracies are computed from the predictions that `carft evaluate`
has saved for the runs that training-domain validation selects; runs without saved predictions are
skipped. The second table has the differences from CARFT in points, over the targets and over the
pairs of runs, with 95% intervals by Student's t.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from domainbed.lib import misc
from tabulate import tabulate

from domainbed_carft.data import emoji, emoji_styles
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.splits import split_environments
from domainbed_carft.results import collection, comparisons, metrics
from domainbed_carft.results.comparisons import PairKey
from domainbed_carft.results.rule_names import TRAINING_DOMAIN
from domainbed_carft.results.selection import SelectedRun

REFERENCE = "CARFT"
IMAGE_SETS = ("all", "without", "near duplicates")

# Image set -> algorithm -> (dataset, target, trial) -> accuracy in percent
Accuracies = Mapping[str, Mapping[str, Mapping[PairKey, float]]]


@functools.cache
def near_duplicates() -> frozenset[str]:
    """Return the listed images, as style/class/thing.png."""
    table = files("domainbed_carft") / "assets" / "emoji_styles_near_duplicates.csv"
    with table.open(encoding="ascii") as stream:
        return frozenset(row["image"] for row in csv.DictReader(stream))


@functools.cache
def list_images(style: str) -> list[str]:
    """Return the images of a style in the order of its environment, as style/class/thing.png."""
    folder = emoji.style_folders() / style
    return [path.relative_to(folder.parent).as_posix() for path in sorted(folder.glob("*/*.png"))]


def reported_images(target: int, trial: int, holdout_fraction: float) -> list[str]:
    """Return the images of the target's in-split, in the order of the predictions."""
    environments = [list_images(style) for style in emoji_styles.names(emoji_styles.SEEN)]
    splits = split_environments(environments, [target], trial, holdout_fraction, 0, misc)
    return [str(image) for image in splits[target].in_split]


def correct_by_image(selected: SelectedRun) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Return a run's test images, and for each one if it was predicted correctly.

    Raises CarftError if the predictions are damaged or belong to other images.
    """
    run = selected.outcome.run
    predictions, facts = metrics.load_predictions(
        Path(run.folder), metrics.EvaluationKey(int(selected.outcome.step))
    )
    holdout_fraction = run.job.args["holdout_fraction"]
    images = reported_images(selected.target, selected.trial, holdout_fraction)

    labels = [facts.classes.index(image.split("/")[1]) for image in images]
    if labels != predictions["label"].tolist():
        raise CarftError(f"{run.folder}: the predictions do not belong to the target's in-split")
    return images, metrics.is_correct(predictions)


def accuracies(folder: Path) -> tuple[Accuracies, int]:
    """Return the accuracies of the selected runs, and the number of runs without predictions."""
    percent: dict[str, dict[str, dict[PairKey, float]]] = {
        name: defaultdict(dict) for name in IMAGE_SETS
    }
    missing = 0
    (group,) = collection.gather([folder], [TRAINING_DOMAIN]).groups
    for selected in group.select(TRAINING_DOMAIN):
        job_folder = Path(selected.outcome.run.folder)
        if not metrics.predictions_path(
            job_folder, metrics.EvaluationKey(int(selected.outcome.step))
        ).exists():
            missing += 1
            continue

        images, is_correct = correct_by_image(selected)
        is_near = np.array([image in near_duplicates() for image in images])
        pair = (selected.dataset, selected.target, selected.trial)
        masks = (np.ones_like(is_near), ~is_near, is_near)
        for name, mask in zip(IMAGE_SETS, masks, strict=True):
            percent[name][selected.row][pair] = 100 * float(is_correct[mask].mean())
    return percent, missing


def accuracy_table(percent: Accuracies) -> list[list[str]]:
    """Make a row for each algorithm with its mean accuracy on each set of images, best first."""
    means = {
        algorithm: [float(np.mean([*percent[name][algorithm].values()])) for name in IMAGE_SETS]
        for algorithm in percent["all"]
    }
    by_accuracy = sorted(means, key=lambda algorithm: -means[algorithm][0])
    return [[name, *(f"{mean:.1f}" for mean in means[name])] for name in by_accuracy]


def difference_table(percent: Accuracies) -> list[list[str]]:
    """Make a row for each other algorithm and set of images: its mean minus CARFT's.

    The near duplicates alone are too few in most styles.
    """
    rows = []
    for algorithm in percent["all"]:
        if algorithm == REFERENCE:
            continue
        for name in IMAGE_SETS[:2]:
            both = {row: percent[name][row] for row in (algorithm, REFERENCE)}
            over_targets, over_pairs = (
                comparisons.compare(both, REFERENCE, unit)[0] for unit in comparisons.UNITS
            )
            mean = f"{over_targets.mean_difference:+.1f}"
            intervals = [entry.interval_text(digits=1) for entry in (over_targets, over_pairs)]
            rows.append([algorithm, name, mean, *intervals])
    return rows


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="output folder of a sweep, or of a variant")
    arguments = parser.parse_args()
    percent, missing = accuracies(arguments.sweep)
    if not percent["all"].get(REFERENCE):
        parser.error(
            f"no predictions of {REFERENCE} in {arguments.sweep}; run carft evaluate on the sweep"
        )

    print(format_table(["out of domain, %", *IMAGE_SETS], accuracy_table(percent)))
    header = [f"minus {REFERENCE}", "images", "mean", "over targets", "over pairs, optimistic"]
    print("\n" + format_table(header, difference_table(percent)))
    if missing:
        print(f"\n{missing} runs without saved predictions were skipped.")


if __name__ == "__main__":
    main()
