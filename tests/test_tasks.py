"""The tasks: torchvision's folders with a few pictures, whose colour is their label."""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from domainbed.scripts import train
from PIL import Image
from scipy.io import savemat

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.data import tasks
from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.data.comparison import normalised_name
from domainbed_carft.errors import CarftError
from domainbed_carft.method import prompts
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.plugin import data_sets
from domainbed_carft.results.evaluations import PictureRows, measure
from domainbed_carft.runs import saved
from domainbed_carft.suites import catalogue, records

GOLDEN = json.loads((Path(__file__).parent / "golden" / "task_classes.json").read_text())


def source_names(name):
    """The class names of a task as a full list of another project spells them, in label order."""
    return GOLDEN[name]["names"]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def colour(label):
    return (20 * (label % 10), 20 * (label // 10 % 10), 20 * (label // 100))


@functools.cache
def picture_file(label):
    """The content of a JPEG file in the colour of a label."""
    file = io.BytesIO()
    picture = Image.new("RGB", (8, 8), colour(label))
    picture.save(file, "jpeg", quality=100, subsampling=0)
    return file.getvalue()


def paint(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_file(label))


def folders(root, names, numbers, form="image_{:04d}.jpg"):
    """The last first, as a disk may list them."""
    for label, name in reversed(list(enumerate(names))):
        for number in reversed(numbers):
            paint(root / name / form.format(number), label)


def cifar(root, meta, key, names):
    for file, count in {"data_batch_1": 2, "train": 2, "test_batch": 1, "test": 1}.items():
        labels = [*range(len(names))] * count
        planes = np.array([colour(label) for label in labels], np.uint8)
        content = {"data": np.repeat(planes, 1024, 1), "labels": labels}
        write(root / file, "")
        (root / file).write_bytes(pickle.dumps(content))
    (root / meta).write_bytes(pickle.dumps({key: names}))


def pets(root, names):
    for split, numbers in {"trainval": (1, 2), "test": (3,)}.items():
        listed = [(f"{name}_{n}", y) for y, name in enumerate(names) for n in numbers]
        for name, label in listed:
            paint(root / "images" / f"{name}.jpg", label)
        lines = [f"{name} {label + 1} 1 1" for name, label in listed]
        write(root / "annotations" / f"{split}.txt", "\n".join(lines))


def flowers(root, names):
    count = len(names)
    numbers = range(1, 3 * count + 1)
    for number in numbers:
        paint(root / "jpg" / f"image_{number:05d}.jpg", number % count)
    savemat(root / "imagelabels.mat", {"labels": [number % count + 1 for number in numbers]})
    splits = [[*numbers[first : first + count]] for first in (0, count, 2 * count)]
    savemat(root / "setid.mat", dict(zip(("trnid", "valid", "tstid"), splits)))


def food(root, names):
    for split, numbers in {"train": (1, 2), "test": (3,)}.items():
        listed = {}
        for label, name in reversed(list(enumerate(names))):
            listed[name] = [f"{name}/{number}" for number in numbers]
            for number in numbers:
                paint(root / "images" / name / f"{number}.jpg", label)
        write(root / "meta" / f"{split}.json", json.dumps(listed))


def cars(root, names):
    (root / "devkit").mkdir(parents=True)
    kind = [("fname", object), ("class", object)]
    for split, count in {"train": 2 * len(names), "test": len(names)}.items():
        rows = np.array([(f"{n}.jpg", n % len(names) + 1) for n in range(count)], kind)
        for n in range(count):
            paint(root / f"cars_{split}" / f"{n}.jpg", n % len(names))
        place = "devkit/cars_train_annos.mat" if split == "train" else CARS_TEST
        savemat(root / place, {"annotations": rows})
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)})


CARS_TEST = "cars_test_annos_withlabels.mat"


def aircraft(root, names):
    write(root / "data" / "variants.txt", "\n".join(names))
    for split, numbers in {"trainval": (0, 1), "test": (2,)}.items():
        listed = [(f"{label}-{n}", label) for label in range(len(names)) for n in numbers]
        for name, label in listed:
            paint(root / "data" / "images" / f"{name}.jpg", label)
        lines = [f"{name} {names[label]}" for name, label in listed]
        write(root / "data" / f"images_variant_{split}.txt", "\n".join(lines))


def sun(root, names):
    """The names as in ClassName.txt: /a/abbey, /b/bow_window/indoor."""
    write(root / "ClassName.txt", "".join(f"{name}\n" for name in names))
    folders(root, [name[1:] for name in names], (1, 2, 3), form="sun_{}.jpg")


def dtd(root, names):
    for split, number in {"train": 1, "val": 2, "test": 3}.items():
        lines = []
        for label, name in enumerate(names):
            paint(root / "dtd" / "images" / name / f"{name}_{number}.jpg", label)
            lines.append(f"{name}/{name}_{number}.jpg")
        write(root / "dtd" / "labels" / f"{split}1.txt", "\n".join(lines))


def caltech(root, names):
    folders(root / "101_ObjectCategories", [*names, "BACKGROUND_Google"], (1, 2, 3))


TREES = {
    "CIFAR10": lambda root, names: cifar(root, "batches.meta", "label_names", names),
    "CIFAR100": lambda root, names: cifar(root, "meta", "fine_label_names", names),
    "Caltech101": caltech,
    "OxfordIIITPet": pets,
    "Flowers102": flowers,
    "Food101": food,
    "StanfordCars": cars,
    "FGVCAircraft": aircraft,
    "SUN397": sun,
    "DTD": dtd,
    "EuroSAT": lambda root, names: folders(root / "2750", names, (1, 2, 3), form="x_{}.jpg"),
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Plants a task's tree of all its classes, two pictures to train and one to test of each.

    torchvision does not compare checksums.
    """
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [["data_batch_1", ""]])

    def plant(name):
        TREES[name](tmp_path / tasks.TASKS[name].folder, source_names(name))
        return tmp_path

    return plant


@pytest.mark.parametrize("name", tasks.TASKS)
def test_each_split_has_its_pictures_and_their_labels(name, planted):
    """The label is the class's place in the full list of another project."""
    task = tasks.TASKS[name]
    task = replace(task, drawn=(2, 1)) if task.drawn else task
    data = planted(name)
    splits = [tasks.read_split(task, data, train) for train in (True, False)]
    training_files = set()
    for split, count in zip(splits, (2, 1)):
        labels = [label for _, label in split]
        assert sorted(labels) == sorted([*range(len(source_names(name)))] * count)
        for picture, label in split:
            assert picture.mode == "RGB"
            assert np.abs(np.subtract(picture.getpixel((4, 4)), colour(label))).max() < 4
        files = {str(source) for source, _ in split.samples}
        assert "CIFAR" in name or not training_files & files
        training_files |= files

    assert tasks.report_on(task, data, splits).verdict == "differs"

    complete = replace(task, pictures=(2 * task.classes, task.classes))
    assert tasks.report_on(complete, data, splits).data_edition == f"verified: {task.split}"


# What OpenAI calls a class otherwise than its data set does: data set's name, OpenAI's.
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
def test_all_class_names_are_those_of_the_full_list_in_label_order(name):
    task = tasks.TASKS[name]
    openai_names = prompts.class_names({"class_names": task.words}, task.classes)
    full_list = source_names(name)
    assert len(full_list) == len(task.class_names) == task.classes

    plain = [normalised_name(re.sub("^/./", "", class_name)) for class_name in full_list]
    assert [*map(normalised_name, task.class_names)] == plain
    assert len({*plain}) == task.classes  # so that a name has one label

    reworded = OPENAI_WORDS.get(name, {})
    expected = [reworded.get(class_name, class_name) for class_name in task.class_names]
    assert [*map(normalised_name, openai_names)] == [*map(normalised_name, expected)]

    if GOLDEN[name]["order"] == "sorted":  # as torchvision sorts names; "_" comes before letters
        assert list(task.class_names) == sorted(task.class_names)


def test_the_names_of_flowers_are_torchvisions():
    names = getattr(torchvision.datasets.Flowers102, "classes", None)
    if names is None:
        pytest.skip("this torchvision has no names of flowers")
    assert list(tasks.TASKS["Flowers102"].class_names) == names


def test_contexts_come_from_elsewhere_where_a_task_has_a_single_template():
    names = {name for name, task in tasks.TASKS.items() if task.contexts}
    assert names == {"OxfordIIITPet", "Flowers102", "Food101"}


def labels_by_class(split):
    """Class name, as the file's folder or own name has it -> the labels that its pictures have."""
    labels = {}
    for file, label in split.samples:
        labels.setdefault(str(file.parent.name), set()).add(label)
    return labels


def drop_line(path, text):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if text not in line))


def drop_food(root, name):
    path = root / "meta" / "train.json"
    listed = json.loads(path.read_text())
    del listed[name]
    path.write_text(json.dumps(listed))


WITHOUT_A_CLASS = {
    "EuroSAT": lambda root: shutil.rmtree(root / "2750" / "Forest"),
    "Caltech101": lambda root: shutil.rmtree(root / "101_ObjectCategories" / "accordion"),
    "DTD": lambda root: drop_line(root / "dtd" / "labels" / "train1.txt", "blotchy/"),
    "Food101": lambda root: drop_food(root, "baklava"),
    "SUN397": lambda root: (
        drop_line(root / "ClassName.txt", "/a/alley") or shutil.rmtree(root / "a" / "alley")
    ),
}
MISSING_CLASSES = dict(EuroSAT="Forest", Caltech101="accordion", DTD="blotchy", Food101="baklava")


@pytest.mark.parametrize("name", WITHOUT_A_CLASS)
def test_a_missing_class_shifts_no_label_and_is_named(name, planted, capsys):
    task = tasks.TASKS[name]
    task = replace(task, drawn=(2, 1)) if task.drawn else task
    data = planted(name)
    complete = labels_by_class(tasks.read_split(task, data, True))
    WITHOUT_A_CLASS[name](data / task.folder)

    split = tasks.read_split(task, data, True)
    missing = MISSING_CLASSES.get(name, "alley")
    remaining = labels_by_class(split)
    if name == "DTD":  # still in the list val1.txt
        assert remaining == complete and len(split) == 2 * task.classes - 1
        drop_line(data / "dtd" / "dtd" / "labels" / "val1.txt", "blotchy/")
        split = tasks.read_split(task, data, True)
        remaining = labels_by_class(split)
    assert remaining == {key: labels for key, labels in complete.items() if key != missing}
    assert len(split.classes) == task.classes

    report = tasks.report_on(task, data, [split])
    problem = f"train has no picture of 1 of the {task.classes} classes: '{missing}'"
    assert report.verdict == "broken" and report.problems[0].startswith(problem)
    assert cli.main(["data", "verify", name, "--data_dir", str(data)]) == 1
    assert f"problem: {problem}" in capsys.readouterr().out


def more_aircraft(root):
    variants = root / "data" / "variants.txt"
    variants.write_text("A000\n" + variants.read_text())
    for split in ("trainval", "test"):
        path = root / "data" / f"images_variant_{split}.txt"
        path.write_text(path.read_text() + "\n0-0 A000")


WITH_ONE_MORE = {
    "EuroSAT": lambda root: [
        paint(root / "2750" / "Beach" / f"x_{number}.jpg", 0) for number in range(3)
    ],
    "Caltech101": lambda root: [
        paint(root / "101_ObjectCategories" / "abacus" / f"image_{number:04d}.jpg", 0)
        for number in range(1, 4)
    ],
    "FGVCAircraft": more_aircraft,
}


@pytest.mark.parametrize("name", WITH_ONE_MORE)
def test_one_more_class_shifts_no_label_and_is_named(name, planted):
    task = tasks.TASKS[name]
    task = replace(task, drawn=(2, 1)) if task.drawn else task
    data = planted(name)
    complete_samples = tasks.read_split(task, data, True).samples
    WITH_ONE_MORE[name](data / task.folder)

    split = tasks.read_split(task, data, True)
    assert split.samples == complete_samples and len(split.classes) == task.classes

    report = tasks.report_on(task, data, [split])
    assert report.verdict == "broken"
    assert "has pictures of classes that" in report.problems[0]
    with pytest.raises(CarftError, match="data of .* is broken: train has pictures of classes"):
        raise CarftError(report.refusal)
    assert f"carft data verify {name} --data_dir {data}" in report.refusal


def test_empty_folders_and_a_missing_background_do_no_harm(planted):
    data = planted("EuroSAT")
    (data / "eurosat" / "2750" / ".ipynb_checkpoints").mkdir()
    task = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1))
    assert tasks.report_on(task, data, [tasks.read_split(task, data, True)]).verdict == "differs"
    planted("Caltech101")
    shutil.rmtree(data / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google")
    task = replace(tasks.TASKS["Caltech101"], drawn=(2, 1))
    assert len(tasks.read_split(task, data, True)) == 202


def test_a_class_that_the_list_of_classes_lacks_is_named(planted):
    data = planted("SUN397")
    drop_line(data / "SUN397" / "ClassName.txt", "/j/jail/indoor")
    with pytest.raises(
        CarftError, match="SUN397 cannot be read .*lists have no entry 'jail/indoor"
    ):
        tasks.read_split(tasks.TASKS["SUN397"], data, True)


def test_our_algorithms_refuse_a_task_without_a_class_and_others_warn(
    planted, tmp_path, monkeypatch, capsys
):
    data = planted("EuroSAT")
    shutil.rmtree(data / "eurosat" / "2750" / "Forest")
    small = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1))
    monkeypatch.setattr(data_sets.TASKS["EuroSAT"], "TASK", small)
    flags = ["--dataset", "EuroSAT", "--data_dir", str(data), "--test_envs", "--steps", "1"]
    flags += ["--workers", "0", "--algorithm", "CARFT"]
    hparams = {"clip_backbone": "tiny", "batch_size": 2}
    arguments = [*flags, "--hparams", json.dumps(hparams), "--output_dir", str(tmp_path / "out")]
    assert train.main(arguments)

    message = "is broken: train has no picture of 1 of the 10 classes: 'Forest'"
    assert message in capsys.readouterr().err

    data_sets.TASKS["EuroSAT"](str(data), [], {"data_augmentation": True})
    assert "Warning: the data of EuroSAT" in capsys.readouterr().err


def test_macos_metadata_in_a_task_archive_is_removed(planted, monkeypatch):
    data = planted("Caltech101")
    archive = data / "caltech101" / "__MACOSX"
    archive.mkdir()
    monkeypatch.setattr(
        tasks, "_torchvision_dataset", lambda *arguments, **options: archive.mkdir(exist_ok=True)
    )
    tasks.download("Caltech101", data)
    assert archive.exists()  # it was there before

    archive.rmdir()
    tasks.download("Caltech101", data)
    assert not archive.exists()


def test_a_class_that_the_test_set_lacks_is_named_in_the_suite(planted):
    data = planted("DTD")
    drop_line(data / "dtd" / "dtd" / "labels" / "test1.txt", "blotchy/")
    (test_set,) = catalogue.of_task("DTD").sets
    copy = test_set.find(data)
    assert copy.problems[0].startswith("test has no picture of 1 of the 47 classes: 'blotchy'")
    assert {label for _, label in copy.samples} == {*range(47)} - {1}


def test_sun397_trains_with_its_two_jail_classes(planted, tmp_path, monkeypatch, capsys):
    """Its list had "jail cell" first, which training refused as names in another order."""
    data = planted("SUN397")
    small = replace(tasks.TASKS["SUN397"], drawn=(1, 1), pictures=(397, 397))
    monkeypatch.setattr(data_sets.TASKS["SUN397"], "TASK", small)
    words = prompts.class_names({"class_names": "sun397"}, 397)
    in_folders = {
        path.parts[-3]: label for path, label in tasks.read_split(small, data, True).samples
    }
    assert words[in_folders["jail"]] == "jail indoor"

    hparams = {"clip_backbone": "tiny", "batch_size": 2}
    arguments = [
        "--algorithm",
        "CARFT",
        "--dataset",
        "SUN397",
        "--data_dir",
        str(data),
        "--test_envs",
    ]
    arguments += ["--hparams", json.dumps(hparams), "--steps", "1", "--workers", "0"]
    assert train.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    assert "Data: verified: own split" in capsys.readouterr().out


def test_missing_data_is_refused_with_the_command_to_download_it(tmp_path, capsys):
    with pytest.raises(CarftError, match=r"no folder .*dtd\); run `carft data download DTD"):
        tasks.read_split(tasks.TASKS["DTD"], tmp_path, True)
    assert not any(tmp_path.iterdir())
    arguments = ["--algorithm", "CARFT", "--dataset", "StanfordCars", "--data_dir", str(tmp_path)]
    assert train.main([*arguments, "--test_envs", "--output_dir", str(tmp_path / "out")])
    assert "needs --data_dir, the folder that has stanford_cars; torchvi" in capsys.readouterr().err
    assert cli.main(["data", "download", "StanfordCars", "--data_dir", str(tmp_path)]) == 1
    assert cli.main(["data", "verify", "DTD"]) == 2
    assert "no longer downloads it" in capsys.readouterr().err


def test_a_task_with_missing_pictures_is_verified_as_different(planted, monkeypatch, capsys):
    monkeypatch.chdir(planted("EuroSAT"))
    assert cli.main(["data", "verify", "EuroSAT", "--data_dir", ".", "--decode"]) == 0
    assert "train has 30 pictures, expected 10,000" in capsys.readouterr().out


def train_carft_on(task, data, output):
    """Two steps of CARFT on a task."""
    hparams = {"clip_backbone": "tiny", "batch_size": 2}
    arguments = ["--algorithm", "CARFT", "--dataset", task, "--data_dir", str(data), "--test_envs"]
    arguments += ["--hparams", json.dumps(hparams), "--steps", "2", "--workers", "0"]
    train.main([*arguments, "--output_dir", str(output)])


def test_a_task_is_trained_and_tested_on_under_openais_words(
    planted, tmp_path, monkeypatch, capsys
):
    data = planted("EuroSAT")
    small = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1), pictures=(20, 10), per_class=True)
    monkeypatch.setitem(tasks.TASKS, "EuroSAT", small)
    monkeypatch.setattr(data_sets.TASKS["EuroSAT"], "TASK", small)
    train_carft_on("EuroSAT", data, tmp_path / "out")
    output = capsys.readouterr().out
    assert "CLIP classes: annual crop land, forest, brushland or shrubland," in output
    assert "CLIP contexts: 3, such as 'a centered satellite photo of {}.'" in output
    assert "CLIP protocol: clip" in output and "Data: verified: own split" in output

    arguments = ["evaluate", str(tmp_path / "out"), "--data_dir", str(data), "--workers", "0"]
    assert cli.main(arguments) == 0

    text = capsys.readouterr().out
    run = saved.open_run(tmp_path / "out")
    pictures = tasks.read_split(small, data, False)
    pictures.transform = run.transform()
    with torch.no_grad():
        right = sum(int(run.algorithm.predict(x[None]).argmax()) == y for x, y in pictures)
    rows = [re.split("  +", line)[:3] for line in text.splitlines()]
    assert ["test (own split)", "10", f"{10 * right:.1f}"] in rows
    assert cli.main([*arguments, "--suite", "EuroSAT", "--json"]) == 0

    (scores,) = json.loads(capsys.readouterr().out)["sets"].values()
    assert (scores["n"], scores["right"], scores["mean_per_class"]) == (
        10,
        right,
        pytest.approx(right / 10),
    )

    (record,) = records.read(tmp_path / "out", warnings=[])  # of two evaluations
    assert record["suite"] == "EuroSAT"
    assert record["sets"]["test (own split)"]["right"] == right

    monkeypatch.setitem(tasks.TASKS, "EuroSAT", replace(small, drawn=(3, 1)))  # none is left
    assert cli.main(arguments) == 0
    assert "no test set of the suite EuroSAT" in capsys.readouterr().out


def test_a_test_picture_that_cannot_be_read_leaves_the_splits_and_ends_with_3(
    planted, tmp_path, monkeypatch, capsys
):
    data = planted("EuroSAT")
    small = replace(tasks.TASKS["EuroSAT"], drawn=(2, 1), pictures=(20, 10))
    monkeypatch.setitem(tasks.TASKS, "EuroSAT", small)
    monkeypatch.setattr(data_sets.TASKS["EuroSAT"], "TASK", small)
    hparams = {"clip_backbone": "tiny", "batch_size": 2}
    training_arguments = [
        "--algorithm",
        "CLIPZeroShot",
        "--dataset",
        "EuroSAT",
        "--data_dir",
        str(data),
    ]
    training_arguments += [
        "--test_envs",
        "--hparams",
        json.dumps(hparams),
        "--steps",
        "1",
        "--workers",
        "0",
    ]
    assert train.main([*training_arguments, "--output_dir", str(tmp_path / "out")]) == 0

    broken, _ = tasks.read_split(small, data, False).samples[0]
    Path(broken).write_bytes(b"no picture")
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "out"), "--data_dir", str(data), "--workers", "0"]
    assert cli.main(arguments) == 3

    text = capsys.readouterr().out
    assert "env0_in" in text

    message = "no test set of the suite EuroSAT can be read: test (own split): a picture of EuroSAT"
    assert f"{message} (test (own split)): {broken} cannot be read" in text
    assert cli.main([*arguments, "--suite", "EuroSAT"]) == 3
    assert f"carft: {message}" in capsys.readouterr().err


def test_a_clip_is_tested_with_the_single_template_of_a_task(planted, capsys):
    data = planted("OxfordIIITPet")
    arguments = ["--clip", "tiny", "--suite", "OxfordIIITPet", "--data_dir", str(data), "--json"]
    assert cli.main(["evaluate", *arguments, "--workers", "0"]) == 0

    document = json.loads(capsys.readouterr().out)
    clip = backbone.load("tiny")
    names = (ASSETS / "class_names" / "pets.txt").read_text().splitlines()
    texts = backbone.text_features(
        clip, [[f"a photo of a {name}, a type of pet." for name in names]]
    )
    pictures = tasks.read_split(tasks.TASKS["OxfordIIITPet"], data, False)
    transform = PlanTransform(plan_for("clip", 48, False))
    with torch.no_grad():
        x = torch.stack([transform(picture) for picture, _ in pictures])
        predictions = (clip.model.visual(x) @ F.normalize(texts[0], dim=-1).T).argmax(dim=1)
    right = int((predictions == torch.tensor([label for _, label in pictures])).sum())
    assert document["sets"]["test"]["right"] == right
    assert not document["sets"]["test"]["complete"]


def test_the_mean_over_classes_weighs_classes_equally():
    def figures(predicted, label):
        probabilities = np.ones(len(label))
        columns = (np.array(label, np.uint16), np.array(predicted, np.uint16))
        rows = PictureRows(*columns, probabilities, 0 * probabilities, probabilities)
        return measure(rows, ("cat", "dog", "none of the pictures"))

    few = figures([0, 0, 0, 1], label=[0, 0, 1, 1])
    assert (few.accuracy, few.mean_per_class) == (0.75, 0.75)

    more = figures([0, 0, 0, 1, 0, 0], label=[0, 0, 1, 1, 0, 0])
    assert (more.accuracy, more.mean_per_class) == (5 / 6, 0.75)
