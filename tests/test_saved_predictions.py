"""The file of an evaluation's per-image predictions, and its summary."""

import dataclasses
import io
import json
import re
import zipfile

import numpy as np
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results import metrics
from domainbed_carft.results.metrics import (
    EvaluationFacts,
    ImageSetFacts,
    Temperature,
    ValidationAccuracy,
)

STEP = 300
KEY = metrics.EvaluationKey(STEP)
COUNT = 500
CLASSES = [f"class {number}" for number in range(7)]
FACTS = EvaluationFacts(
    format=metrics.FORMAT,
    dataset="PACS",
    algorithm="CARFT",
    test_envs=[0],
    trial_seed=0,
    hparams_seed=0,
    step=STEP,
    weights="a" * 64,
    data="b" * 64,
    prompts_digest="c" * 16,
    clip_digest="d" * 64,
    classes=CLASSES,
    contexts=["a photo of a {}."],
    images=COUNT,
    image_sets=[ImageSetFacts("art", 0, "env0_in", COUNT)],
    temperature=Temperature(1.3, 100, False),
    validation=[
        ValidationAccuracy(ImageSetFacts("photo", 1, "env1_out", 100, is_target=False), 90),
        ValidationAccuracy(ImageSetFacts("sketch", 2, "env2_out", 50, is_target=False), 30),
    ],
)


def random_predictions():
    draw = np.random.default_rng(0)
    label, predicted, zero_shot = draw.integers(0, len(CLASSES), (3, COUNT)).astype(np.uint16)
    predictions = np.empty(COUNT, metrics.RECORDED_PREDICTION)
    predictions["label"] = label
    predictions["predicted"] = predicted
    predictions["zero_shot"] = zero_shot
    predictions["alignment"] = draw.normal(0.25, 0.03, COUNT)
    for prefix, top in zip(("", metrics.SCALED), draw.uniform(0.2, 1, (2, COUNT))):
        predictions[f"{prefix}top"] = top
        predictions[f"{prefix}log_true"] = np.log(top) - 1
        predictions[f"{prefix}sum_of_squares"] = top**2
    return predictions


@pytest.fixture
def saved(tmp_path):
    metrics.save_predictions(tmp_path, random_predictions(), FACTS)
    return tmp_path / f"evaluation_step{STEP}.npz"


def test_saved_rows_are_read_back_exactly_also_by_numpy(saved):
    predictions, facts = metrics.load_predictions(saved.parent, KEY)
    assert facts == FACTS
    np.testing.assert_array_equal(predictions, random_predictions())
    with np.load(saved, allow_pickle=False) as by_numpy:
        assert np.array_equal(by_numpy["predictions"], predictions)


def with_member(content, name, data):
    """Replace the content of a member of a zip file."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, data if member == name else old)
    return file.getvalue()


def with_unknown_class(predictions):
    predictions["label"] = len(CLASSES)
    return predictions


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-10],
        lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        lambda content: with_member(content, "facts.json", b'{"images": 10000000}'),
        lambda content: with_member(
            content, "predictions.npy", npy(with_unknown_class(random_predictions()))
        ),
        lambda content: with_member(
            content, "predictions.npy", npy(np.array([{}] * COUNT, object))
        ),
    ],
    ids=["empty", "cut off", "flipped bit", "other facts", "unknown class", "pickle"],
)
def test_damaged_file_is_refused(saved, damage):
    content = saved.read_bytes()
    saved.write_bytes(damage(content))
    with pytest.raises(CarftError, match="is damaged, or was not written by"):
        metrics.load_predictions(saved.parent, KEY)

    saved.write_bytes(with_member(content, "", b""))
    np.testing.assert_array_equal(
        metrics.load_predictions(saved.parent, KEY)[0], random_predictions()
    )


def test_saved_summary_is_read_back_and_a_damaged_one_is_reported(tmp_path):
    figures = metrics.measure_run(random_predictions(), FACTS)
    metrics.save_metrics(tmp_path, figures)
    assert metrics.load_metrics(tmp_path, KEY) == figures

    path = tmp_path / f"evaluation_step{STEP}.json"
    text = path.read_text()
    document = json.loads(text)
    document["image_sets"][0]["calibration"]["reliability"]["correct"] = [1, 2]
    path.write_text(json.dumps(document))
    with pytest.raises(CarftError, match=r"image_sets\.0\.calibration\.reliability\.correct"):
        metrics.load_metrics(tmp_path, KEY)
    out_of_range = [re.sub(r'("accuracy": )0\.\d+', rf"\g<1>{x}", text) for x in ("NaN", "1.5")]
    for damaged in (text[:-100], *out_of_range, "[]", "1" * 5000):
        path.write_text(damaged)
        with pytest.raises(CarftError, match="is damaged, or was not written by"):
            metrics.load_metrics(tmp_path, KEY)


def test_files_of_suites_are_named_by_suite_and_alpha(tmp_path):
    """Each reads back as its own; the files of the dataset are not among those of suites."""
    measured = metrics.measure_run(random_predictions(), FACTS)
    keys = [KEY, *(metrics.EvaluationKey(STEP, "DTD", alpha) for alpha in (None, 0.0, 1 / 3))]
    for key in keys:
        facts = dataclasses.replace(FACTS, suite=key.suite, wise_ft_alpha=key.alpha)
        metrics.save_metrics(tmp_path, dataclasses.replace(measured, facts=facts))
    names = [f"evaluation_step300{part}" for part in ("", "_DTD", "_DTD_alpha0.0")]
    assert {f"{name}.json" for name in names} < {path.name for path in tmp_path.iterdir()}
    assert sorted(metrics.list_suite_evaluations(tmp_path), key=str) == sorted(keys[1:], key=str)
    for key in keys:
        assert metrics.load_metrics(tmp_path, key).facts.key == key


def test_evaluation_covers_equal_test_sets_only():
    """Further test sets, and a temperature that is not expected, do no harm."""
    image_sets = [
        ImageSetFacts("DTD", number, name, 250, digest=digest)
        for number, (name, digest) in enumerate((("one", "1"), ("two", "2")))
    ]
    facts = dataclasses.replace(FACTS, suite="DTD", image_sets=image_sets)
    assert facts.covers(facts)
    assert facts.covers(dataclasses.replace(facts, image_sets=image_sets[1:], temperature=None))
    for changes in (
        {"weights": "e" * 64},
        {"prompts_digest": "e" * 16},
        {"temperature": Temperature(1.4, 100, False)},
        {"image_sets": [dataclasses.replace(image_sets[0], digest="3")]},
        {"image_sets": [dataclasses.replace(image_sets[0], is_complete=False)]},
        {"image_sets": [dataclasses.replace(image_sets[0], name="three")]},
    ):
        assert not facts.covers(dataclasses.replace(facts, **changes)), changes


def test_in_domain_accuracy_is_the_mean_over_training_environments():
    predictions = random_predictions()
    assert metrics.measure_run(predictions, FACTS).in_domain == pytest.approx((0.9 + 0.6) / 2)

    unmeasured = dataclasses.replace(FACTS, validation=[])
    assert metrics.measure_run(predictions, unmeasured).in_domain is None
    without_target = dataclasses.replace(unmeasured, test_envs=[])
    figures = metrics.measure_run(predictions, without_target)
    assert figures.in_domain == figures.image_sets[0].accuracy
