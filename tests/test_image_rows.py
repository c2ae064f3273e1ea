"""The file of an evaluation's per-image rows, and its summary."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results import evaluations
from domainbed_carft.results.evaluations import (
    EvaluatedSplit,
    EvaluationFacts,
    Temperature,
    ValidationSplit,
)

STEP = 300
COUNT = 500
CLASSES = [f"class {number}" for number in range(7)]
FACTS = EvaluationFacts(
    format=evaluations.FORMAT,
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
    splits=[EvaluatedSplit("art", 0, "env0_in", COUNT)],
    temperature=Temperature(1.3, 100, False),
    validation=[
        ValidationSplit("photo", 1, "env1_out", 100, 90),
        ValidationSplit("sketch", 2, "env2_out", 50, 30),
    ],
)


def random_rows():
    draw = np.random.default_rng(0)
    label, predicted, zero_shot = draw.integers(0, len(CLASSES), (3, COUNT)).astype(np.uint16)
    rows = np.empty(COUNT, evaluations.EVALUATED_ROW)
    rows["label"] = label
    rows["predicted"] = predicted
    rows["zero_shot"] = zero_shot
    rows["alignment"] = draw.normal(0.25, 0.03, COUNT)
    for prefix, top in zip(("", evaluations.SCALED), draw.uniform(0.2, 1, (2, COUNT))):
        rows[f"{prefix}top"] = top
        rows[f"{prefix}log_true"] = np.log(top) - 1
        rows[f"{prefix}sum_of_squares"] = top**2
    return rows


@pytest.fixture
def saved(tmp_path):
    evaluations.save_rows(tmp_path, random_rows(), FACTS)
    return tmp_path / f"evaluation_step{STEP}.npz"


def test_saved_rows_are_read_back_exactly_also_by_numpy(saved):
    rows, facts = evaluations.load_rows(saved.parent, STEP)
    assert facts == FACTS
    np.testing.assert_array_equal(rows, random_rows())
    with np.load(saved, allow_pickle=False) as by_numpy:
        assert np.array_equal(by_numpy["rows"], rows)


def with_member(content, name, data):
    """Replace the content of a member of a zip file."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, data if member == name else old)
    return file.getvalue()


def with_unknown_class(rows):
    rows["label"] = len(CLASSES)
    return rows


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
        lambda content: with_member(content, "rows.npy", npy(with_unknown_class(random_rows()))),
        lambda content: with_member(content, "rows.npy", npy(np.array([{}] * COUNT, object))),
    ],
    ids=["empty", "cut off", "flipped bit", "other facts", "unknown class", "pickle"],
)
def test_damaged_file_is_refused(saved, damage):
    content = saved.read_bytes()
    saved.write_bytes(damage(content))
    with pytest.raises(CarftError, match="is damaged, or was not written by"):
        evaluations.load_rows(saved.parent, STEP)

    saved.write_bytes(with_member(content, "", b""))
    np.testing.assert_array_equal(evaluations.load_rows(saved.parent, STEP)[0], random_rows())


def test_saved_summary_is_read_back_and_a_damaged_one_is_reported(tmp_path):
    figures = evaluations.measure_run(random_rows(), FACTS)
    evaluations.save_metrics(tmp_path, figures)
    assert evaluations.find_metrics(tmp_path, STEP, 0) == figures

    path = tmp_path / f"evaluation_step{STEP}.json"
    text = path.read_text()
    document = json.loads(text)
    document["splits"][0]["calibration"]["reliability"]["correct"] = [1, 2]
    path.write_text(json.dumps(document))
    problem = str(evaluations.find_metrics(tmp_path, STEP, 1))
    assert "splits.0.calibration.reliability.correct" in problem
    many = (text[:-100], text.replace('"accuracy": 0', '"accuracy": "0'), "[]", "1" * 5000)
    for number, damaged in enumerate(many, start=2):
        path.write_text(damaged)
        assert isinstance(evaluations.find_metrics(tmp_path, STEP, number), str)


def test_in_domain_accuracy_is_the_mean_over_training_environments():
    rows = random_rows()
    assert evaluations.measure_run(rows, FACTS).in_domain == pytest.approx((0.9 + 0.6) / 2)

    unmeasured = dataclasses.replace(FACTS, validation=[])
    assert evaluations.measure_run(rows, unmeasured).in_domain is None
    without_target = dataclasses.replace(unmeasured, test_envs=[])
    figures = evaluations.measure_run(rows, without_target)
    assert figures.in_domain == figures.splits[0].accuracy
