"""Figures of random predictions, for tests of tables and reports."""

import json

import numpy as np

from domainbed_carft.jobs.job import IDENTITY
from domainbed_carft.results import metrics
from domainbed_carft.results.metrics import (
    EvaluationFacts,
    ImageSetFacts,
    Temperature,
    ValidationAccuracy,
)


def write_figures(sweep, num_classes=7):
    """Write figures of random predictions next to the records, for each job and step.

    The number of images differs between jobs, so that pooled figures differ from mean figures.
    """
    draw = np.random.default_rng(0)
    for path in sorted(sweep.rglob("results.jsonl")):
        n_images = int(draw.integers(40, 160))
        for record in map(json.loads, path.read_text().splitlines()):
            facts = _facts(record, n_images, num_classes)
            predictions = _random_predictions(draw, n_images, num_classes)
            metrics.save_metrics(path.parent, metrics.measure_run(predictions, facts))


def _facts(record, n_images, num_classes):
    (target,) = record["args"]["test_envs"]
    return EvaluationFacts(
        format=metrics.FORMAT,
        **{name: record["args"][name] for name in IDENTITY},
        test_envs=[target],
        step=record["step"],
        weights="a" * 64,
        data="b" * 64,
        prompts_digest="c" * 16,
        clip_digest="d" * 64,
        classes=[f"class {number}" for number in range(num_classes)],
        contexts=["a photo of a {}."],
        images=n_images,
        image_sets=[ImageSetFacts(f"env{target}", target, f"env{target}_in", n_images)],
        temperature=Temperature(1.3, 100, False),
        validation=[ValidationAccuracy(ImageSetFacts("env9", 9, "env9_out", 100), 80 + target)],
    )


def _random_predictions(draw, n_images, num_classes):
    classes = draw.integers(0, num_classes, (3, n_images)).astype(np.uint16)
    predicted = np.where(draw.random(n_images) < 0.5, classes[0], classes[1])

    predictions = np.empty(n_images, metrics.RECORDED_PREDICTION)
    predictions["label"] = classes[0]
    predictions["predicted"] = predicted
    predictions["zero_shot"] = np.where(draw.random(n_images) < 0.4, classes[0], classes[2])
    predictions["alignment"] = draw.normal(0.22, 0.04, n_images)
    for prefix in ("", metrics.SCALED):
        predictions[f"{prefix}top"] = draw.uniform(0.2, 1, n_images)
        predictions[f"{prefix}log_true"] = np.log(draw.uniform(0.01, 1, n_images))
        predictions[f"{prefix}sum_of_squares"] = predictions[f"{prefix}top"] ** 2
    return predictions
