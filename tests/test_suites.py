"""The test sets of ImageNet: lists, scores, copies with their traps, `carft data`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter

import pytest
import torch
from data_trees import PICTURE, carft, grow, packed

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.method import prompts
from domainbed_carft.runs import suites
from domainbed_carft.suites import imagenet, records

NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95% interval

SETS = {one.name: one for one in imagenet.suite().sets}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_class_lists_have_their_known_digests():
    """Those of timm's, OpenAI's and ObjectNet's lists, as others publish them."""
    assert sha256("\n".join(imagenet.wordnet_ids())).startswith("385e0240499426c0")

    names = prompts.class_names({"class_names": "imagenet"}, 1000)
    assert sha256(json.dumps(names)).startswith("6ef5246539bb")
    assert tuple(names) == imagenet.suite().classes
    assert sum(prompts.clean(name).lower() != name.lower() for name in names) == 28

    a, r = (SETS[f"ImageNet-{kind}"] for kind in "AR")
    assert sha256("\n".join(a.classes)).startswith("f6aa4b23244554d9")
    assert sha256("\n".join(r.classes)).startswith("e19a59d84e3746fa")
    assert len({*a.classes} & {*r.classes}) == 86

    for test_set in (a, r):
        assert [imagenet.wordnet_ids()[place] for (place,) in test_set.groups] == [
            *test_set.classes
        ]


def test_objectnet_groups_imagenet_classes():
    test_set = SETS["ObjectNet"]
    table = dict(zip(test_set.classes, map(list, test_set.groups)))
    assert sha256(json.dumps(table, sort_keys=True, separators=(",", ":"))).startswith("94c146488a")
    places = [place for group in test_set.groups for place in group]
    assert (len(test_set.groups), len({*places}), sum(places)) == (113, len(places), 85_300)
    assert list(test_set.classes) == sorted(test_set.classes) and len(places) == 125


def test_scores_are_the_maximum_over_each_group():
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    for name, test_set in SETS.items():
        grouped = suites.group_logits(logits, test_set.groups)
        expected = [
            [max(row[k] for k in group) for group in test_set.groups] for row in logits.tolist()
        ]
        assert torch.equal(grouped.double(), torch.tensor(expected, dtype=torch.float64)), name
        if all(len(group) == 1 for group in test_set.groups):  # plain indexing, to the bit
            assert torch.equal(grouped, logits[:, [place for (place,) in test_set.groups]])


@pytest.mark.parametrize(("right", "count"), [(0, 7), (8, 10), (34_150, 50_000), (3, 3)])
def test_wilsons_interval_solves_its_equation(right, count):
    for share in suites.wilson_interval(right, count):
        off = (right / count - share) ** 2 - NORMAL_QUANTILE**2 * share * (1 - share) / count
        assert off == pytest.approx(0, abs=1e-12)


# Copies


def tree(root, name, folders, pictures=1):
    """A copy of the test set with these class folders."""
    place = SETS[name].find.places[0]
    return grow(root, {place: dict.fromkeys(folders, pictures)}, PICTURE) / place


def expecting(name, **counts):
    return dataclasses.replace(SETS[name].find, **counts)


@pytest.mark.parametrize("form", ["{}", "{:04}"])
def test_folders_that_are_numbers_are_labels(tmp_path, form):
    """Sorted as text 10 would come second."""
    tree(tmp_path, "ImageNet-V2", [*map(form.format, range(12)), imagenet.wordnet_ids()[12]])
    copy = SETS["ImageNet-V2"].find(tmp_path)
    labels = {path.split("/")[-2]: label for path, label in copy.samples}
    assert labels == {**{form.format(n): n for n in range(12)}, imagenet.wordnet_ids()[12]: 12}


def test_imagenet_a_without_a_class_is_reported_and_still_masked(tmp_path):
    test_set = SETS["ImageNet-A"]
    tree(tmp_path, test_set.name, test_set.classes)
    find = expecting(test_set.name, picture_count=200)
    assert not find(tmp_path).problems and len(find(tmp_path).samples) == 200

    gone = tmp_path / "imagenet-a" / test_set.classes[7]
    (gone / "0.jpg").unlink()
    gone.rmdir()
    copy = find(tmp_path)
    message = f"no picture of 1 of its 200 classes; expected them in the folders '{gone.name}'"
    assert copy.problems == [message, "199 pictures, expected 200"]
    assert dict(copy.samples)[str(gone.parent / test_set.classes[8] / "0.jpg")] == 8
    assert suites.group_logits(torch.zeros(1, 1000), test_set.groups).shape == (1, 200)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / "n0000").mkdir(), "unexpected class folders: 'n0000'"),
        (lambda root: (root / "n01440764/0.jpg").write_bytes(b""), "1 empty file"),
        (lambda root: (root / "n01440764/more.jpg").write_bytes(PICTURE), "1,001 pictures, expec"),
        (lambda root: (root / "n01440764/0.jpg").unlink(), "no picture of 1 of its 1,000 classes"),
    ],
)
def test_an_incomplete_test_set_is_reported(tmp_path, change, problem):
    root = tree(tmp_path, "ImageNet", imagenet.wordnet_ids()).rename(
        tmp_path / "imagenet/val_in_folder"
    )
    grow(tmp_path, {"imagenet": {"val": 2}})  # as unpacked
    find = expecting("ImageNet", picture_count=1000, pictures_per_class=1)
    assert not find(tmp_path).problems

    change(root)
    assert problem in "; ".join(find(tmp_path).problems)


def test_a_validation_set_by_ids_is_found_in_ilsvrc2012(tmp_path):
    grow(tmp_path / "ILSVRC2012", {"val": dict.fromkeys(imagenet.wordnet_ids(), 1)}, PICTURE)
    copy = expecting("ImageNet", picture_count=1000, pictures_per_class=1)(tmp_path)
    assert copy.root == tmp_path / "ILSVRC2012" / "val" and not copy.problems


def test_an_unsorted_validation_set_is_recognised_with_the_remedy(tmp_path):
    grow(tmp_path, {"imagenet": {"val": 3}}, PICTURE)
    copy = SETS["ImageNet"].find(tmp_path)
    (problem,) = copy.problems
    assert problem.startswith(
        f"{tmp_path}/imagenet/val has 3 pictures and no class folder; sort them"
    )
    assert "torchvision.datasets.ImageNet(PARENT, 'val')" in problem and not copy.samples

    done = carft("verify", "ImageNet", "--data_dir", tmp_path)
    assert done.returncode == 1 and "no class folder" in done.stdout


def mappings(root, swapped=False):
    """ObjectNet's four files, joined by names of our own."""
    table = dict(zip(SETS["ObjectNet"].classes, SETS["ObjectNet"].groups))
    if swapped:
        table["banana"], table["vase"] = table["vase"], table["banana"]
    numbers = {index: index * 7 % 1000 for index in range(1000)}
    lines = {number: f"name {index}" for index, number in numbers.items()}
    of_labels = {f.upper(): "; ".join(f"name {i}" for i in ids) for f, ids in table.items()}
    content = {
        "folder_to_objectnet_label.json": {f: f.upper() for f in [*table, "a_folder_not_used"]},
        "objectnet_to_imagenet_1k.json": of_labels,
        "pytorch_to_imagenet_2012_id.json": numbers,
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (root / name).write_text(json.dumps(value))
    (root / "imagenet_to_label_2012_v2").write_text("\n".join(lines[n] for n in range(1000)) + "\n")


def test_objectnet_is_found_by_its_folder_names(tmp_path):
    """The 200 other folders are not read; its mappings must be those of our list."""
    test_set = SETS["ObjectNet"]
    tree(tmp_path, test_set.name, [*test_set.classes, "a_folder_not_used"])
    find = expecting(test_set.name, picture_count=113)
    mappings(tmp_path / "objectnet-1.0/mappings")
    copy = find(tmp_path)
    assert not copy.problems
    assert Counter(label for _, label in copy.samples) == dict.fromkeys(range(113), 1)

    mappings(tmp_path / "objectnet-1.0/mappings", swapped=True)
    (problem,) = find(tmp_path).problems
    assert "mappings does not join its folders to ImageNet's classes as known" in problem


# carft data


def test_list_and_verify_know_the_suites(tmp_path, monkeypatch):
    listed = carft("list")
    assert "ImageNet-V2      imagenetv2-matched-frequency-format-val     1000    10,000" in (
        listed.stdout
    )
    assert {entry["name"] for entry in json.loads(carft("list", "--json").stdout)} > {*SETS}

    gone = carft("verify", "ImageNet", "--data_dir", tmp_path)
    assert gone.returncode == 2 and "expected imagenet/val or " in gone.stderr

    tree(tmp_path, "ObjectNet", SETS["ObjectNet"].classes)
    incomplete = carft("verify", "ObjectNet", "--data_dir", tmp_path)
    assert incomplete.returncode == 1 and "113 pictures, expected 18,574" in incomplete.stdout
    assert (
        "-P objectnetisatestset" in incomplete.stdout and "border of 2 pixels" in incomplete.stdout
    )

    expect(monkeypatch, "ObjectNet", 113)
    monkeypatch.chdir(tmp_path)
    complete = carft("verify", "ObjectNet", "--data_dir", ".", "--decode", "--json")
    assert complete.returncode == 0 and json.loads(complete.stdout)["verdict"] == "verified"


def expect(monkeypatch, name, pictures):
    """The suite with a smaller test set."""
    small = dataclasses.replace(SETS[name], find=expecting(name, picture_count=pictures))
    suite = dataclasses.replace(imagenet.suite(), sets=(small,))
    monkeypatch.setattr(imagenet, "suite", lambda: suite)


def test_downloadable_test_sets_are_downloaded(tmp_path, monkeypatch):
    for name, message in (("ImageNet", "image-net.org"), ("ObjectNet", "never to train")):
        refused = carft("download", name, "--data_dir", tmp_path)
        assert refused.returncode == 1 and message in refused.stderr

    expect(monkeypatch, "ImageNet-R", 200)
    names = [f"imagenet-r/{name}/0.jpg" for name in SETS["ImageNet-R"].classes]
    fetch = lambda url, path: packed(path, names[:199])  # noqa: E731
    with pytest.raises(CarftError, match="no picture of 1 of its 200 classes.*rerun"):
        imagenet.download("ImageNet-R", tmp_path, fetch)

    (tmp_path / ".imagenet-r.download/archives/imagenet-r.tar").unlink()
    names.append("__MACOSX/imagenet-r/._0.jpg")
    report = imagenet.download("ImageNet-R", tmp_path, lambda url, path: packed(path, names))
    assert not [*tmp_path.rglob("*__MACOSX*")]
    assert report.verdict == "verified" and (tmp_path / names[0]).is_file()


def test_objectnet_is_no_training_data(tmp_path):
    """Neither as an environment, nor its folders as environments."""
    root = tree(tmp_path, "ObjectNet", SETS["ObjectNet"].classes).parent
    for path in (root, root / "images"):
        done = carft("verify", path)
        assert done.returncode == 1 and "whose licence forbids to train" in done.stdout


def suite_record(**changes):
    scores = {"n": 8, "right": 4, "accuracy": 0.5, "ece": 0.1, "complete": True}
    record = {"suite": "DTD", "weights": "model.pkl", "step": 3, "wise_ft_alpha": None}
    record |= {"weights_digest": "0" * 64, "algorithm": "CARFT", "sets": {"DTD": scores}}
    return {**record, "mean": 0.5, "mean_without_objectnet": None, **changes}


def test_a_truncated_suite_record_loses_no_other(tmp_path):
    records.append(tmp_path, suite_record())
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"suite": "ima')
    records.append(tmp_path, suite_record(weights="model_best.pkl"))

    warnings = []
    kept = records.read(tmp_path, warnings)
    assert [record["weights"] for record in kept] == ["model.pkl", "model_best.pkl"]
    assert describe_warnings(warnings) == [
        f"cut line: {tmp_path / records.FILE}: line 2 is not a complete record; skipped"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": {"DTD": {"accuracy": "0.5", "complete": True}}},
        {"sets": {"DTD": {"accuracy": math.nan, "complete": True}}},
        {"sets": {"DTD": {"accuracy": 0.5}}},
        {"sets": {"DTD": {"accuracy": 0.5, "complete": True, "mean_per_class": [1]}}},
        {"sets": {"DTD": None}},
        {"sets": [0.5]},
        {"weights": ["model.pkl"]},
        {"wise_ft_alpha": "half"},
        {"mean": "0.5"},
    ],
)
def test_an_odd_suite_record_is_left_out_and_said(tmp_path, changes):
    records.append(tmp_path, suite_record())
    records.append(tmp_path, suite_record(**changes))
    warnings = []
    assert records.read(tmp_path, warnings) == [suite_record()]
    (line,) = describe_warnings(warnings)
    assert "line 2 is not a complete record; skipped" in line
