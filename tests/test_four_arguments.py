"""An algorithm builds from its four arguments in the harness, and in a checkout of DomainBed.

`test_a_checkout_passes_these_tests` runs the others in a process of a checkout.
"""

import copy
import json
import os

import pytest
import torch
from data_trees import grow, jpeg
from domainbed import algorithms, datasets, hparams_registry
from fake_checkout import run_python, write_checkout

from domainbed_carft.errors import CarftError

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0])
NAMES = ["cat", "dog"]
IN_CHECKOUT = "CHECKOUT_OF_THE_TEST" in os.environ


class FirstPets(datasets.MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["art", "photo"]

    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, hparams["data_augmentation"], hparams)


class OtherThings(FirstPets):
    pass


def built(hparams, algorithm="CARFT"):
    """The algorithm, which takes a step and predicts."""
    algorithm = algorithms.get_algorithm_class(algorithm)((3, 32, 32), 2, 1, hparams)
    assert algorithm.update([(IMAGES, LABELS)])["loss"] > 0
    assert algorithm.predict(IMAGES).shape == (4, 2)
    return algorithm


def class_names_of(algorithm):
    return json.loads(bytes(algorithm.state_dict()["words"].tolist()).decode())["classes"]


def hparams_of_loaded(dataset, folder, *class_names):
    """The hparams of a job with the embedded CLIP, whose dataset has been loaded."""
    hparams = hparams_registry.default_hparams("CARFT", dataset.__name__)
    hparams = {**hparams, "clip_backbone": "tiny"}
    grow(folder, {style: dict.fromkeys(class_names, 2) for style in ("art", "photo")}, jpeg())
    dataset(str(folder), [0], hparams)
    return hparams


def test_class_names_are_those_of_the_dataset_with_these_hparams_or_copies(tmp_path):
    hparams_of_first = hparams_of_loaded(FirstPets, tmp_path / "first", *NAMES)
    hparams_of_other = hparams_of_loaded(OtherThings, tmp_path / "other", "bus", "car")
    for hparams in (dict(hparams_of_first), json.loads(json.dumps(hparams_of_first))):
        assert class_names_of(built(hparams)) == NAMES
    assert class_names_of(built(hparams_of_other)) == ["bus", "car"]
    renamed = {**hparams_of_first, "class_names": ["lion", "wolf"]}
    assert class_names_of(built(renamed, "CLIPood")) == ["lion", "wolf"]

    before = copy.deepcopy(hparams_of_first)
    built(hparams_of_first)
    added = hparams_of_first.keys() - before.keys()
    assert added == ({"facts"} if IN_CHECKOUT else set())
    assert {name: hparams_of_first[name] for name in before} == before


def test_the_name_of_a_known_dataset_suffices():
    algorithm = built({"class_names": "dataset:Debug28", "clip_backbone": "tiny"})
    assert class_names_of(algorithm) == ["zero", "one"]


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({}, "no class names are given, and CLIP needs them; give the hparam .*'dataset:PACS'"),
        ({"class_names": ["cat", "dog", "bird"]}, "gives 3 class names .* 2 classes"),
    ],
)
def test_missing_and_superfluous_class_names_are_refused(hparams, message):
    with pytest.raises(CarftError, match=message):
        built({**hparams, "clip_backbone": "tiny"})


@pytest.mark.slow
def test_a_checkout_passes_these_tests(tmp_path):
    checkout = write_checkout(tmp_path / "checkout", "classic")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not checkout"]
    variables = {"CHECKOUT_OF_THE_TEST": "classic"}
    done = run_python(*words, cwd=checkout, path=[checkout], **variables)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
