"""The test sets of ImageNet: lists, scores, copies with their traps, records."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from data_trees import PICTURE, carft, grow

from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.method import prompts
from domainbed_carft.runs import suites
from domainbed_carft.suites import imagenet, records

SETS = {test_set.name: test_set for test_set in imagenet.suite().sets}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_class_lists_have_their_known_digests():
    """Those of timm's, OpenAI's and ObjectNet's lists, as others publish them."""
    assert sha256("\n".join(imagenet.wordnet_ids())).startswith("385e0240499426c0")
    names = prompts.class_names({"class_names": "imagenet"}, 1000)
    assert sha256(json.dumps(names)).startswith("6ef5246539bb")
    assert tuple(names) == imagenet.suite().classes

    for name, digest in (("ImageNet-A", "f6aa4b23244554d9"), ("ImageNet-R", "e19a59d84e3746fa")):
        test_set = SETS[name]
        assert sha256("\n".join(test_set.classes)).startswith(digest)
        ids = [imagenet.wordnet_ids()[place] for (place,) in test_set.groups]
        assert ids == [*test_set.classes]

    objectnet = SETS["ObjectNet"]
    table = dict(zip(objectnet.classes, map(list, objectnet.groups)))
    assert sha256(json.dumps(table, sort_keys=True, separators=(",", ":"))).startswith("94c146488a")
    assert [*table] == sorted(table)


@pytest.mark.parametrize("name", SETS)
def test_scores_are_the_maximum_over_each_group(name):
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    groups = SETS[name].groups
    expected = [[max(row[place] for place in group) for group in groups] for row in logits.tolist()]
    assert suites.group_logits(logits, groups).tolist() == expected


@pytest.mark.parametrize(("right", "count"), [(0, 7), (8, 10), (34_150, 50_000), (3, 3)])
def test_wilsons_interval_solves_its_equation(right, count):
    quantile = 1.959963984540054  # of a two-sided 95% interval
    for share in suites.wilson_interval(right, count):
        off = (right / count - share) ** 2 - quantile**2 * share * (1 - share) / count
        assert off == pytest.approx(0, abs=1e-12)


# Copies


def plant(root, name, folders):
    """A copy of the test set with an image in each of these class folders."""
    place = SETS[name].find.places[0]
    return grow(root, {place: dict.fromkeys(folders, 1)}, PICTURE) / place


@pytest.mark.parametrize("form", ["{}", "{:04}"])
def test_folders_that_are_numbers_are_labels(tmp_path, form):
    """Sorted as text 10 would come second."""
    plant(tmp_path, "ImageNet-V2", [*map(form.format, range(12)), imagenet.wordnet_ids()[12]])
    copy = SETS["ImageNet-V2"].find(tmp_path)
    labels = {path.split("/")[-2]: label for path, label in copy.samples}
    assert labels == {**{form.format(n): n for n in range(12)}, imagenet.wordnet_ids()[12]: 12}


def test_a_class_without_an_image_is_named_and_shifts_no_label(tmp_path):
    names = SETS["ImageNet-A"].classes
    plant(tmp_path, "ImageNet-A", [*names[:7], *names[8:]])
    copy = SETS["ImageNet-A"].find(tmp_path)
    missing, count = copy.problems
    assert (
        f"no picture of 1 of its 200 classes; expected them in the folders '{names[7]}'" in missing
    )
    assert count == "199 pictures, expected 7,500"
    assert [label for _, label in sorted(copy.samples)] == [*range(7), *range(8, 200)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / "n0000").mkdir(), "unexpected class folders: 'n0000'"),
        (lambda root: (root / "n01440764/0.jpg").write_bytes(b""), "1 empty file"),
        (lambda root: (root / "n01440764/more.jpg").write_bytes(PICTURE), "1,001 pictures, expec"),
    ],
)
def test_an_incomplete_test_set_is_reported(tmp_path, change, problem):
    """Sorted beside the images as they are unpacked, which are in no class folder."""
    root = plant(tmp_path, "ImageNet", imagenet.wordnet_ids())
    root.rename(tmp_path / "imagenet/val_in_folder")
    grow(tmp_path, {"imagenet": {"val": 2}})
    find = dataclasses.replace(SETS["ImageNet"].find, picture_count=1000, pictures_per_class=1)
    assert not find(tmp_path).problems

    change(tmp_path / "imagenet/val_in_folder")
    assert problem in "; ".join(find(tmp_path).problems)


def test_an_unsorted_validation_set_is_recognised_with_the_remedy(tmp_path):
    grow(tmp_path, {"imagenet": {"val": 3}}, PICTURE)
    done = carft("verify", "ImageNet", "--data_dir", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/imagenet/val has 3 pictures and no class folder; sort them" in done.stdout


def test_objectnet_has_further_folders_and_is_no_training_data(tmp_path):
    classes = SETS["ObjectNet"].classes
    root = plant(tmp_path, "ObjectNet", [*classes, "a_folder_not_used"])
    copy = SETS["ObjectNet"].find(tmp_path)
    assert copy.problems == ["113 pictures, expected 18,574"]
    assert [label for _, label in sorted(copy.samples)] == [*range(113)]
    for path in (root.parent, root):
        done = carft("verify", path)
        assert done.returncode == 1 and "whose licence forbids to train" in done.stdout


# Records


def suite_record(**changes):
    scores = {"n": 8, "right": 4, "accuracy": 0.5, "ece": 0.1, "complete": True}
    record = {"suite": "DTD", "weights": "model.pkl", "step": 3, "wise_ft_alpha": None}
    record |= {"weights_digest": "0" * 64, "algorithm": "CARFT", "sets": {"DTD": scores}}
    return {**record, "mean": 0.5, "mean_without_objectnet": None, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": {"DTD": {"accuracy": "0.5", "complete": True}}},
        {"sets": {"DTD": {"accuracy": math.nan, "complete": True}}},
        {"sets": {"DTD": {"accuracy": 0.5}}},
        {"sets": {"DTD": {"accuracy": 0.5, "complete": True, "mean_per_class": [1]}}},
        {"sets": [0.5]},
        {"weights": ["model.pkl"]},
        {"wise_ft_alpha": "half"},
    ],
)
def test_a_damaged_suite_record_is_left_out_and_loses_no_other(tmp_path, changes):
    records.append(tmp_path, suite_record(**changes))
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"suite": "ima')
    records.append(tmp_path, suite_record())
    warnings = []
    assert records.read(tmp_path, warnings) == [suite_record()]
    first, second = describe_warnings(warnings)
    assert "line 1 is not a complete record" in first and "line 2 is not" in second
