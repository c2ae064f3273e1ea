"""ImageNet: its class lists, copies of its test sets with their traps, and training on it."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from data_trees import IMAGE, carft, grow, packed
from domainbed import datasets
from domainbed.scripts import train

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.images.image_lists import Passes
from domainbed_carft.jobs.records import describe_warnings
from domainbed_carft.method import algorithms, job, prompts
from domainbed_carft.runs import saved, splits, suites
from domainbed_carft.suites import imagenet, records

SETS = {test_set.name: test_set for test_set in imagenet.suite().sets}
IDS = imagenet.wordnet_ids()


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_class_lists_have_their_known_digests():
    """Those of timm's, OpenAI's and ObjectNet's lists, as others publish them."""
    assert sha256("\n".join(IDS)).startswith("385e0240499426c0")
    names = prompts.find_class_names({"class_names": "imagenet"}, 1000)
    assert sha256(json.dumps(names)).startswith("6ef5246539bb")
    assert tuple(names) == imagenet.suite().classes == imagenet.class_names()

    for name, digest in (("ImageNet-A", "f6aa4b23244554d9"), ("ImageNet-R", "e19a59d84e3746fa")):
        test_set = SETS[name]
        assert sha256("\n".join(test_set.classes)).startswith(digest)
        assert [IDS[place] for (place,) in test_set.groups] == [*test_set.classes]

    objectnet = SETS["ObjectNet"]
    table = dict(zip(objectnet.classes, map(list, objectnet.groups)))
    assert sha256(json.dumps(table, sort_keys=True, separators=(",", ":"))).startswith("94c146488a")


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


# Copies of the test sets


def plant(root, name, folders):
    """A copy of the test set with an image in each of these class folders."""
    place = SETS[name].find.places[0]
    return grow(root, {place: dict.fromkeys(folders, 1)}, IMAGE) / place


@pytest.mark.parametrize("form", ["{}", "{:04}"])
def test_folders_that_are_numbers_are_labels(tmp_path, form):
    """Sorted as text 10 would come second."""
    plant(tmp_path, "ImageNet-V2", [*map(form.format, range(12)), IDS[12]])
    samples = SETS["ImageNet-V2"].find(tmp_path).samples
    labels = {path.split("/")[-2]: label for path, label in samples}
    assert labels == {**{form.format(number): number for number in range(12)}, IDS[12]: 12}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / "n0000").mkdir(), "unexpected class folders: 'n0000'"),
        (
            lambda root: shutil.rmtree(root / "n01440764"),
            "in the folders 'n01440764'; 999 images",
        ),
        (lambda root: (root / "n01440764/0.jpg").write_bytes(b""), "1 empty file"),
        (lambda root: (root / "n01440764/more.jpg").write_bytes(IMAGE), "1,001 images, expec"),
    ],
)
def test_an_incomplete_test_set_is_reported(tmp_path, change, problem):
    """Sorted beside the images as they are unpacked, which are in no class folder."""
    root = tmp_path / "imagenet" / "val_in_folder"
    plant(tmp_path, "ImageNet", IDS).rename(root)
    grow(tmp_path, {"imagenet": {"val": 2}})
    find = dataclasses.replace(SETS["ImageNet"].find, image_count=1000, images_per_class=1)
    complete = find(tmp_path)
    assert not complete.problems
    change(root)
    copy = find(tmp_path)
    assert problem in "; ".join(copy.problems)
    assert copy.samples[-1] == complete.samples[-1]  # no label has shifted


def test_objectnet_has_further_folders_and_is_no_training_data(tmp_path):
    root = plant(tmp_path, "ObjectNet", [*SETS["ObjectNet"].classes, "a_folder_not_used"])
    copy = SETS["ObjectNet"].find(tmp_path)
    assert copy.problems == ["113 images, expected 18,574"]
    assert [label for _, label in sorted(copy.samples)] == [*range(113)]
    for path in (root.parent, root):
        done = carft("verify", path)
        assert done.returncode == 1 and "whose licence forbids to train" in done.stdout


def write_mappings(folder, table):
    """ObjectNet's four files, which join its folders to ImageNet's classes by made-up names."""
    numbers = {index: index * 7 % 1000 for index in range(1000)}
    lines = {number: f"name {index}" for index, number in numbers.items()}
    content = {
        "folder_to_objectnet_label.json": {name: name.upper() for name in table},
        "objectnet_to_imagenet_1k.json": {
            name.upper(): "; ".join(f"name {index}" for index in group)
            for name, group in table.items()
        },
        "pytorch_to_imagenet_2012_id.json": numbers,
    }
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "imagenet_to_label_2012_v2").write_text("\n".join(lines[n] for n in range(1000)))


def test_objectnets_mappings_are_compared_with_the_list_of_the_package(tmp_path):
    objectnet = SETS["ObjectNet"]
    table = dict(zip(objectnet.classes, objectnet.groups))
    mappings = plant(tmp_path, "ObjectNet", table).parent / "mappings"
    write_mappings(mappings, table)
    problems = objectnet.find(tmp_path).problems
    assert len(problems) == 1  # the number of images

    table["banana"], table["vase"] = table["vase"], table["banana"]
    write_mappings(mappings, table)
    assert any("mappings does not join" in line for line in objectnet.find(tmp_path).problems)


def test_a_test_set_is_downloaded_without_metadata_unless_its_terms_forbid_it(tmp_path):
    for name, message in (("ImageNet", "image-net.org"), ("ObjectNet", "never to train")):
        refused = carft("download", name, "--data_dir", tmp_path)
        assert refused.returncode == 1 and message in refused.stderr

    names = [f"imagenet-r/{name}/0.jpg" for name in SETS["ImageNet-R"].classes]
    names.append("__MACOSX/imagenet-r/._0.jpg")
    with pytest.raises(CarftError, match="200 images, expected 30,000"):
        imagenet.download("ImageNet-R", tmp_path, lambda url, path: packed(path, names))
    assert not [*tmp_path.rglob("*__MACOSX*")]


# Records


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
    record = dict.fromkeys(records.FIELDS) | {"suite": "DTD", "weights": "model.pkl"}
    record |= {"sets": {"DTD": {"accuracy": 0.5, "complete": True}}, "mean": 0.5}
    records.append(tmp_path, record | changes)
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"suite": "ima')
    records.append(tmp_path, record)
    warnings = []
    assert records.read(tmp_path, warnings) == [record]
    first, second = describe_warnings(warnings)
    assert "line 1 is not a complete record" in first and "line 2 is not" in second


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with two images of each class to train, and one to validate with."""
    data = tmp_path_factory.mktemp("data")
    counts = {"train": dict.fromkeys(IDS, 2), "val": dict.fromkeys(IDS, 1)}
    grow(data / "imagenet", counts, IMAGE)
    return data


def test_a_job_evaluates_the_two_percent_that_are_held_out(data, tmp_path, capsys):
    hparams = {"clip_backbone": "tiny", "contexts": ["a {}."], "sampling": "passes"}
    words = "--dataset ImageNet --algorithm CLIPZeroShot --test_envs --workers 0 --steps 1".split()
    words += ["--holdout_fraction", "0.02", "--hparams", json.dumps(hparams)]
    words += ["--data_dir", str(data), "--output_dir", str(tmp_path / "job")]
    assert train.main(words) == 0
    assert f"CLIP classes: {', '.join(imagenet.class_names())}\n" in capsys.readouterr().out

    (split,) = splits.splits(saved.open_run(tmp_path / "job"))
    assert (split.name, len(split)) == ("env0_out", 40)
    last = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[-1])
    assert "env0_out_acc" in last and "env0_in_acc" not in last
    assert last["protocol"] == "wise-ft" and last["data_edition"].startswith("differs")
    assert cli.main(["collect", str(tmp_path / "job")]) == 0
    assert "nothing left out, out-splits at the last step" in capsys.readouterr().out


def test_a_pass_has_each_image_once_and_any_batch_can_be_drawn_first():
    batches = [Passes(200, 7).batch(number, 30) for number in range(20)]
    flat = np.concatenate(batches)
    assert all(Counter(flat[i * 200 : (i + 1) * 200]) == Counter(range(200)) for i in range(3))
    assert not np.array_equal(flat[:200], flat[200:400])
    assert Passes(200, 7).batch(13, 30) == batches[13] != Passes(200, 8).batch(13, 30)
    assert Passes(3, 0).batch(0, 8) == [*Passes(3, 0).batch(0, 6), *Passes(3, 0).batch(3, 2)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda train: (train / "n01440764").rename(train / "tench"), "missing 'n01440764', extra"),
        (lambda train: (train / "00").mkdir(), "missing none, extra '00'"),
        (
            lambda train: train.rename(f"{train}ing"),
            "ImageNet needs --data_dir, .*a folder of images",
        ),
    ],
)
def test_folders_of_other_classes_are_refused(tmp_path, spoil, message):
    folder = grow(tmp_path, {"imagenet/train": dict.fromkeys(IDS, 1)}, IMAGE)
    hparams = {"data_augmentation": True, "protocol": "wise-ft"}
    make_dataset = datasets.get_dataset_class("ImageNet")
    (environment,) = make_dataset(str(folder), [], hparams)
    assert [path.split("/")[-2] for path, _ in environment.samples] == [*IDS]
    spoil(folder / "imagenet" / "train")
    with pytest.raises(CarftError, match=message):
        make_dataset(str(folder), [], hparams)


def test_passes_suit_the_recipe_and_no_balanced_classes():
    values = algorithms.hparam_values("CARFT", "ImageNet")
    assert values["total_steps"] == datasets.get_dataset_class("ImageNet").N_STEPS
    values |= {"sampling": "passes", "protocol": "domainbed", "clip_backbone": "tiny"}
    assert job.find_job_facts(values, 1000, has_kl=True).amp == "off"
    with pytest.raises(CarftError, match="sampling is 'passes', expected 'with-replacement'"):
        job.find_job_facts({**values, "class_balanced": True}, 1000, has_kl=True)


def test_both_sets_are_verified_and_the_training_set_before_a_sweep(data, tmp_path, capsys):
    done = carft("verify", "ImageNet", "--data_dir", data)
    assert done.returncode == 1  # 1,000 images are no validation set
    assert "difference: train: has 2,000 images, expected 1,281,167" in done.stdout
    assert "problem: val: 1,000 images, expected 50,000" in done.stdout

    copy = shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(copy / "imagenet" / "val")
    assert carft("verify", "ImageNet", "--data_dir", copy).returncode == 0
    shutil.rmtree(copy / "imagenet" / "train" / "n01440764")
    words = ["sweep", "launch", "imagenet", "--data_dir", str(copy), "--yes"]
    assert cli.main([*words, "--output_dir", str(tmp_path / "out")]) == 1
    assert f"carft data verify ImageNet --data_dir {copy}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        "data verify ImageNet",
        "data verify DTD",
        "sweep launch tasks --output_dir OUT --yes",
        "evaluate --clip tiny --suite imagenet",
    ],
)
def test_a_missing_data_folder_is_reported_once(command, tmp_path, capsys):
    missing = str(tmp_path / "gone")
    words = command.replace("OUT", str(tmp_path / "out")).split()
    assert cli.main([*words, "--data_dir", missing]) != 0
    assert capsys.readouterr().err.count(missing) == 1
