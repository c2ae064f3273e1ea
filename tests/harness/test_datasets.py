"""Data sets."""

from __future__ import annotations

import pytest
import torch
from data_trees import even, grow, jpeg
from domainbed import datasets

HPARAMS = {"data_augmentation": True}


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
    grow(tmp_path / folder, even(["cat", "dog"], dataset_class.ENVIRONMENTS), jpeg())
    dataset = dataset_class(str(tmp_path), [0], HPARAMS)
    assert len(dataset) == len(dataset_class.ENVIRONMENTS)
    assert dataset.num_classes == 2
    assert dataset[0][0][0].shape == dataset.input_shape == (3, 224, 224)


def test_only_training_environments_are_augmented(tmp_path):
    grow(tmp_path, even(["cat", "dog"]), jpeg())

    def repeats(dataset, environment):
        """Whether reading a picture twice gives the same."""
        return torch.equal(dataset[environment][0][0], dataset[environment][0][0])

    augmented = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], True, {})
    assert not repeats(augmented, 0)
    assert repeats(augmented, 1)
    plain = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [1], False, {})
    assert repeats(plain, 0)


def test_cut_off_pictures_are_read(tmp_path):
    grow(tmp_path, even(["noise"], ["only"]), jpeg()[:-900])
    dataset = datasets.MultipleEnvironmentImageFolder(str(tmp_path), [0], True, {})
    assert dataset[0][0][0].shape == (3, 224, 224)
