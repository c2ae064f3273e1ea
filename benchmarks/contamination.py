"""Gains over zero-shot CLIP in styles that the CLIP has seen, whose family it has seen, and others.

    carft sweep launch contamination --output_dir OUT
    carft evaluate OUT --suite EmojiUnseen
    python benchmarks/contamination.py OUT [--markdown]

Each job was trained on three of the four styles of EmojiStyles. Its "seen" style is the fourth,
which the CLIP knows from pre-training and the job was not trained on. A gain is a method's accuracy
minus zero-shot CLIP's in the same style, in points, the mean over trials and targets; then the mean
over the styles of a group, with the lowest and the highest style's in parentheses. That is a range
and not an interval. A sweep with variants has a row for each. The weights are those that
training-domain validation selected, if the job has kept them.

The second table has the difference between CARFT and ERM (plain fine-tuning) in each group, and its
interaction with the group, with 95% intervals.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from domainbed_carft.data import emoji, emoji_styles
from domainbed_carft.data.emoji_styles import FAMILY_SEEN, NEVER_SEEN, SEEN
from domainbed_carft.jobs import records as job_records
from domainbed_carft.results.comparisons import student_interval
from domainbed_carft.suites import records as suite_records

ZERO_SHOT = "CLIPZeroShot"
CARFT, ERM = "CARFT", "CLIPFineTune"  # in a sweep without variants
TRAINED_STYLES = emoji_styles.names(SEEN)
#: Of the records of a job the first of these weights counts.
WEIGHTS = ("model_best.pkl", "model.pkl")


class Score(NamedTuple):
    """The accuracy in percent of one job in one style; ``method``: algorithm and variant."""

    method: str
    style: str
    target: int
    trial: int
    accuracy: float


class GroupMean(NamedTuple):
    """The mean over the styles of a group, and the range of their values."""

    mean: float
    lowest: float
    highest: float

    def as_text(self) -> str:
        """The mean with its sign, and the range in parentheses."""
        return f"{self.mean:+.1f} ({self.lowest:+.1f} to {self.highest:+.1f})"


def read_scores(folder: Path) -> Iterator[Score]:
    """The scores of all jobs that were evaluated on the suite EmojiUnseen."""
    runs, _ = job_records.read([folder])
    for run in runs:
        _, algorithm, (target, *_), trial, _ = run.job.key
        parent = Path(run.folder).parent
        variant = "" if parent.resolve() == folder.resolve() else f" ({parent.name})"
        for style, scored in read_sets(Path(run.folder)).items():
            is_trained_on = style in TRAINED_STYLES and style != TRAINED_STYLES[target]
            if not is_trained_on:
                accuracy = 100 * scored["accuracy"]
                yield Score(algorithm + variant, style, target, trial, accuracy)


def read_sets(job: Path) -> Mapping[str, Mapping[str, Any]]:
    """Style -> its figures in the job's record of the suite EmojiUnseen; empty without one."""
    of_weights = {
        record["weights"]: record["sets"]
        for record in suite_records.read(job, warnings=[])
        if record["suite"] == emoji.UNSEEN and record["wise_ft_alpha"] is None
    }
    return next((of_weights[name] for name in WEIGHTS if name in of_weights), {})


def gains_by_style(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Method -> style -> mean gain over zero-shot CLIP's job of the same target and trial."""
    baseline = {s[1:4]: s.accuracy for s in scores if s.method.startswith(ZERO_SHOT)}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if not score.method.startswith(ZERO_SHOT) and score[1:4] in baseline:
            found[score.method][score.style].append(score.accuracy - baseline[score[1:4]])
    return {
        method: {style: sum(gains) / len(gains) for style, gains in by_style.items()}
        for method, by_style in found.items()
    }


def group_mean(gains: Mapping[str, float], label: str) -> GroupMean:
    """The mean gain over the styles with this label."""
    values = [gains[style] for style in emoji_styles.names(label) if style in gains]
    return GroupMean(sum(values) / len(values), min(values), max(values))


def table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row a method, the highest gain in never-seen styles first."""
    rows = []
    for method, gains in gains_by_style(scores).items():
        seen, family_seen, never_seen = (
            group_mean(gains, label) for label in (SEEN, FAMILY_SEEN, NEVER_SEEN)
        )
        row = {
            "gain over zero-shot": method,
            "seen": seen.as_text(),
            "family seen": family_seen.as_text(),
            "never seen": never_seen.as_text(),
            "seen - never": f"{seen.mean - never_seen.mean:+.1f}",
        }
        rows.append((never_seen.mean, row))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def advantages(scores: Sequence[Score]) -> dict[str, dict[tuple[int, int], float]]:
    """CARFT minus ERM in points, by group of styles and (target, trial).

    The never-seen styles count by their mean. "seen - never" is the difference of the other two.
    """
    accuracies = {score[:4]: score.accuracy for score in scores}

    def difference(style: str, target: int, trial: int) -> float:
        carft, erm = (accuracies[name, style, target, trial] for name in (CARFT, ERM))
        return carft - erm

    by_group: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for method, style, target, trial in accuracies:
        if method == CARFT and style == TRAINED_STYLES[target]:
            seen = difference(style, target, trial)
            never_seen = [difference(n, target, trial) for n in emoji_styles.names(NEVER_SEEN)]
            never = sum(never_seen) / len(never_seen)
            groups = {"seen": seen, "never seen": never, "seen - never": seen - never}
            for group, value in groups.items():
                by_group[group][target, trial] = value
    return by_group


def table_of_advantages(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row a group of styles: the mean of `advantages`, with 95% intervals by Student's t."""
    rows = []
    for group, values in advantages(scores).items():
        row = {"CARFT minus ERM": group, "mean": f"{sum(values.values()) / len(values):+.1f}"}
        for place, unit in enumerate(("targets", "trials")):
            by_unit: dict[int, list[float]] = defaultdict(list)
            for pair, value in values.items():
                by_unit[pair[place]].append(value)
            low, high = student_interval([sum(each) / len(each) for each in by_unit.values()])
            row[f"over {len(by_unit)} {unit}"] = f"{low:+.1f} to {high:+.1f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="output folder of the sweep")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    arguments = parser.parse_args()
    scores = list(read_scores(arguments.sweep))
    if not scores:
        parser.error(f"no job in {arguments.sweep} was evaluated with --suite {emoji.UNSEEN}")
    style = "github" if arguments.markdown else "simple"
    for rows in (table(scores), table_of_advantages(scores)):
        print(tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main()
