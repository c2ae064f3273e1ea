"""The scores of a model on a suite of test sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95% interval


@dataclass(frozen=True)
class TestSetScores:
    """One model on one test set; accuracy, interval and error are shares of 1.

    ``interval``: Wilson's of the accuracy, at 95%. ``is_complete``: whether the copy has all of the
    set's pictures. ``mean_per_class``: None unless others report it of this set.
    """

    __test__ = False  # no test of pytest's

    pictures: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    ece: float
    is_complete: bool
    mean_per_class: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The scores under the keys of JSON documents and of suites.jsonl."""
        document: dict[str, Any] = {
            "n": self.pictures,
            "right": self.correct,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "ece": self.ece,
            "complete": self.is_complete,
        }
        if self.mean_per_class is not None:
            document["mean_per_class"] = self.mean_per_class
        return document


@dataclass(frozen=True)
class SuiteScores:
    """One model on a suite.

    ``sets``: by name, without those that are missing or cannot be read. ``means``: the mean of the
    shifted sets, and without one of them, by key; None unless each of its sets is complete.
    ``problems``: sentences by set. ``unread``: the sets that could not be read.
    """

    suite: str
    sets: Mapping[str, TestSetScores]
    means: Mapping[str, float | None]
    problems: Mapping[str, list[str]]
    unread: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The scores, for JSON; the means are keys beside the others."""
        return {
            "suite": self.suite,
            "sets": {name: scores.as_dict() for name, scores in self.sets.items()},
            **self.means,
            "problems": dict(self.problems),
            "unread": self.unread,
        }


@dataclass(frozen=True)
class SuiteEvaluation:
    """The scores of a model on a suite, and which model it is.

    ``model``: the facts that the document and the record begin with; of a run those of `run_facts`,
    of a CLIP without a run its name as ``clip``.
    """

    model: Mapping[str, Any]
    scores: SuiteScores

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set is there but could not be read."""
        return bool(self.scores.unread)

    def as_dict(self) -> dict[str, Any]:
        """Model and scores, for JSON."""
        return {**self.model, **self.scores.as_dict()}


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a binomial share (JASA 22, 1927), ``correct`` of ``count`` > 0."""
    z = NORMAL_QUANTILE
    share = correct / count
    spread = z * z / count

    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)
