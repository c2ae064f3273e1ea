"""The tasks: torchvision's folders with a few pictures, whose colour is their label."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.clips import pictures as images
from domainbed_carft.data import tasks
from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.errors import CarftError
from domainbed_carft.method import prompts
from domainbed_carft.plugin import provided
from domainbed_carft.runs import evaluate, predict, saved
from domainbed_carft.suites import records

savemat = pytest.importorskip("scipy.io", reason="needs scipy").savemat


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def paint(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 20 * label).save(path, quality=100)


def folders(root, names, *counts, form="image_{:04d}.jpg"):
    """The last first, as a disk may list them."""
    for label, name in reversed(list(enumerate(names))):
        for number in range(sum(counts), 0, -1):
            paint(root / name / form.format(number), label)


def cifar(root, meta, key):
    for name, count in {"data_batch_1": 2, "train": 2, "test_batch": 1, "test": 1}.items():
        labels = [0, 1, 2] * count
        data = np.repeat(20 * np.array(labels, np.uint8)[:, None], 3072, 1)
        write(root / name, "")
        (root / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (root / meta).write_bytes(pickle.dumps({key: ["c0", "c1", "c2"]}))


def pets(root):
    names = ["Abyssinian", "american_bulldog", "Bengal"]
    for split, numbers in {"trainval": (1, 2), "test": (3,)}.items():
        listed = [(f"{name}_{n}", y) for y, name in enumerate(names) for n in numbers]
        for name, label in listed:
            paint(root / "images" / f"{name}.jpg", label)
        lines = [f"{name} {label + 1} 1 1" for name, label in listed]
        write(root / "annotations" / f"{split}.txt", "\n".join(lines))


def flowers(root):
    for number in range(1, 10):
        paint(root / "jpg" / f"image_{number:05d}.jpg", number % 3)
    savemat(root / "imagelabels.mat", {"labels": [number % 3 + 1 for number in range(1, 10)]})
    savemat(root / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 5, 6], "tstid": [9, 7, 8]})


def food(root):
    for split, numbers in {"train": (1, 2), "test": (3,)}.items():
        listed = {}
        for label, name in reversed(list(enumerate(["apple_pie", "beignets", "waffles"]))):
            listed[name] = [f"{name}/{number}" for number in numbers]
            for number in numbers:
                paint(root / "images" / name / f"{number}.jpg", label)
        write(root / "meta" / f"{split}.json", json.dumps(listed))


def cars(root):
    (root / "devkit").mkdir(parents=True)
    kind = [("fname", object), ("class", object)]
    for split, count in {"train": 6, "test": 3}.items():
        rows = np.array([(f"{n}.jpg", n % 3 + 1) for n in range(count)], kind)
        for n in range(count):
            paint(root / f"cars_{split}" / f"{n}.jpg", n % 3)
        place = "devkit/cars_train_annos.mat" if count == 6 else "cars_test_annos_withlabels.mat"
        savemat(root / place, {"annotations": rows})
    names = np.array(["Acura", "BMW", "smart"], object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})


def aircraft(root):
    names = ["707-320", "A310", "Yak-42"]
    write(root / "data" / "variants.txt", "\n".join(names))
    for split, numbers in {"trainval": (0, 1), "test": (2,)}.items():
        listed = [(f"{label}{n}", label) for label in range(3) for n in numbers]
        for name, label in listed:
            paint(root / "data" / "images" / f"{name}.jpg", label)
        lines = [f"{name} {names[label]}" for name, label in listed]
        write(root / "data" / f"images_variant_{split}.txt", "\n".join(lines))


def sun(root):
    names = ["a/abbey", "b/bow_window/indoor", "y/youth_hostel"]
    write(root / "ClassName.txt", "".join(f"/{name}\n" for name in names))
    folders(root, names, 2, 1, form="sun_{}.jpg")


def dtd(root):
    for split, number in {"train": 1, "val": 2, "test": 3}.items():
        lines = []
        for label, name in enumerate(["banded", "dotted", "zigzagged"]):
            paint(root / "dtd" / "images" / name / f"{name}_{number}.jpg", label)
            lines.append(f"{name}/{name}_{number}.jpg")
        write(root / "dtd" / "labels" / f"{split}1.txt", "\n".join(lines))


EUROSAT = "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop".split()
EUROSAT += ["Residential", "River", "SeaLake"]

TREES = {
    "CIFAR10": lambda root: cifar(root, "batches.meta", "label_names"),
    "CIFAR100": lambda root: cifar(root, "meta", "fine_label_names"),
    "Caltech101": lambda root: folders(
        root / "101_ObjectCategories", ["Faces", "Leopards", "accordion", "BACKGROUND_Google"], 2, 1
    ),
    "OxfordIIITPet": pets,
    "Flowers102": flowers,
    "Food101": food,
    "StanfordCars": cars,
    "FGVCAircraft": aircraft,
    "SUN397": sun,
    "DTD": dtd,
    "EuroSAT": lambda root: folders(root / "2750", EUROSAT, 2, 1, form="x_{}.jpg"),
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Plants a task's tree; torchvision does not compare checksums."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [["data_batch_1", ""]])

    def plant(name):
        TREES[name](tmp_path / tasks.TASKS[name].folder)
        return tmp_path

    return plant


@pytest.mark.parametrize("name", tasks.TASKS)
def test_each_split_has_its_pictures_and_their_labels(name, planted):
    task = tasks.TASKS[name]
    task = replace(task, drawn=(2, 1)) if task.drawn else task
    data = planted(name)
    found = [tasks.read(task, data, train) for train in (True, False)]
    classes = 10 if name == "EuroSAT" else 3
    seen = set()
    for split, each in zip(found, (2, 1)):
        labels = [label for _, label in split]
        assert sorted(labels) == sorted([*range(classes)] * each)
        for picture, label in split:
            assert picture.mode == "RGB" and abs(picture.getpixel((4, 4))[0] - 20 * label) < 3
        files = {str(source) for source, _ in split.samples}
        assert "CIFAR" in name or not seen & files
        seen |= files
    assert tasks.report(task, data, found).verdict == "differs"
    right = replace(task, classes=len(found[0].classes), pictures=(2 * classes, classes))
    assert tasks.report(right, data, found).data_edition == f"verified: {task.split}"


def test_the_names_are_in_torchvisions_order():
    words = {
        name: prompts.class_names({"class_names": task.words}, task.classes)
        for name, task in tasks.TASKS.items()
    }
    # Whose labels follow the sorted names.
    for name in ("CIFAR10", "CIFAR100", "Food101", "FGVCAircraft", "SUN397", "DTD"):
        assert words[name] == sorted(words[name])
    assert words["OxfordIIITPet"] == sorted(words["OxfordIIITPet"], key=str.lower)
    brands = [name.split()[0] for name in words["StanfordCars"]]
    assert brands == sorted(brands)
    # OpenAI's own words for these: what torchvision calls the label is near.
    theirs = getattr(torchvision.datasets.Flowers102, "classes", words["Flowers102"])
    other = [own for own, name in zip(words["Flowers102"], theirs) if own != name]
    assert other in ([], ["globe flower", "pink and yellow dahlia", "air plant"])
    for own, folder in zip(words["EuroSAT"], EUROSAT):
        assert own == "brushland or shrubland" or own.split()[0] in folder.lower()
    first = ["off-center face", "centered face", "leopard", "motorbike", "accordion", "airplane"]
    assert words["Caltech101"][:6] == first  # Faces, Faces_easy, Leopards, Motorbikes, then small
    one = {name for name, task in tasks.TASKS.items() if task.contexts}
    assert one == {"OxfordIIITPet", "Flowers102", "Food101"}


def test_missing_data_is_told_with_the_command(tmp_path, capsys):
    with pytest.raises(CarftError, match=r"no folder .*dtd\); run `carft data download DTD"):
        tasks.read(tasks.TASKS["DTD"], tmp_path, True)
    assert not any(tmp_path.iterdir())
    given = ["--algorithm", "CARFT", "--dataset", "StanfordCars", "--data_dir", str(tmp_path)]
    assert train.main([*given, "--test_envs", "--output_dir", str(tmp_path / "out")])
    assert "needs --data_dir, the folder that has stanford_cars; torchvi" in capsys.readouterr().err
    assert cli.main(["data", "download", "StanfordCars", "--data_dir", str(tmp_path)]) == 1
    assert cli.main(["data", "verify", "DTD"]) == 2
    assert "can download it no more" in capsys.readouterr().err


def test_a_task_is_trained_and_tested_on_under_openais_words(
    planted, tmp_path, monkeypatch, capsys
):
    data = planted("EuroSAT")
    monkeypatch.chdir(data)
    assert cli.main(["data", "verify", "EuroSAT", "--data_dir", ".", "--decode"]) == 0
    assert "train has 30 pictures of 10 classes, expected 10,000" in capsys.readouterr().out
    small = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1), pictures=(20, 10), per_class=True)
    monkeypatch.setitem(tasks.TASKS, "EuroSAT", small)
    monkeypatch.setattr(provided.TASKS["EuroSAT"], "TASK", small)
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "original_precision": "fp32"}
    given = ["--algorithm", "CARFT", "--dataset", "EuroSAT", "--data_dir", str(data), "--test_envs"]
    given += ["--hparams", json.dumps(hparams), "--steps", "2", "--workers", "0"]
    train.main([*given, "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "CLIP classes: annual crop land, forest, brushland or shrubland," in said
    assert "CLIP contexts: 3, such as 'a centered satellite photo of {}.'" in said
    assert "CLIP protocol: clip" in said and "Data: verified: own split" in said

    asked = ["evaluate", str(tmp_path / "out"), "--data_dir", str(data), "--workers", "0"]
    assert cli.main(asked) == 0
    text = capsys.readouterr().out
    run = saved.open_run(tmp_path / "out")
    pictures = tasks.read(small, data, False)
    pictures.transform = predict.transform_of(run)
    with torch.no_grad():
        right = sum(int(run.algorithm.predict(x[None]).argmax()) == y for x, y in pictures)
    rows = [re.split("  +", line)[:3] for line in text.splitlines()]
    assert ["test (own split)", "10", f"{10 * right:.1f}"] in rows
    assert cli.main([*asked, "--suite", "EuroSAT", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["sets"].values()
    assert (one["n"], one["right"], one["mean_per_class"]) == (10, right, pytest.approx(right / 10))
    (kept,) = records.read(tmp_path / "out")  # of two evaluations
    assert kept["suite"] == "EuroSAT" and kept["sets"]["test (own split)"]["right"] == right
    monkeypatch.setitem(tasks.TASKS, "EuroSAT", replace(small, drawn=(3, 1)))  # none is left
    assert cli.main(asked) == 0 and "no test set of the suite EuroSAT" in capsys.readouterr().out


def test_a_test_picture_that_cannot_be_read_leaves_the_splits_and_ends_with_3(
    planted, tmp_path, monkeypatch, capsys
):
    data = planted("EuroSAT")
    small = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1), pictures=(20, 10))
    monkeypatch.setitem(tasks.TASKS, "EuroSAT", small)
    monkeypatch.setattr(provided.TASKS["EuroSAT"], "TASK", small)
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "original_precision": "fp32"}
    given = ["--algorithm", "CLIPZeroShot", "--dataset", "EuroSAT", "--data_dir", str(data)]
    given += ["--test_envs", "--hparams", json.dumps(hparams), "--steps", "1", "--workers", "0"]
    assert train.main([*given, "--output_dir", str(tmp_path / "out")]) == 0

    broken, _ = tasks.read(small, data, False).samples[0]
    Path(broken).write_bytes(b"no picture")
    capsys.readouterr()
    asked = ["evaluate", str(tmp_path / "out"), "--data_dir", str(data), "--workers", "0"]
    assert cli.main(asked) == 3
    text = capsys.readouterr().out
    assert "env0_in" in text
    told = "no test set of the suite EuroSAT can be read: test (own split): a picture of EuroSAT"
    assert f"{told} (test (own split)): {broken} cannot be read" in text
    assert cli.main([*asked, "--suite", "EuroSAT"]) == 3
    assert f"carft: {told}" in capsys.readouterr().err


def test_a_clip_is_tested_with_the_single_template_of_a_task(planted, capsys):
    data = planted("OxfordIIITPet")
    asked = ["--clip", "tiny", "--suite", "OxfordIIITPet", "--data_dir", str(data), "--json"]
    assert cli.main(["evaluate", *asked, "--workers", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    clip = backbone.load("tiny")
    names = (ASSETS / "class_names" / "pets.txt").read_text().splitlines()
    texts = backbone.text_features(
        clip, [[f"a photo of a {name}, a type of pet." for name in names]]
    )
    pictures = tasks.read(tasks.TASKS["OxfordIIITPet"], data, False)
    transform = images.transform("clip", 48, False)
    with torch.no_grad():
        x = torch.stack([transform(picture) for picture, _ in pictures])
        found = (clip.model.visual(x) @ F.normalize(texts[0], dim=-1).T).argmax(dim=1)
    right = int((found == torch.tensor([label for _, label in pictures])).sum())
    assert document["sets"]["test"]["right"] == right and not document["sets"]["test"]["complete"]


def test_the_mean_over_classes_weighs_these_alike():
    tally = evaluate.Tally(3)
    tally.add(torch.eye(3)[[0, 0, 0, 1]], torch.tensor([0, 0, 1, 1]))
    assert (tally.accuracy, tally.mean_per_class) == (0.75, 0.75)
    tally.add(torch.eye(3)[[0, 0]], torch.tensor([0, 0]))
    assert tally.mean_per_class == 0.75 and tally.accuracy == 5 / 6
