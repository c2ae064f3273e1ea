"""The tasks, in torchvision's folders with a few images whose colour is their label.

Four layouts represent all eleven tasks: pixels (CIFAR10), lists of files (DTD), names of files
(OxfordIIITPet), and class folders with splits drawn by this package (EuroSAT).
"""

import json
import pickle
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.data import tasks
from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.data.comparison import normalise_name
from domainbed_carft.errors import CarftError
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import prompts
from domainbed_carft.runs import saved

# The class names of each task in another project's complete list, in label order.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "task_classes.json").read_text())


def colour(label):
    return (20 * (label % 10), 20 * (label // 10 % 10), 20 * (label // 100))


def paint(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour(label)).save(path, "jpeg", quality=100, subsampling=0)


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def plant_cifar(root, names):
    root.mkdir(parents=True)
    pixels = np.repeat(np.array([*map(colour, range(len(names)))], np.uint8), 1024, 1)
    for file in ("data_batch_1", "data_batch_2", "test_batch"):
        (root / file).write_bytes(pickle.dumps({"data": pixels, "labels": [*range(len(names))]}))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def plant_pets(root, names):
    for split, numbers in {"trainval": (1, 2), "test": (3,)}.items():
        lines = []
        for label, name in enumerate(names):
            for number in numbers:
                paint(root / "images" / f"{name}_{number}.jpg", label)
                lines.append(f"{name}_{number} {label + 1} 1 1")
        write_lines(root / "annotations" / f"{split}.txt", lines)


def plant_dtd(root, names):
    for number, split in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{number}.jpg" for name in names]
        for label, file in enumerate(files):
            paint(root / "dtd" / "images" / file, label)
        write_lines(root / "dtd" / "labels" / f"{split}1.txt", files)


def plant_eurosat(root, names):
    for label, name in enumerate(names):
        for number in range(3):
            paint(root / "2750" / name / f"{number}.jpg", label)


LAYOUTS = {
    "CIFAR10": plant_cifar,
    "DTD": plant_dtd,
    "EuroSAT": plant_eurosat,
    "OxfordIIITPet": plant_pets,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Create four tasks, each with two training images and a test image per class."""
    data = tmp_path_factory.mktemp("data")
    for name, plant in LAYOUTS.items():
        plant(data / tasks.TASKS[name].folder, GOLDEN[name]["names"])
    return data


@pytest.fixture
def data(planted, tmp_path):
    return shutil.copytree(planted, tmp_path / "data")


def small(name):
    """Return the task, with smaller drawn splits."""
    task = tasks.TASKS[name]
    return replace(task, drawn=(2, 1)) if task.drawn else task


def count_images(split):
    """Return the number of images by label, after a check of their colours."""
    for image, label in split:
        assert np.abs(np.subtract(image.getpixel((4, 4)), colour(label))).max() < 4
    return Counter(label for _, label in split.samples)


@pytest.mark.parametrize("name", LAYOUTS)
def test_splits_have_their_images_with_the_labels_of_the_full_list(name, planted, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    batches = [["data_batch_1", ""], ["data_batch_2", ""]]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", batches)
    task = small(name)
    splits = [tasks.read_split(task, planted, is_training) for is_training in (True, False)]
    for split, count in zip(splits, (2, 1)):
        assert count_images(split) == dict.fromkeys(range(task.classes), count)

    if name != "CIFAR10":
        assert not {*map(str, dict(splits[0].samples))} & {*map(str, dict(splits[1].samples))}
    assert tasks.make_report(task, planted, splits).status == "differs"
    complete = replace(task, images=(2 * task.classes, task.classes))
    assert tasks.make_report(complete, planted, splits).data_edition == f"verified: {task.split}"


# Class names that differ between a dataset and OpenAI: dataset's name -> OpenAI's name.
OPENAI_WORDS = {
    "Caltech101": {
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "car_side": "side of a car",
        "cougar_body": "body of a cougar cat",
        "cougar_face": "face of a cougar cat",
        "crocodile_head": "head of a  crocodile",
        "flamingo_head": "head of a flamingo",
        "snoopy": "snoopy (cartoon beagle)",
        "yin_yang": "yin and yang symbol",
    },
    "Flowers102": {"pink-yellow dahlia?": "pink and yellow dahlia", "ball moss": "air plant"},
    "EuroSAT": {
        "AnnualCrop": "annual crop land",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings or commercial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings or homes or apartments",
        "SeaLake": "lake or sea",
    },
}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_class_names_equal_the_full_list_in_label_order(name):
    task = tasks.TASKS[name]
    plain = [normalise_name(re.sub("^/./", "", listed)) for listed in GOLDEN[name]["names"]]
    assert [*map(normalise_name, task.class_names)] == plain
    assert len({*plain}) == task.classes  # names are unique

    reworded = OPENAI_WORDS.get(name, {})
    expected = [reworded.get(class_name, class_name) for class_name in task.class_names]
    openai_names = prompts.find_class_names({"class_names": task.words}, task.classes)
    assert [*map(normalise_name, openai_names)] == [*map(normalise_name, expected)]


def drop_class(root, name):
    """Remove the folder of a class, or its lines in the lists of training images."""
    shutil.rmtree(root / "2750" / name, ignore_errors=True)
    for name_of_list in (
        "annotations/trainval.txt",
        "dtd/labels/train1.txt",
        "dtd/labels/val1.txt",
    ):
        path = root / name_of_list
        if path.exists():
            lines = path.read_text().splitlines()
            write_lines(path, [line for line in lines if name not in line])


@pytest.mark.parametrize(
    ("name", "missing"),
    [("EuroSAT", "Forest"), ("DTD", "blotchy"), ("OxfordIIITPet", "Bengal")],
)
def test_missing_class_is_named_and_shifts_no_label(name, missing, data, capsys):
    task = small(name)
    drop_class(data / task.folder, missing)
    split = tasks.read_split(task, data, True)
    labels = {*range(task.classes)} - {GOLDEN[name]["names"].index(missing)}
    assert count_images(split) == dict.fromkeys(labels, 2)
    assert tasks.make_report(task, data, [split]).status == "broken"
    assert cli.main(["data", "verify", name, "--data_dir", str(data)]) == 1
    problem = f"train has no image of 1 of the {task.classes} classes: '{missing}'"
    assert problem in capsys.readouterr().out


def test_additional_class_is_named_and_shifts_no_label(data):
    task = small("EuroSAT")
    complete = tasks.read_split(task, data, True)
    (data / "eurosat" / "2750" / ".ipynb_checkpoints").mkdir()  # harmless without an image
    paint(data / "eurosat" / "2750" / "Beach" / "0.jpg", 0)
    split = tasks.read_split(task, data, True)
    assert split.samples == complete.samples
    report = tasks.make_report(task, data, [split])
    assert report.status == "broken" and "t have: 'Beach'; they" in report.problems[0]
    assert f"carft data verify EuroSAT --data_dir {data}" in report.error_text


def test_download_verifies_the_data_or_explains_its_failure(data, tmp_path):
    assert tasks.download("DTD", data) == tasks.verify("DTD", data)  # already there
    with pytest.raises(CarftError, match="torchvision no longer downloads it"):
        tasks.download("StanfordCars", tmp_path)

    (tmp_path / "dtd").write_text("a file in place of the folder")
    with pytest.raises(CarftError, match="could not download DTD .*rerun the command"):
        tasks.download("DTD", tmp_path)


@pytest.fixture(scope="module")
def job(planted, tmp_path_factory):
    """Run a job of zero-shot CLIP on OxfordIIITPet."""
    folder = tmp_path_factory.mktemp("job")
    hparams = json.dumps({"clip_backbone": "tiny", "batch_size": 2})
    words = "--algorithm CLIPZeroShot --dataset OxfordIIITPet --test_envs --steps 1".split()
    words += ["--workers", "0", "--hparams", hparams, "--data_dir", str(planted)]
    assert train.main([*words, "--output_dir", str(folder)]) == 0
    return folder


def evaluate(capsys, job, data, *further_words, status=0):
    words = ["evaluate", str(job), "--data_dir", str(data), "--workers", "0", *further_words]
    capsys.readouterr()
    assert cli.main(words) == status
    return capsys.readouterr()


def test_run_is_evaluated_on_its_test_split_and_as_a_suite(job, planted, tmp_path, capsys):
    job = shutil.copytree(job, tmp_path / "job")
    run = saved.load_run(job, device="cpu")
    images = tasks.read_split(tasks.TASKS["OxfordIIITPet"], planted, False)
    images.transform = run.transform()
    with torch.no_grad():
        right = sum(int(run.algorithm.predict(x[None]).argmax()) == label for x, label in images)

    rows = [re.split("  +", line)[:3] for line in evaluate(capsys, job, planted).out.splitlines()]
    assert ["test (incomplete)", "37", f"{100 * right / 37:.1f}"] in rows
    document = json.loads(evaluate(capsys, job, planted, "--suite", "OxfordIIITPet", "--json").out)
    assert sum(document["sets"]["test"]["class_correct"]) == right
    (path,) = job.glob("evaluation_step*_OxfordIIITPet.json")  # of two evaluations
    assert json.loads(path.read_text())["image_sets"][0]["accuracy"] == right / 37


def test_unreadable_test_image_ends_evaluate_with_status_3(job, data, capsys):
    broken = data / "oxford-iiit-pet" / "images" / "Bengal_3.jpg"
    broken.write_bytes(b"not an image")
    printed = evaluate(capsys, job, data, status=3).out
    assert "env0_in" in printed and f"{broken} cannot be read" in printed


def test_zero_shot_clip_reports_the_mean_accuracy_per_class(data, capsys):
    # One class has a second image, in the colour of another class.
    root = data / "oxford-iiit-pet"
    paint(root / "images" / "Abyssinian_4.jpg", 1)
    with (root / "annotations" / "test.txt").open("a") as file:
        file.write("\nAbyssinian_4 1 1 1")
    flags = ["--clip", "tiny", "--suite", "OxfordIIITPet", "--data_dir", str(data)]
    assert cli.main(["evaluate", *flags, "--json", "--workers", "0"]) == 0
    scores = json.loads(capsys.readouterr().out)["sets"]["test"]

    clip = backbone.load("tiny")
    names = (ASSETS / "class_names" / "pets.txt").read_text().splitlines()
    words = [[f"a photo of a {name}, a type of pet." for name in names]]
    texts = torch.nn.functional.normalize(backbone.encode_prompts(clip, words)[0], dim=-1)
    images = tasks.read_split(tasks.TASKS["OxfordIIITPet"], data, False)
    transform = PlanTransform(plan_for("clip", 48, False))
    is_right = [[] for _ in names]
    for image, label in images:
        with torch.no_grad():
            logits = clip.model.visual(transform(image)[None]) @ texts.T
        is_right[label].append(int(logits.argmax()) == label)
    assert scores["image_set"]["images"] == 38
    assert sum(scores["class_correct"]) == sum(map(sum, is_right))
    assert scores["mean_per_class"] == pytest.approx(np.mean([*map(np.mean, is_right)]))

    assert cli.main(["evaluate", *flags, "--workers", "0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (row,) = (re.split("  +", line) for line in printed if line.startswith("test ("))
    assert row[5] == f"{100 * scores['mean_per_class']:.1f}" != row[2]
