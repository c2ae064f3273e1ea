"""ImageNet: class lists, incomplete copies of its test sets, and training."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from data_trees import IMAGE, carft, grow, packed
from domainbed import datasets
from domainbed.scripts import train

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.images.image_lists import Passes
from domainbed_carft.method import prompts
from domainbed_carft.results import metrics
from domainbed_carft.runs import saved, splits, suites
from domainbed_carft.suites import imagenet

SETS = {test_set.name: test_set for test_set in imagenet.suite().sets}
IDS = benchmarks.imagenet_ids()


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_class_lists_have_known_digests():
    # Digests of the published lists of timm, OpenAI and ObjectNet.
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
def test_group_logits_are_the_maximum_over_each_group(name):
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    groups = SETS[name].groups
    expected = [[max(row[place] for place in group) for group in groups] for row in logits.tolist()]
    assert suites.group_logits(logits, groups).tolist() == expected


@pytest.mark.parametrize(("right", "count"), [(0, 7), (8, 10), (34_150, 50_000), (3, 3)])
def test_wilson_interval_solves_its_equation(right, count):
    quantile = 1.959963984540054  # of a two-sided 95% interval
    for share in metrics.wilson_interval(right, count):
        off = (right / count - share) ** 2 - quantile**2 * share * (1 - share) / count
        assert off == pytest.approx(0, abs=1e-12)


# Copies of the test sets


def plant(root, name, folders):
    """Create a copy of a test set with an image in each class folder."""
    place = SETS[name].find.places[0]
    return grow(root, {place: dict.fromkeys(folders, 1)}, IMAGE) / place


@pytest.mark.parametrize("form", ["{}", "{:04}"])
def test_numeric_folder_names_are_labels(tmp_path, form):
    plant(tmp_path, "ImageNet-V2", [*map(form.format, range(12)), IDS[12]])
    samples = SETS["ImageNet-V2"].find(tmp_path).samples
    labels = {path.split("/")[-2]: label for path, label in samples}  # not in the order of text
    assert labels == {**{form.format(number): number for number in range(12)}, IDS[12]: 12}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: (root / "n0000").mkdir(), "unexpected class folders: 'n0000'"),
        (
            lambda root: shutil.rmtree(root / "n01440764"),
            "in the folders 'n01440764'; 2 images",
        ),
        (lambda root: (root / "n01440764/0.jpg").write_bytes(b""), "1 empty file"),
        (lambda root: (root / "n01440764/more.jpg").write_bytes(IMAGE), "4 images, expec"),
    ],
)
def test_incomplete_test_set_is_reported_without_shifting_labels(tmp_path, change, problem):
    # The sorted images are next to the unsorted ones.
    labels = {name: label for label, name in enumerate(IDS[:3])}
    root = plant(tmp_path, "ImageNet", labels).rename(tmp_path / "imagenet" / "val_in_folder")
    grow(tmp_path, {"imagenet": {"val": 2}})
    find = dataclasses.replace(
        SETS["ImageNet"].find, labels=labels, image_count=3, images_per_class=1
    )
    complete = find(tmp_path)
    assert not complete.problems
    change(root)
    copy = find(tmp_path)
    assert problem in "; ".join(copy.problems)
    assert copy.samples[-1] == complete.samples[-1]


def test_objectnet_can_have_further_folders_and_is_refused_as_training_data(tmp_path):
    root = plant(tmp_path, "ObjectNet", [*SETS["ObjectNet"].classes, "a_folder_not_used"])
    copy = SETS["ObjectNet"].find(tmp_path)
    assert copy.problems == ["113 images, expected 18,574"]
    assert [label for _, label in sorted(copy.samples)] == [*range(113)]
    for path in (root.parent, root):
        done = carft("verify", path)
        assert done.returncode == 1 and "whose licence forbids training" in done.stdout


def write_mappings(folder, table):
    """Create ObjectNet's four files, with invented names of classes."""
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


def test_objectnets_mappings_are_compared_with_the_included_list(tmp_path):
    objectnet = SETS["ObjectNet"]
    table = dict(zip(objectnet.classes, objectnet.groups))
    mappings = plant(tmp_path, "ObjectNet", table).parent / "mappings"
    write_mappings(mappings, table)
    assert len(objectnet.find(tmp_path).problems) == 1  # the number of images

    table["banana"], table["vase"] = table["vase"], table["banana"]
    write_mappings(mappings, table)
    assert "mappings assigns its folders to other classes" in objectnet.find(tmp_path).problems[-1]


def test_test_set_is_downloaded_unless_its_terms_forbid_it(tmp_path):
    for name, message in (("ImageNet", "image-net.org"), ("ObjectNet", "never to train")):
        refused = carft("download", name, "--data_dir", tmp_path)
        assert refused.returncode == 1 and message in refused.stderr

    names = [f"imagenet-r/{name}/0.jpg" for name in SETS["ImageNet-R"].classes]
    names.append("__MACOSX/imagenet-r/._0.jpg")
    with pytest.raises(CarftError, match="200 images, expected 30,000"):
        imagenet.download("ImageNet-R", tmp_path, lambda url, path: packed(path, names))
    assert not [*tmp_path.rglob("*__MACOSX*")]


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Create a data folder with a training and a validation image per class."""
    data = tmp_path_factory.mktemp("data")
    classes = dict.fromkeys(IDS, 1)
    grow(data / "imagenet", {"train": classes, "val": classes}, IMAGE)
    return data


@contextlib.contextmanager
def moved(folder, target):
    """Move a folder while the block runs."""
    folder.rename(target)
    try:
        yield
    finally:
        target.rename(folder)


def test_job_on_imagenet_evaluates_its_held_out_two_percent(data, tmp_path, capsys):
    hparams = {"clip_backbone": "tiny", "contexts": ["a {}."], "sampling": "passes"}
    words = "--dataset ImageNet --algorithm CLIPZeroShot --test_envs --workers 0 --steps 1".split()
    words += ["--holdout_fraction", "0.02", "--hparams", json.dumps(hparams)]
    words += ["--data_dir", str(data), "--output_dir", str(tmp_path / "job")]
    assert train.main(words) == 0
    assert f"CLIP classes: {', '.join(imagenet.class_names())}\n" in capsys.readouterr().out

    (split,) = splits.read_data(saved.load_run(tmp_path / "job", device="cpu")).splits
    assert (split.name, len(split)) == ("env0_out", 20)
    last = json.loads((tmp_path / "job" / "results.jsonl").read_text().splitlines()[-1])
    assert "env0_out_acc" in last and "env0_in_acc" not in last
    assert last["protocol"] == "wise-ft" and last["data_edition"].startswith("differs")


def test_pass_has_each_image_once_and_batches_do_not_depend_on_their_order():
    batches = [Passes(200, 7).batch(number, 30) for number in range(20)]
    flat = np.concatenate(batches)
    assert all(Counter(flat[i * 200 : (i + 1) * 200]) == Counter(range(200)) for i in range(3))
    assert not np.array_equal(flat[:200], flat[200:400])
    assert Passes(200, 7).batch(13, 30) == batches[13] != Passes(200, 8).batch(13, 30)
    assert Passes(3, 0).batch(0, 8) == [*Passes(3, 0).batch(0, 6), *Passes(3, 0).batch(3, 2)]


def test_training_folders_of_other_classes_are_refused(data, tmp_path):
    hparams = {"data_augmentation": True, "protocol": "wise-ft"}
    dataset_class = datasets.get_dataset_class("ImageNet")
    (environment,) = dataset_class(str(data), [], hparams)
    assert [path.split("/")[-2] for path, _ in environment.samples] == [*IDS]

    def expect_error(message, folder=data):
        with pytest.raises(CarftError, match=message):
            dataset_class(str(folder), [], hparams)

    expect_error("ImageNet needs --data_dir, .*a folder of images", tmp_path)
    train_folder = data / "imagenet" / "train"
    with moved(train_folder / "n01440764", train_folder / "tench"):
        expect_error("missing 'n01440764', extra")
    (train_folder / "00").mkdir()
    expect_error("missing none, extra '00'")
    (train_folder / "00").rmdir()


def test_imagenet_is_verified_also_before_a_sweep(data, tmp_path, capsys):
    done = carft("verify", "ImageNet", "--data_dir", data)
    assert done.returncode == 1  # the validation set has only 1,000 images
    assert "difference: train: has 1,000 images, expected 1,281,167" in done.stdout
    assert "problem: val: 1,000 images, expected 50,000" in done.stdout

    words = ["sweep", "launch", "imagenet", "--data_dir", str(data), "--yes"]
    with moved(data / "imagenet" / "val", tmp_path / "val"):
        assert carft("verify", "ImageNet", "--data_dir", data).returncode == 0
        with moved(data / "imagenet" / "train" / "n01440764", tmp_path / "tench"):
            assert cli.main([*words, "--output_dir", str(tmp_path / "out")]) == 1
    assert f"carft data verify ImageNet --data_dir {data}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
