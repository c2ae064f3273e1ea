"""Datasets, and the command that downloads them."""

from types import SimpleNamespace

import pytest
import torch
from data_trees import even, grow, jpeg
from domainbed import datasets
from domainbed.scripts import download, train

from domainbed_carft.errors import CarftError

from . import fakes

HPARAMS = {"data_augmentation": True}


FOLDERS = {
    "VLCS": "VLCS",
    "PACS": "PACS",
    "OfficeHome": "office_home",
    "SVIRO": "sviro",
    "TerraIncognita": "terra_incognita",
    "DomainNet": "domain_net",
}


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_each_benchmark_reads_its_folder(tmp_path, name, folder):
    dataset_class = datasets.get_dataset_class(name)
    grow(tmp_path / folder, even(["cat", "dog"], dataset_class.ENVIRONMENTS), jpeg())

    dataset = dataset_class(str(tmp_path), [0], HPARAMS)

    assert len(dataset) == len(dataset_class.ENVIRONMENTS)
    assert dataset.num_classes == 2
    assert dataset[0][0][0].shape == dataset.input_shape == (3, 224, 224)


def test_only_training_environments_are_augmented(tmp_path):
    grow(tmp_path, even(["cat", "dog"]), jpeg())

    def is_deterministic(dataset, environment):
        """Whether an image is the same when it is read again."""
        return torch.equal(dataset[environment][0][0], dataset[environment][0][0])

    augmented = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], True, {})
    assert not is_deterministic(augmented, 0)
    assert is_deterministic(augmented, 1)

    plain = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], False, {})
    assert is_deterministic(plain, 0)


def test_truncated_images_are_read(tmp_path):
    grow(tmp_path, even(["noise"], ["only"]), jpeg()[:-900])
    dataset = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})
    assert dataset[0][0][0].shape == (3, 224, 224)


@pytest.fixture
def calls(monkeypatch):
    """The datasets and folders that a stand-in was told to download; VLCS fails."""
    calls = []

    def stand_in(name, folder):
        calls.append((name, str(folder)))
        if name == "VLCS":
            raise CarftError("the link is dead")
        return SimpleNamespace(status="verified", images=3, root=folder / name)

    monkeypatch.setattr(download, "download", stand_in)
    return calls


def test_upstreams_or_the_named_datasets_are_downloaded_and_failures_are_shown(calls, capsys):
    assert download.main(["--data_dir", "some where"]) == 0
    assert calls == [("TerraIncognita", "some where")]
    assert "verified: 3 images in some where/TerraIncognita" in capsys.readouterr().out

    calls.clear()
    assert download.main(["--data_dir", "d", "--datasets", "PACS", "VLCS"]) == 1
    assert calls == [("PACS", "d"), ("VLCS", "d")]
    assert capsys.readouterr().err == "download: the link is dead\n"


class Plain:
    """A dataset by upstream's contract alone, without a base class."""

    ENVIRONMENTS = ("a", "b")
    N_STEPS = 2
    CHECKPOINT_FREQ = 1
    N_WORKERS = 0
    input_shape = (3,)
    num_classes = 2

    def __init__(self, root, test_envs, hparams):
        items = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 2
        self.datasets = [torch.utils.data.TensorDataset(*items) for _ in self.ENVIRONMENTS]

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


@pytest.mark.usefixtures("registered")
def test_a_dataset_without_our_base_class_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "Plain", Plain, raising=False)
    assert train.main(fakes.quick(tmp_path, "--dataset", "Plain", "--algorithm", "Still")) == 0

    last = fakes.records(tmp_path)[-1]
    assert {"env0_in_acc", "env1_out_acc"} <= last.keys()
    assert not {"data_edition", "protocol"} & last.keys()
    assert issubclass(datasets.get_dataset_class("Plain"), Plain)
