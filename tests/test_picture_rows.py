"""The file of what was measured picture by picture: small, whole, and no stranger's tool."""

import dataclasses
import json
import random
import zipfile

import numpy as np
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results import evaluations
from domainbed_carft.results.evaluations import (
    EvaluatedRows,
    EvaluatedSplit,
    EvaluationFacts,
    PictureRows,
    Temperature,
    ValidationSplit,
)

STEP = 300


def facts_of(pictures, num_classes, **changed):
    facts = EvaluationFacts(
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
        classes=[f"class {number}" for number in range(num_classes)],
        contexts=["a photo of a {}."],
        pictures=pictures,
        splits=[EvaluatedSplit("art", 0, "env0_in", pictures)],
        temperature=Temperature(1.3, 100, False),
        validation=[
            ValidationSplit("photo", 1, "env1_out", 100, 90),
            ValidationSplit("sketch", 2, "env2_out", 50, 30),
        ],
    )
    return dataclasses.replace(facts, **changed)


def random_rows(count, num_classes, seed=0):
    """Rows as a model's: probabilities of random logits."""
    draw = np.random.default_rng(seed)

    label = np.sort(draw.integers(0, num_classes, count)).astype(np.uint16)
    predicted = draw.integers(0, num_classes, count).astype(np.uint16)

    def rows():
        top = draw.uniform(0.2, 1, count)
        log_true = np.log(draw.uniform(0.01, 1, count))
        return PictureRows(label, predicted, top, log_true, top**2)

    return EvaluatedRows(
        zero_shot=draw.integers(0, num_classes, count).astype(np.uint16),
        alignment=draw.normal(0.25, 0.03, count).astype(np.float32),
        raw=rows(),
        scaled=rows(),
    )


def assert_equal_rows(first, second):
    for name in ("zero_shot", "alignment"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    for name in ("raw", "scaled"):
        pair = (dataclasses.astuple(getattr(rows, name)) for rows in (first, second))
        assert all(map(np.array_equal, *pair))


@pytest.fixture
def saved(tmp_path):
    """A folder with the rows of 500 pictures of 7 classes; the rows, their facts."""
    rows = random_rows(500, 7)
    facts = facts_of(500, 7)
    evaluations.save_rows(tmp_path, rows, facts)
    return tmp_path, rows, facts


def test_rows_come_back_to_the_bit_and_numpy_opens_the_file(saved):
    folder, rows, facts = saved
    loaded_rows, loaded_facts = evaluations.load_rows(folder, STEP)
    assert loaded_facts == facts
    assert_equal_rows(loaded_rows, rows)

    with np.load(folder / f"evaluation_step{STEP}.npz", allow_pickle=False) as by_numpy:
        assert np.array_equal(by_numpy["top"], rows.raw.top)


# In-splits: sketch of PACS, quickdraw of DomainNet.
@pytest.mark.parametrize(
    ("pictures", "num_classes", "most_bytes"), [(3144, 7, 1e6), (138_000, 345, 40e6)]
)
def test_a_file_is_small(tmp_path, pictures, num_classes, most_bytes):
    evaluations.save_rows(
        tmp_path, random_rows(pictures, num_classes), facts_of(pictures, num_classes)
    )
    assert (tmp_path / f"evaluation_step{STEP}.npz").stat().st_size < most_bytes


def test_a_flipped_bit_is_noticed_or_harmless(saved):
    folder, rows, facts = saved
    path = folder / f"evaluation_step{STEP}.npz"
    content = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(200):
        altered = bytearray(content)
        altered[draw.randrange(len(altered))] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        try:
            loaded_rows, loaded_facts = evaluations.load_rows(folder, STEP)
        except CarftError:
            refused += 1
        else:  # a bit of a date, say
            assert loaded_facts == facts
            assert_equal_rows(loaded_rows, rows)
    assert refused > 150


def test_a_file_that_is_cut_off_or_no_archive_is_refused(saved):
    folder, _, _ = saved
    path = folder / f"evaluation_step{STEP}.npz"
    content = path.read_bytes()
    for altered in (b"", content[:100], content[:-10], b"PK\3\4" + content, b"\0" * 5000):
        path.write_bytes(altered)
        if altered.endswith(content):  # a zip file may begin with anything
            continue
        with pytest.raises(CarftError):
            evaluations.load_rows(folder, STEP)


def rewritten(path, facts, **members):
    """The file with other facts, and members whose content is given."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {"facts.json": json.dumps(facts).encode(), **members}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("count", [10**7, -1, True])
def test_another_number_of_pictures_than_the_columns_have_is_refused(saved, count):
    folder, _, facts = saved
    content = dataclasses.asdict(facts)
    content["pictures"] = content["splits"][0]["pictures"] = count
    rewritten(folder / f"evaluation_step{STEP}.npz", content)
    with pytest.raises(CarftError, match="damaged"):
        evaluations.load_rows(folder, STEP)


def test_pickles_are_not_read(saved):
    folder, _, facts = saved
    objects = np.array([{"a": 1}] * 500, dtype=object)
    path = folder / "objects.npy"
    np.save(path, objects, allow_pickle=True)
    rewritten(
        folder / f"evaluation_step{STEP}.npz",
        dataclasses.asdict(facts),
        **{"top.npy": path.read_bytes()},
    )
    with pytest.raises(CarftError):
        evaluations.load_rows(folder, STEP)


def test_a_class_that_the_run_does_not_have_is_refused(tmp_path):
    rows = random_rows(500, 7)
    rows.raw.label[3] = 7
    evaluations.save_rows(tmp_path, rows, facts_of(500, 7))
    with pytest.raises(CarftError, match="has no valid rows; run carft evaluate"):
        evaluations.load_rows(tmp_path, STEP)


def test_a_summary_comes_back_and_a_damaged_one_does_not(saved):
    folder, rows, facts = saved
    figures = evaluations.measure_run(rows, facts)
    evaluations.save_figures(folder, figures)
    assert evaluations.find_figures(folder, STEP) == figures

    path = folder / f"evaluation_step{STEP}.json"
    text = path.read_text()
    for damaged in (text[:-100], text.replace('"ece": 0', '"ece": "0'), "[]", "{}", "1" * 5000):
        path.write_text(damaged)
        assert not isinstance(evaluations.find_figures(folder, STEP), evaluations.RunFigures)


def test_the_in_domain_accuracy_is_the_mean_over_the_environments_trained_on(saved):
    _, rows, facts = saved
    assert evaluations.measure_run(rows, facts).in_domain == pytest.approx((0.9 + 0.6) / 2)

    unmeasured = evaluations.measure_run(rows, dataclasses.replace(facts, validation=[]))
    assert unmeasured.in_domain is None

    left_nothing_out = dataclasses.replace(facts, test_envs=[], validation=[])
    figures = evaluations.measure_run(rows, left_nothing_out)
    assert figures.in_domain == figures.splits[0].accuracy


def test_a_summary_without_validation_splits_is_read(saved):
    """The packed records have none."""
    folder, rows, facts = saved
    figures = evaluations.measure_run(rows, dataclasses.replace(facts, validation=[]))
    evaluations.save_figures(folder, figures)
    path = folder / f"evaluation_step{STEP}.json"
    document = json.loads(path.read_text())
    del document["facts"]["validation"]
    path.write_text(json.dumps(document))
    assert evaluations.find_figures(folder, STEP) == figures


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("calibration reliability correct", [1, 2]),
        ("split pictures", 0),
        ("accuracy", "high"),
    ],
)
def test_a_summary_with_other_bins_or_types_is_refused(saved, place, value):
    folder, rows, facts = saved
    evaluations.save_figures(folder, evaluations.measure_run(rows, facts))
    path = folder / f"evaluation_step{STEP}.json"
    document = json.loads(path.read_text())

    *names, last_name = place.split()
    part = document["splits"][0]
    for name in names:
        part = part[name]
    part[last_name] = value
    path.write_text(json.dumps(document))
    problem = evaluations.find_figures(folder, STEP)
    assert f"has no valid splits.0.{'.'.join([*names, last_name])}" in str(problem)


def test_a_missing_summary_says_why(tmp_path):
    assert "weights of step 5 were not kept" in str(evaluations.find_figures(tmp_path, 5.0))
    (tmp_path / "model_best.pkl").touch()
    assert "run carft evaluate" in str(evaluations.find_figures(tmp_path, 5.0))
