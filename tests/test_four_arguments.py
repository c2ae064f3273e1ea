"""Algorithms built without `train`, in the harness and in a checkout of DomainBed.

In a checkout the four arguments of an algorithm are enough.

`test_tests_pass_in_a_checkout` runs the other tests in a process of a checkout.
"""

import copy
import json
import os

import pytest
import torch
from data_trees import grow, jpeg
from domainbed import algorithms, datasets, hparams_registry
from fake_checkout import run_python, write_checkout

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


def built(hparams, facts, algorithm="CARFT"):
    """Build the algorithm, take a step and predict."""
    options = {} if IN_CHECKOUT else {"dataset_facts": facts}
    algorithm = algorithms.get_algorithm_class(algorithm)((3, 32, 32), 2, 1, hparams, **options)
    assert algorithm.update([(IMAGES, LABELS)])["loss"] > 0
    assert algorithm.predict(IMAGES).shape == (4, 2)
    return algorithm


def read_class_names(algorithm):
    return json.loads(bytes(algorithm.state_dict()["words"].tolist()).decode())["classes"]


def load_dataset(dataset, folder, *class_names):
    """Return the hparams of a job with the embedded CLIP model, and the facts of its dataset."""
    hparams = hparams_registry.default_hparams("CARFT", dataset.__name__)
    hparams = {**hparams, "clip_backbone": "tiny"}
    grow(folder, {style: dict.fromkeys(class_names, 2) for style in ("art", "photo")}, jpeg())
    return hparams, dataset(str(folder), [0], hparams).dataset_facts


def test_class_names_are_found_by_hparams_of_the_dataset_or_copies(tmp_path):
    pets_hparams, pets = load_dataset(FirstPets, tmp_path / "first", *NAMES)
    things_hparams, things = load_dataset(OtherThings, tmp_path / "other", "bus", "car")
    for hparams in (dict(pets_hparams), json.loads(json.dumps(pets_hparams))):
        assert read_class_names(built(hparams, pets)) == NAMES
    assert read_class_names(built(things_hparams, things)) == ["bus", "car"]
    renamed = {**pets_hparams, "class_names": ["lion", "wolf"]}
    assert read_class_names(built(renamed, pets, "CLIPood")) == ["lion", "wolf"]

    before = copy.deepcopy(pets_hparams)
    built(pets_hparams, pets)
    added = pets_hparams.keys() - before.keys()
    assert added == ({"facts"} if IN_CHECKOUT else set())
    assert {name: pets_hparams[name] for name in before} == before


@pytest.mark.slow
def test_tests_pass_in_a_checkout(tmp_path):
    checkout = write_checkout(tmp_path / "checkout", "classic")
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "not checkout"]
    variables = {"CHECKOUT_OF_THE_TEST": "classic"}
    done = run_python(*words, cwd=checkout, path=[checkout], **variables)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
