"""ImageNet as training data: made-up folders of the 1,000 classes."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from data_trees import PICTURE, carft, grow
from domainbed import datasets
from domainbed.scripts import train

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, job, prompts
from domainbed_carft.method.algorithms import hparam_values
from domainbed_carft.pictures.image_lists import Passes
from domainbed_carft.plugin import foreign_jobs
from domainbed_carft.runs import saved, splits
from domainbed_carft.suites import imagenet


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with two images of each class to train, and one to validate with."""
    data = tmp_path_factory.mktemp("data")
    counts = {
        part: dict.fromkeys(imagenet.wordnet_ids(), n) for part, n in (("train", 2), ("val", 1))
    }
    grow(data / "imagenet", counts, PICTURE)
    return data


def build(root):
    hparams = {"data_augmentation": True, "protocol": "wise-ft"}
    return datasets.get_dataset_class("ImageNet")(str(root), [], hparams)


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


def test_a_pass_has_each_picture_once_and_any_batch_can_be_drawn_first():
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
        (lambda train: train.rename(f"{train}ing"), "ImageNet needs --data_dir, .*a folder of pic"),
    ],
)
def test_folders_of_other_classes_are_refused(tmp_path, spoil, message):
    folder = grow(tmp_path, {"imagenet/train": dict.fromkeys(imagenet.wordnet_ids(), 1)}, PICTURE)
    (environment,) = build(folder)
    labels = [path.split("/")[-2] for path, _ in environment.samples]
    assert labels == [*imagenet.wordnet_ids()]
    spoil(folder / "imagenet" / "train")
    with pytest.raises(CarftError, match=message):
        build(folder)


def test_imagenet_has_openais_class_names_and_a_valid_recipe():
    values = hparam_values("CARFT", "ImageNet")
    assert prompts.class_names(values, 1000) == [*imagenet.class_names()]
    assert values["total_steps"] == datasets.get_dataset_class("ImageNet").N_STEPS

    values |= {"sampling": "passes", "protocol": "domainbed", "clip_backbone": "tiny"}
    assert job.find_facts(values, 1000, has_kl=True).amp == "off"
    message = "sampling is 'passes', expected 'with-replacement'"
    with pytest.raises(CarftError, match=message):
        job.find_facts({**values, "class_balanced": True}, 1000, has_kl=True)
    in_checkout = foreign_jobs.in_foreign_host(algorithms.CARFT, "domainbed.algorithms")
    with pytest.raises(CarftError, match=message):
        in_checkout((3, 224, 224), 1000, 3, values)


# carft data verify and carft sweep launch


def test_both_sets_of_imagenet_are_verified(data, tmp_path):
    done = carft("verify", "ImageNet", "--data_dir", data)
    assert done.returncode == 1  # 1,000 images are no validation set
    assert "difference: train: has 2,000 pictures, expected 1,281,167" in done.stdout
    assert "problem: val: 1,000 pictures, expected 50,000" in done.stdout

    copy = shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(copy / "imagenet" / "val")
    done = carft("verify", "ImageNet", "--data_dir", copy, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["verdict"] == "differs"
    shutil.rmtree(copy / "imagenet" / "train" / "n01440764")
    done = carft("verify", "ImageNet", "--data_dir", copy)
    assert done.returncode == 1 and "'n01440764'" in done.stdout


def launch(data_dir, output, *flags):
    words = [
        "sweep",
        "launch",
        "imagenet",
        "--data_dir",
        str(data_dir),
        "--output_dir",
        str(output),
    ]
    return cli.main([*words, "--yes", *flags])


def test_the_sweep_checks_the_training_set(data, tmp_path, capsys):
    assert launch(data, tmp_path / "out", "--dry-run") == 0
    assert "Data: ImageNet: differs: " in capsys.readouterr().out

    folder = tmp_path / "data" / "imagenet" / "train"
    folder.mkdir(parents=True)
    (folder / "tench").symlink_to(data / "imagenet" / "train" / "n01440764")
    assert launch(tmp_path / "data", tmp_path / "out") == 1
    assert f"carft data verify ImageNet --data_dir {tmp_path / 'data'}" in capsys.readouterr().err
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
