"""ImageNet as training data: made-up folders of the 1,000 classes."""

import json
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_trees import PICTURE, carft, grow, without_privileges
from domainbed import datasets
from domainbed.lib import fast_data_loader, image_folders
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.data import picture_files
from domainbed_carft.errors import CarftError, PassingError
from domainbed_carft.method import algorithms, job, prompts
from domainbed_carft.method.algorithms import hparam_values
from domainbed_carft.pictures.image_lists import Passes
from domainbed_carft.plugin import foreign_jobs
from domainbed_carft.runs import saved, splits
from domainbed_carft.suites import imagenet


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures of each class."""
    data = tmp_path_factory.mktemp("data")
    for label, name in enumerate(imagenet.wordnet_ids()):
        folder = data / "imagenet" / "train" / name
        folder.mkdir(parents=True)
        for number in (1040, 104):
            colour = (label % 256, number % 256, label // 4)
            picture = Image.new("RGB", (8 + label % 5, 9), colour)
            picture.save(folder / f"{name}_{number}.JPEG")
    return data


def built(root, **values):
    hparams = {"data_augmentation": True, "protocol": "wise-ft", **values}
    return datasets.get_dataset_class("ImageNet")(str(root), [], hparams)


def test_the_pictures_are_those_of_the_class_folders_by_name(data):
    dataset = built(data)
    (environment,) = dataset
    expected = [
        (str(path), label)
        for label, name in enumerate(imagenet.wordnet_ids())
        for path in sorted((data / "imagenet" / "train" / name).iterdir())
    ]
    assert list(environment.samples) == expected
    assert "differs" in dataset.data_edition


def test_an_unreadable_picture_is_named():
    with pytest.raises(PassingError, match=r"gone.png cannot be read: .*restore the file"):
        picture_files.PictureDataset([("gone.png", 0)], ["a"])[0]


def test_a_job_evaluates_the_two_percent_that_are_held_out(data, tmp_path, monkeypatch, capsys):
    hparams = {
        "clip_backbone": "tiny",
        "contexts": ["a {}.", "a photo of a {}."],
        "lr": 1e-4,
        "batch_size": 8,
        "sampling": "passes",
        "total_steps": 4,
    }
    evaluated = []
    evaluation_requests = fast_data_loader.evaluation_requests

    def noting_requests(sizes, *arguments):
        evaluated.append(sizes)
        return evaluation_requests(sizes, *arguments)

    monkeypatch.setattr(fast_data_loader, "evaluation_requests", noting_requests)

    flags = "--dataset ImageNet --algorithm CARFT --test_envs --checkpoint_freq 2 --workers 0 \
        --steps 4 --holdout_fraction 0.02 --keep_weights last"
    paths = ["--data_dir", str(data), "--output_dir", str(tmp_path / "a")]
    assert train.main([*flags.split(), *paths, "--hparams", json.dumps(hparams)]) == 0
    records = [json.loads(line) for line in (tmp_path / "a" / "results.jsonl").open()]

    (split,) = splits.splits(saved.open_run(tmp_path / "a"))
    assert (split.name, len(split)) == ("env0_out", 40)
    assert {tuple(sizes) for sizes in evaluated} == {(0, 40)}  # of 2,000 the 2% that are held out
    assert "env0_out_acc" in records[-1] and "env0_in_acc" not in records[-1]
    assert records[-1]["protocol"] == "wise-ft" and "fast" in records[-1]["pictures"]
    assert f"CLIP classes: {', '.join(imagenet.class_names())}\n" in capsys.readouterr().out
    assert cli.main(["collect", str(tmp_path / "a")]) == 0
    assert "nothing left out, out-splits at the last step" in capsys.readouterr().out


def test_a_pass_has_each_picture_once_and_any_batch_can_be_drawn_first():
    batches = [Passes(200, 7).batch(number, 30) for number in range(20)]
    flat = np.concatenate(batches)
    assert all(Counter(flat[i * 200 : (i + 1) * 200]) == Counter(range(200)) for i in range(3))
    assert not np.array_equal(flat[:200], flat[200:400])
    assert Passes(200, 7).batch(13, 30) == batches[13]
    assert Passes(200, 8).batch(13, 30) != batches[13]
    assert Passes(3, 0).batch(0, 8) == [*Passes(3, 0).batch(0, 6), *Passes(3, 0).batch(3, 2)]


def test_an_unreadable_train_folder_is_reported_in_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "imagenet/train").mkdir(parents=True)
        (folder / "imagenet/train").chmod(0)
        folder.chmod(0o777)
        flags = f"--dataset ImageNet --algorithm CARFT --test_envs --data_dir {folder}"
        hparams = json.dumps({"clip_backbone": "tiny", "batch_size": 2})
        with without_privileges():
            arguments = [*flags.split(), "--hparams", hparams, "--output_dir", str(folder / "job")]
            assert train.main(arguments) == 2
        message = (
            f"train: {folder}/imagenet/train cannot be read as a folder (Permission denied); exp"
        )
        (line,) = (folder / "job/err.txt").read_text().splitlines()
        assert line.startswith(message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda train: (train / "n01440764").rename(train / "tench"),
            "missing 'n01440764', extra 'tench'",
        ),
        (lambda train: (train / "00").mkdir(), "missing none, extra '00'"),
        (
            lambda train: train.rename(f"{train}ing"),
            "ImageNet needs --data_dir, .*a folder of pictures for each",
        ),
    ],
)
def test_folders_of_other_classes_are_refused(tmp_path, spoil, message):
    for name in imagenet.wordnet_ids():
        (tmp_path / "imagenet" / "train" / name).mkdir(parents=True)
    with pytest.raises(CarftError, match="1,000 of 1,000 classes have no picture"):
        hparams = hparam_values("CARFT", "ImageNet")
        datasets.get_dataset_class("ImageNet")(str(tmp_path), [], hparams)
        job.find_facts(hparams, 1000, has_kl=True)
    spoil(tmp_path / "imagenet" / "train")
    with pytest.raises(CarftError, match=message):
        built(tmp_path)


def test_imagenet_has_openais_class_names_and_a_valid_recipe():
    values = hparam_values("CARFT", "ImageNet")
    assert prompts.class_names(values, 1000) == [*imagenet.class_names()]
    assert values["total_steps"] == datasets.get_dataset_class("ImageNet").N_STEPS

    problems = algorithms.CARFT.hparam_problems("ImageNet", {"sampling": "epochs"})
    assert [str(problem) for problem in problems] == [
        "sampling is 'epochs', expected one of 'with-replacement', 'passes'"
    ]

    values |= {"sampling": "passes", "protocol": "domainbed"}
    values |= {"clip_backbone": "tiny"}
    assert job.find_facts(values, 1000, has_kl=True).amp == "off"
    message = "sampling is 'passes', expected 'with-replacement'"
    with pytest.raises(CarftError, match=message):
        job.find_facts({**values, "class_balanced": True}, 1000, has_kl=True)

    in_checkout = foreign_jobs.in_foreign_host(algorithms.CARFT, "domainbed.algorithms")
    with pytest.raises(CarftError, match=message):
        in_checkout((3, 224, 224), 1000, 3, values)


# carft data verify and carft sweep launch


@pytest.fixture
def copy(tmp_path):
    """A data folder with a picture of each class to train and to validate with."""
    for part in ("train", "val"):
        grow(tmp_path / "imagenet", {part: dict.fromkeys(imagenet.wordnet_ids(), 1)}, PICTURE)
    return tmp_path


def test_both_sets_of_imagenet_are_verified(copy):
    done = carft("verify", "ImageNet", "--data_dir", copy)
    assert done.returncode == 1  # 1,000 pictures are no validation set

    _, _, *rows = done.stdout.splitlines()
    assert rows[0].split() == ["train", "1,000", "1,000"]
    assert rows[1].split() == ["val", "1,000", "1,000"]
    assert "difference: train: has 1,000 pictures, expected 1,281,167" in done.stdout
    assert "problem: val: 1,000 pictures, expected 50,000" in done.stdout

    shutil.rmtree(copy / "imagenet" / "val")
    done = carft("verify", "ImageNet", "--data_dir", copy, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "differs"
    assert "no validation set, which only evaluation needs" in done.stdout


@pytest.mark.parametrize("part", ["train", "val"])
def test_imagenet_without_a_class_folder_is_broken(copy, part):
    shutil.rmtree(copy / "imagenet" / part / "n01440764")
    done = carft("verify", "ImageNet", "--data_dir", copy)
    assert done.returncode == 1
    assert re.search(rf"problem: {part}: .*'n01440764'", done.stdout), done.stdout


def test_imagenet_folders_lacking_a_class_are_recognised(copy):
    assert carft("verify", copy / "imagenet").stdout.splitlines()[-1].startswith("consistent")
    for part in ("train", "val"):
        shutil.rmtree(copy / "imagenet" / part / "n01440764")
    done = carft("verify", copy / "imagenet")
    assert "differs" in done.stdout
    assert "missing 'n01440764', extra none" in done.stdout
    assert "carft data verify ImageNet --data_dir" in done.stdout
    done = carft("verify", copy / "imagenet" / "train")
    assert done.returncode == 1
    assert "are ImageNet's classes, not environments" in done.stdout
    assert "\n  ... and 949 more\n" in done.stdout and len(done.stdout.splitlines()) < 60


def launched(data_dir, output, *flags):
    return cli.main(
        [
            "sweep",
            "launch",
            "imagenet",
            "--data_dir",
            str(data_dir),
            "--output_dir",
            str(output),
            "--yes",
            *flags,
        ]
    )


def test_the_sweep_checks_the_training_set(copy, tmp_path, capsys):
    assert launched(copy, tmp_path / "out", "--dry-run") == 0
    assert "Data: ImageNet: differs: " in capsys.readouterr().out

    (copy / "imagenet" / "train" / "n01440764").rename(copy / "imagenet" / "train" / "tench")
    assert launched(copy, tmp_path / "out") == 1

    message = capsys.readouterr().err
    assert "missing 'n01440764', extra 'tench'" in message
    assert f"carft data verify ImageNet --data_dir {copy}" in message
    assert not (tmp_path / "out").exists()

    shutil.rmtree(copy / "imagenet" / "train")
    assert launched(copy, tmp_path / "out") == 1
    assert f"ImageNet is missing, expected its folder {copy}/imagenet/train" in (
        capsys.readouterr().err
    )


def test_a_missing_data_folder_is_reported_once(tmp_path, capsys):
    missing = tmp_path / "gone"
    message = f"--data_dir {missing} does not exist"
    for name in ("ImageNet", "ImageNet-A", "DTD", "PACS"):
        done = carft("verify", name, "--data_dir", missing)
        assert done.returncode == 2 and done.stderr.count(message) == 1, name
        assert len(done.stderr.splitlines()) == 1

    for sweep in ("imagenet", "tasks", "domainbed"):
        arguments = ["sweep", "launch", sweep, "--data_dir", str(missing)]
        assert cli.main([*arguments, "--output_dir", str(tmp_path / "out"), "--yes"]) == 1
        assert capsys.readouterr().err.count(str(missing)) == 1
        assert cli.main([*arguments, "--output_dir", str(tmp_path / "out"), "--dry-run"]) == 0
        assert capsys.readouterr().out.count(str(missing)) == 1

    for suite in ("imagenet", "DTD"):
        arguments = ["evaluate", "--clip", "tiny", "--suite", suite, "--data_dir", str(missing)]
        assert cli.main(arguments) == 1
        assert capsys.readouterr().err.count(str(missing)) == 1

    for name in ("ImageNet", "DTD", "PACS"):
        arguments = ["--algorithm", "CARFT", "--dataset", name, "--data_dir", str(missing)]
        assert train.main([*arguments, "--test_envs", "--output_dir", str(tmp_path / "out")])
        assert capsys.readouterr().err.count(message) == 1


def test_a_wrong_number_of_classes_is_refused_in_a_short_message():
    with pytest.raises(CarftError, match="1,000 class names .* and 990 more") as raised:
        prompts.class_names({"class_names": "imagenet"}, 7)
    assert len(str(raised.value)) < 400

    names = [*imagenet.class_names()][:2]
    with pytest.raises(CarftError, match="only one of them has .* and 997 more") as raised:
        image_folders.require_same_classes(["a", "b"], [names, [*imagenet.wordnet_ids()]])
