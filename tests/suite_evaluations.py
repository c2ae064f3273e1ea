"""Evaluations on suites for tests of tables: made-up metrics next to a job's records."""

from __future__ import annotations

from domainbed_carft.jobs.job import IDENTITY
from domainbed_carft.results import metrics
from domainbed_carft.results.metrics import (
    Calibration,
    EvaluationFacts,
    EvaluationKey,
    ImageSetFacts,
    ImageSetMetrics,
    RunMetrics,
)
from domainbed_carft.suites import catalogue


def load(folder, step=0, suite="pets", alpha=None):
    """Return the metrics that a folder has on a suite."""
    return metrics.load_metrics(folder, EvaluationKey(step, suite, alpha))


def save(job, args, step, suite, accuracies, *, alpha=None, per_class=None, nll=None, **facts):
    """Save metrics with the ``accuracies`` of sets, and mean over the classes and NLL if given.

    A set with an accuracy below 0.1 is incomplete, like every set without calibration and flips.
    """
    names = [test_set.name for test_set in catalogue.get(suite).sets]
    image_sets = [
        ImageSetFacts(suite, names.index(name), name, 1000, is_complete=accuracy > 0.1)
        for name, accuracy in accuracies.items()
    ]
    parts = [
        ImageSetMetrics(
            accuracy=accuracies[image_set.name],
            mean_per_class=per_class,
            worst_class=None,
            calibration=Calibration(ece=0.1, nll=nll, brier=None, reliability=None),
            class_images=None,
            class_correct=None,
            image_set=image_set,
            zero_shot_accuracy=None,
            flips=None,
            scaled=None,
            temperature=None,
        )
        for image_set in image_sets
    ]
    described = EvaluationFacts(
        format=metrics.FORMAT,
        **{name: args[name] for name in IDENTITY},
        test_envs=list(args["test_envs"]),
        step=step,
        weights="",
        data="",
        prompts_digest="",
        clip_digest="",
        classes=["class"],
        contexts=["a photo of a {}."],
        images=1000 * len(image_sets),
        image_sets=image_sets,
        temperature=None,
        suite=suite,
        wise_ft_alpha=alpha,
        **{"unmeasured": "not recorded", **facts},
    )
    metrics.save_metrics(job, RunMetrics(described, parts))
