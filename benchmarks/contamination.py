"""Compare gains over zero-shot CLIP in seen, family-seen and never-seen styles.

    carft sweep launch contamination --output_dir OUT
    carft evaluate OUT --suite EmojiUnseen
    python benchmarks/contamination.py OUT [--markdown]

Each job was trained on three of the four styles of EmojiStyles. Its "seen" style is the fourth,
which was in the CLIP model's pre-training but not in the job's training. A gain is a method's
accuracy minus zero-shot CLIP's in the same style, in points, averaged over trials and targets. The
first table has the mean gain over the styles of a group, with the lowest and the highest style in
parentheses. This is a range and not an interval, because there are few styles, and styles of a
family are alike. "Seen - never" is the difference of the two means. The second table has CARFT
minus CLIPFineTune with 95% intervals over the targets, for these styles alone.

Each variant of a sweep has a row. Jobs of a search's first stage are not part of the tables. The
weights are the ones that training-domain validation selected, if they were evaluated, otherwise the
last ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from domainbed_carft.data import emoji, emoji_styles
from domainbed_carft.data.emoji_styles import FAMILY_SEEN, NEVER_SEEN, SEEN
from domainbed_carft.jobs import records
from domainbed_carft.results.comparisons import student_interval
from domainbed_carft.results.metrics import list_suite_evaluations, load_metrics

ZERO_SHOT = "CLIPZeroShot"
PAIR = ("CARFT", "CLIPFineTune")
TRAINED_STYLES = emoji_styles.names(SEEN)


class Score(NamedTuple):
    """The accuracy of one job in one style."""

    method: str  # algorithm and variant
    style: str
    target: int
    trial: int
    accuracy: float  # in percent


class GroupMean(NamedTuple):
    """The mean over the styles of a group, and the range of their values."""

    mean: float
    lowest: float
    highest: float

    def as_text(self) -> str:
        """Format the mean with its sign, and the range in parentheses."""
        return f"{self.mean:+.1f} ({self.lowest:+.1f} to {self.highest:+.1f})"


def read_scores(folder: Path) -> Iterator[Score]:
    """Yield the scores of all jobs that were evaluated on the suite EmojiUnseen."""
    runs, _ = records.read([folder])
    for run in runs:
        _, algorithm, (target, *_), trial, _ = run.job.key
        parent = Path(run.folder).parent
        variant = "" if parent.resolve() == folder.resolve() else f" ({parent.name})"
        for style, accuracy in read_accuracies(Path(run.folder)).items():
            if style not in TRAINED_STYLES or style == TRAINED_STYLES[target]:
                yield Score(algorithm + variant, style, target, trial, 100 * accuracy)


def read_accuracies(job: Path) -> Mapping[str, float]:
    """Map each style to the accuracy of the job's evaluation on EmojiUnseen; empty without one."""
    keys = [
        key
        for key in list_suite_evaluations(job)
        if key.suite == emoji.UNSEEN and key.alpha is None
    ]
    if not keys:
        return {}
    # The selected checkpoint is never after the last one.
    metrics = load_metrics(job, min(keys, key=lambda key: key.step))
    return {part.image_set.name: part.accuracy for part in metrics.image_sets}


def gains_by_style(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Map method and style to the mean gain over zero-shot CLIP of the same target and trial."""
    baseline = {s[1:4]: s.accuracy for s in scores if s.method.startswith(ZERO_SHOT)}
    gains_by_method: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if not score.method.startswith(ZERO_SHOT) and score[1:4] in baseline:
            gain = score.accuracy - baseline[score[1:4]]
            gains_by_method[score.method][score.style].append(gain)
    return {
        method: {style: sum(gains) / len(gains) for style, gains in by_style.items()}
        for method, by_style in gains_by_method.items()
    }


def group_mean(gains: Mapping[str, float], label: str) -> GroupMean:
    """Average the gains over the styles with this label."""
    values = [gains[style] for style in emoji_styles.names(label) if style in gains]
    return GroupMean(sum(values) / len(values), min(values), max(values))


def table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """Make a row for each method, sorted by the gain in never-seen styles."""
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


def lead_table(scores: Sequence[Score]) -> list[dict[str, str]]:
    """Make a row for each group of styles: the lead of PAIR's first method over the second."""
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
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    arguments = parser.parse_args()
    scores = list(read_scores(arguments.sweep))
    if not scores:
        parser.error(
            f"no job in {arguments.sweep} was evaluated on {emoji.UNSEEN}; run carft evaluate "
            f"{arguments.sweep} --suite {emoji.UNSEEN}"
        )
    style = "github" if arguments.markdown else "simple"
    for rows in filter(None, (table(scores), lead_table(scores))):
        print(tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main()
