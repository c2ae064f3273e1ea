"""Measuring weights made of several runs: on validation splits, on all splits, or on a suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.measuring import (
    LoadingOptions,
    SplitAccuracies,
    count_predictions,
    run_predictor,
    split_accuracies,
)
from domainbed_carft.runs.saved_checks import UNKNOWN_SOUP
from domainbed_carft.runs.soup_members import Member, mean_weights, shared_content
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suite_evaluation import SuiteTest, suite_test
from domainbed_carft.runs.suite_scores import SuiteScores


@dataclass(frozen=True)
class SoupMeasurement:
    """Measures weights that were made of several runs by one ``run``, whose weights are exchanged.

    ``content``: what the files of such weights have in common. ``validation_splits``: those of
    ``splits`` that choose. ``test``: the suite, if there is one.
    """

    run: saved.TrainedRun
    content: Mapping[str, Any]
    options: LoadingOptions
    splits: Sequence[Split]
    validation_splits: Sequence[Split]
    test: SuiteTest | None

    @classmethod
    def of(
        cls, members: Sequence[Member], options: LoadingOptions, suite: str | None
    ) -> SoupMeasurement:
        """Find the pictures; raises CarftError if there are none to choose by."""
        content = shared_content(members, options.data_dir)
        weights = mean_weights(members)
        run = saved.run_of(
            {**content, "soup": UNKNOWN_SOUP, "model_dict": weights}, members[0].run.path
        )

        test = suite_test(suite, run, options) if suite else None
        splits = splitting.splits(run, options.data_dir)
        validation_splits = _validation_splits(splits, run.path)
        return cls(run, content, options, splits, validation_splits, test)

    def validation_accuracy(self, members: Sequence[Member]) -> float:
        """The mean accuracy of the members' mean on the validation splits, as a share of 1."""
        accuracy = self._accuracies(mean_weights(members), self.validation_splits).in_domain
        assert accuracy is not None  # they have pictures
        return accuracy

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[SplitAccuracies, SuiteScores | None]:
        """The accuracies of a state dict on the suite, or on all splits without one."""
        if not self.test:
            return self._accuracies(weights, self.splits), None

        # The in-splits take far longer than the suite.
        accuracies = self._accuracies(weights, self.validation_splits)
        (suite_scores,) = self.test.scores(run_predictor(self.run, self.options.device))
        return accuracies, suite_scores

    def _accuracies(
        self, weights: Mapping[str, Tensor], splits: Sequence[Split]
    ) -> SplitAccuracies:
        self.run.algorithm.load_state_dict(weights)
        (counts,) = count_predictions(
            splits,
            run_predictor(self.run, self.options.device),
            self.options,
            num_classes=len(self.run.classes),
        )
        return split_accuracies(splits, counts)


def _validation_splits(splits: Sequence[Split], path: Path) -> list[Split]:
    """The out-splits of the training environments; CarftError if there is none."""
    validation_splits = [
        split for split in splits if not split.is_target and split.name.endswith("_out")
    ]
    if not any(map(len, validation_splits)):
        raise CarftError(f"{path} has no out-split of a training environment to choose by")
    return validation_splits
