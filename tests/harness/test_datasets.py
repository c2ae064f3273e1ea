"""Data sets."""

from __future__ import annotations

import urllib.error

import numpy as np
import pytest
import torch
from domainbed import datasets
from domainbed.lib.errors import Failure, UsageError
from PIL import Image
from torchvision.datasets import MNIST

from . import fixed_inputs

HPARAMS = {"data_augmentation": True}


def write_tree(root, environments, classes=("cat", "dog"), per_class=2):
    """Write pictures of noise under root/environment/class/."""
    noise = np.random.default_rng(0)
    for environment in environments:
        for name in classes:
            folder = root / environment / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.parametrize(("name", "size"), [("Debug28", 28), ("Debug224", 224)])
def test_noise(name, size):
    torch.manual_seed(0)
    dataset = datasets.get_dataset_class(name)(None, [0], HPARAMS)
    assert len(dataset) == len(list(dataset)) == 3
    assert (dataset.input_shape, dataset.num_classes) == ((3, size, size), 2)
    for environment in dataset:
        assert len(environment) == 16
        image, label = environment[0]
        assert image.shape == (3, size, size)
        assert label in (0, 1)


def test_step_counts():
    assert datasets.Debug28.N_STEPS == datasets.PACS.N_STEPS == 5001
    assert datasets.Debug28.N_WORKERS == 8
    frequencies = [datasets.Debug28.CHECKPOINT_FREQ, datasets.PACS.CHECKPOINT_FREQ]
    assert [*frequencies, datasets.DomainNet.CHECKPOINT_FREQ] == [100, 300, 1000]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("VLCS", "VLCS"),
        ("PACS", "PACS"),
        ("OfficeHome", "office_home"),
        ("TerraIncognita", "terra_incognita"),
        ("DomainNet", "domain_net"),
        ("SVIRO", "sviro"),
    ],
)
def test_benchmarks_read_their_folder(tmp_path, name, folder):
    dataset_class = datasets.get_dataset_class(name)
    write_tree(tmp_path / folder, dataset_class.ENVIRONMENTS, per_class=1)
    dataset = dataset_class(str(tmp_path), [0], HPARAMS)
    assert len(dataset) == len(dataset_class.ENVIRONMENTS)
    assert dataset.num_classes == 2
    assert dataset[0][0][0].shape == dataset.input_shape == (3, 224, 224)


def test_environments_are_sorted_and_files_beside_them_ignored(tmp_path):
    write_tree(tmp_path, ["zoo", "alps"])
    (tmp_path / "notes.txt").write_text("")
    dataset = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})
    assert [folder.root.rsplit("/", 1)[1] for folder in dataset] == ["alps", "zoo"]
    assert dataset[0].classes == ["cat", "dog"]


def test_only_training_environments_are_augmented(tmp_path):
    write_tree(tmp_path, ["a", "b"])

    def repeats(dataset, environment):
        """Whether reading a picture twice gives the same."""
        return torch.equal(dataset[environment][0][0], dataset[environment][0][0])

    augmented = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], True, {})
    assert not repeats(augmented, 0)
    assert repeats(augmented, 1)
    plain = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], False, {})
    assert repeats(plain, 0)


def test_pictures_are_squeezed_and_normalised(tmp_path):
    folder = tmp_path / "only" / "grey"
    folder.mkdir(parents=True)
    Image.new("L", (50, 20), 128).save(folder / "0.png")
    dataset = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})
    image, label = dataset[0][0]
    expected = [(128 / 255 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert label == 0
    assert image.mean(dim=(1, 2)).tolist() == pytest.approx(expected, abs=1e-6)
    assert image.std(dim=(1, 2)).max() < 1e-6


def test_cut_off_pictures_are_read(tmp_path):
    folder = tmp_path / "only" / "noise"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg")
    whole = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(whole[: len(whole) // 2])
    dataset = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})
    assert dataset[0][0][0].shape == (3, 224, 224)


def test_differing_classes_are_refused_by_name(tmp_path):
    write_tree(tmp_path, ["a", "b"])
    write_tree(tmp_path, ["c"], classes=("cat", "fox"))
    with pytest.raises(
        ValueError, match=r"Environments 'a' and 'c' must have the same class .*: dog, fox"
    ):
        datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match=f"PACS is not there: expected the folder {tmp_path}/PACS"):
        datasets.PACS(str(tmp_path), [0], HPARAMS)
    (tmp_path / "PACS").mkdir()
    with pytest.raises(UsageError, match=r"found none in .*PACS"):
        datasets.PACS(str(tmp_path), [0], HPARAMS)
    with pytest.raises(UsageError, match="PACS needs a data folder: give --data_dir"):
        datasets.PACS(None, [0], HPARAMS)


def test_an_environment_without_pictures_is_named(tmp_path):
    write_tree(tmp_path, ["a", "b"])
    (tmp_path / "b" / "fox").mkdir()
    with pytest.raises(UsageError, match=rf"pictures in each: {tmp_path}/b \(.*fox"):
        datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})


def test_digits_are_upstreams(golden, tmp_path):
    """Same shuffle, labels, label noise, colours and angles under the same seed."""
    fixed_inputs.write_digits(tmp_path)
    cases = golden("digits.json")
    assert {case["dataset"] for case in cases} == {"ColoredMNIST", "RotatedMNIST"}
    for case in cases:
        torch.manual_seed(case["seed"])
        dataset = datasets.get_dataset_class(case["dataset"])(str(tmp_path), [0], HPARAMS)
        assert len(dataset) == len(dataset.ENVIRONMENTS) == len(case["environments"])
        for environment, expected in zip(dataset, case["environments"], strict=True):
            images, labels = environment.tensors
            assert images[0].shape == dataset.input_shape
            assert labels.dtype == torch.int64
            assert labels.tolist() == expected["labels"]
            sums = torch.tensor(expected["sums"])
            assert torch.allclose(images.sum(dim=(2, 3)), sums, atol=1e-2)
        assert torch.rand(1).item() == case["drawn_afterwards"]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(MNIST, "download", refuse)


def test_digits_in_place_are_not_downloaded(tmp_path, offline):
    fixed_inputs.write_digits(tmp_path)
    assert len(datasets.ColoredMNIST(str(tmp_path), [0], HPARAMS)) == 3


def test_absent_digits_without_a_network_say_which_files_belong_where(tmp_path, offline, capsys):
    fixed_inputs.write_digits(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(Failure) as failed:
        datasets.RotatedMNIST(str(tmp_path), [0], HPARAMS)
    problem = str(failed.value)
    folder = tmp_path / "MNIST" / "raw"
    assert "could not be downloaded (<urlopen error no network>). Put train-images" in problem
    assert f"t10k-labels-idx1-ubyte into {folder}" in problem
    assert capsys.readouterr().out.endswith(": t10k-labels-idx1-ubyte. Downloading.\n")


@pytest.mark.parametrize(
    ("name", "spoil", "what"),
    [
        ("train-images-idx3-ubyte", lambda data: b"", r"0 bytes, which do not begin as MNIST's"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "9 bytes, which do not begin"),
        ("t10k-images-idx3-ubyte", lambda data: data[:-784], "14912 bytes in place of 15696"),
        ("t10k-labels-idx1-ubyte", lambda data: data + b"1", "29 bytes in place of 28"),
        ("t10k-labels-idx1-ubyte", lambda data: b"<html>", "6 bytes, which do not begin"),
    ],
)
def test_damaged_digits_are_named(tmp_path, offline, name, spoil, what):
    fixed_inputs.write_digits(tmp_path)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UsageError) as refused:
        datasets.RotatedMNIST(str(tmp_path), [0], HPARAMS)
    (problem,) = refused.value.problems
    assert problem.startswith(f"MNIST's file {path} is damaged: it has {what}")
    assert "Delete it, and it is downloaded" in problem


def test_digits_with_the_labels_of_others_are_refused(tmp_path, offline):
    fixed_inputs.write_digits(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(UsageError, match=r"do not belong together: \d+ pictures and 20 labels"):
        datasets.RotatedMNIST(str(tmp_path), [0], HPARAMS)


def test_digits_need_a_folder():
    with pytest.raises(UsageError, match="RotatedMNIST needs a data folder: give --data_dir"):
        datasets.RotatedMNIST(None, [0], HPARAMS)
