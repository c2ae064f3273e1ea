"""Gains over zero-shot CLIP in styles that the CLIP has seen, whose family it has seen, and others.

    carft sweep launch contamination --output_dir OUT
    carft evaluate OUT --suite EmojiUnseen
    python benchmarks/contamination.py OUT [--markdown]

Each job was trained on three of the four styles of EmojiStyles. Its "seen" style is the fourth,
which the CLIP knows from pre-training and the job has not been trained on. A gain is a method's
accuracy minus zero-shot CLIP's in the same style, in points, the mean over trials and targets; then
the mean over the styles of a group, with the lowest and the highest style's in parentheses. That is
a range, not an interval: the styles are few, and those of a family are alike. "Seen - never" is the
difference of the two means. The second table has CARFT minus CLIPFineTune with 95% intervals over
the targets, for these styles alone.

A sweep with variants has a row for each, and a job of its first stage none. The weights are those
that training-domain validation selected, where the job has kept them.
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
PAIR = ("CARFT", "CLIPFineTune")
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


def table_of_leads(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row a group of styles: the lead of PAIR's first method, with an interval over targets."""
    first, second = ({s[1:4]: s.accuracy for s in scores if s.method == name} for name in PAIR)
    label_of_style = {style.name: style.label for style in emoji_styles.styles()}
    leads: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place in sorted(first.keys() & second.keys()):
        style, target, _ = place
        leads[label_of_style[style]][target].append(first[place] - second[place])
    if not leads:
        return []

    by_group = {
        label: [sum(values) / len(values) for values in leads[label].values()]
        for label in (SEEN, FAMILY_SEEN, NEVER_SEEN)
    }
    pairs = zip(by_group[SEEN], by_group[NEVER_SEEN], strict=True)
    by_group["seen - never"] = [seen - never_seen for seen, never_seen in pairs]
    return [
        {" minus ".join(PAIR): group, "points, 95% interval over targets": _interval_text(values)}
        for group, values in by_group.items()
    ]


def _interval_text(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    low, high = student_interval(values)
    return f"{mean:+.1f}" if low is None else f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="output folder of the sweep")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    arguments = parser.parse_args()
    scores = list(read_scores(arguments.sweep))
    if not scores:
        parser.error(f"no job in {arguments.sweep} was evaluated with --suite {emoji.UNSEEN}")
    style = "github" if arguments.markdown else "simple"
    for rows in filter(None, (table(scores), table_of_leads(scores))):
        print(tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main()
