"""How much zero-shot ability a run has left: its image encoder under the original text head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.runs import saved
from domainbed_carft.runs.measuring import LoadingOptions
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.suite_evaluation import SuiteTest, run_facts
from domainbed_carft.runs.suite_pictures import locate_sets
from domainbed_carft.runs.suite_scores import SuiteScores
from domainbed_carft.runs.zero_shot_head import ZeroShotHead
from domainbed_carft.suites import catalogue


@dataclass(frozen=True)
class RetainedAbility:
    """A suite under one text head: with the original image encoder, and with the run's.

    ``model``: which run, as `suite_evaluation.run_facts`. Pictures are made as the original CLIP's.
    """

    model: Mapping[str, Any]
    original: SuiteScores
    fine_tuned: SuiteScores

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set is there but could not be read."""
        return bool(self.original.unread)

    def as_dict(self) -> dict[str, Any]:
        """The scores, for JSON."""
        return {
            **self.model,
            "suite": self.original.suite,
            "original": self.original.as_dict(),
            "fine_tuned": self.fine_tuned.as_dict(),
        }


def evaluate_retained(
    suite_name: str, run: TrainedRun, options: LoadingOptions, original: str | None = None
) -> RetainedAbility:
    """The run's image encoder on a suite, under the original text head and the suite's prompts.

    The suite's classes need not be the run's. ``original``: the CLIP that the run started from,
    needed unless that is a published one. Both encoders predict the same pictures in float32.

    Raises CarftError for an unknown suite, without one of its sets, and as `saved.original_clip`.
    """
    suite = catalogue.get(suite_name)
    located_sets = locate_sets(suite, options.data_dir or run.args.get("data_dir"))
    head = ZeroShotHead.of_suite(suite, saved.original_clip(run, original), options.device)
    encoder = run.algorithm.encoder.to(options.device).eval()

    test = SuiteTest(suite, located_sets, head.plan, options)
    predict = head.predictor([head.encoder, encoder])
    original_scores, fine_tuned_scores = test.scores(predict, variants=2)
    return RetainedAbility(run_facts(run), original_scores, fine_tuned_scores)
