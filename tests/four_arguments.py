"""Checks that an algorithm builds from its four arguments, run by `test_four_arguments` in a host.

Prints a JSON object: the name of each check -> the traceback of its failure, "" if it passed. The
arguments are the folders of two data sets with two classes each.
"""

import copy
import json
import sys
import traceback
from types import MappingProxyType

import torch
from domainbed import algorithms, datasets, hparams_registry

import domainbed_carft
from domainbed_carft.errors import CarftError

PICTURES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 1, 0])
NAMES = ["cat", "dog"]
FOREIGN = not getattr(sys.modules["domainbed"], "IS_CARFT_HARNESS", False)


class FirstPets(datasets.MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["art", "photo"]

    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, hparams["data_augmentation"], hparams)


class OtherThings(FirstPets):
    pass


ROOTS = dict(zip((FirstPets, OtherThings), sys.argv[1:]))


def built(hparams, algorithm="CARFT", shape=(3, 32, 32)):
    """The algorithm, which takes a step and predicts."""
    cls = algorithms.get_algorithm_class(algorithm)
    algorithm = cls(shape, 2, 1, hparams)
    assert algorithm.update([(PICTURES, LABELS)])["loss"] > 0
    assert algorithm.predict(PICTURES).shape == (4, 2)
    return algorithm


def class_names_of(algorithm):
    return json.loads(bytes(algorithm.state_dict()["words"].tolist()).decode())["classes"]


def defaults(dataset, algorithm="CARFT"):
    """The hparams of a job with the embedded CLIP."""
    hparams = hparams_registry.default_hparams(algorithm, dataset.__name__)
    return {**hparams, "clip_backbone": "tiny"}


def loaded(dataset, hparams):
    return dataset(ROOTS[dataset], [0], hparams)


def the_four_lines():
    hparams = hparams_registry.default_hparams("CARFT", "EmojiStyles")
    dataset = datasets.EmojiStyles(None, [0], hparams)
    cls = algorithms.get_algorithm_class("CARFT")
    algorithm = cls(dataset.input_shape, dataset.num_classes, 3, hparams)
    assert len(class_names_of(algorithm)) == 10
    assert algorithm.predict(torch.zeros(1, *dataset.input_shape)).shape == (1, 10)


def the_object_of_the_data_set_and_its_copies():
    hparams = defaults(FirstPets)
    loaded(FirstPets, hparams)
    weights = built(hparams).state_dict()
    copies = [dict(hparams), copy.deepcopy(hparams), json.loads(json.dumps(hparams))]
    for changed in copies:
        again = built(changed).state_dict()
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[name], weights[name]) for name in weights)


def a_copy_with_other_class_names():
    hparams = defaults(FirstPets)
    loaded(FirstPets, hparams)
    built(hparams)
    renamed = {**hparams, "class_names": ["lion", "wolf"]}
    assert class_names_of(built(renamed)) == ["lion", "wolf"]
    assert class_names_of(built(hparams)) == NAMES


def class_names_alone():
    algorithm = built({"class_names": NAMES, "clip_backbone": "tiny"})
    assert class_names_of(algorithm) == NAMES
    assert algorithm.hparams["kl_weight"] == 1.0 and algorithm.hparams["lr"] == 3e-4


def a_built_in_data_set_by_its_name():
    hparams = {"class_names": "dataset:Debug28", "clip_backbone": "tiny"}
    assert class_names_of(built(hparams)) == ["zero", "one"]


def nothing_fails_with_the_sentence_on_class_names():
    for hparams in ({}, {"clip_backbone": "tiny"}):
        try:
            built(hparams)
        except CarftError as error:
            assert "no class names are given, and CLIP needs them; give the hparam" in str(error)
            assert "'dataset:PACS'" in str(error)
        else:
            raise AssertionError("it was built")


def another_number_of_class_names_is_refused():
    try:
        built({"class_names": ["cat", "dog", "bird"], "clip_backbone": "tiny"})
    except CarftError as error:
        assert "gives 3 class names" in str(error) and "2 classes" in str(error)
    else:
        raise AssertionError("it was built")


def the_first_data_set_keeps_its_names():
    hparams_of_first = defaults(FirstPets)
    hparams_of_other = defaults(OtherThings)
    loaded(FirstPets, hparams_of_first)
    loaded(OtherThings, hparams_of_other)
    assert class_names_of(built(hparams_of_first)) == NAMES
    assert class_names_of(built(hparams_of_other)) == ["bus", "car"]
    assert class_names_of(built(dict(hparams_of_first))) == NAMES


def two_algorithms_in_turn():
    loaded(FirstPets, defaults(FirstPets))
    hparams_of_first = defaults(FirstPets)
    hparams_of_second = defaults(FirstPets, "CLIPood")
    first = built(hparams_of_first)
    second = built(hparams_of_second, "CLIPood")
    for algorithm in (first, second, built(hparams_of_first)):
        algorithm.update([(PICTURES, LABELS)])
        assert class_names_of(algorithm) == NAMES


def the_given_hparams_stay_as_they_are():
    for hparams in (defaults(FirstPets), {"class_names": NAMES, "clip_backbone": "tiny"}):
        before = copy.deepcopy(hparams)
        built(hparams)
        added = hparams.keys() - before.keys()
        assert added == ({"facts"} if FOREIGN else set())
        assert {name: hparams[name] for name in before} == before
        built(hparams)


def build_needs_no_data_set():
    hparams = MappingProxyType({"clip_backbone": "tiny"})
    algorithm = domainbed_carft.build("CARFT", NAMES, hparams=hparams, steps=5)
    assert algorithm.update([(PICTURES, LABELS)])["loss"] > 0
    assert class_names_of(algorithm) == NAMES


CHECKS = (
    the_four_lines,
    the_object_of_the_data_set_and_its_copies,
    a_copy_with_other_class_names,
    class_names_alone,
    a_built_in_data_set_by_its_name,
    nothing_fails_with_the_sentence_on_class_names,
    another_number_of_class_names_is_refused,
    the_first_data_set_keeps_its_names,
    two_algorithms_in_turn,
    the_given_hparams_stay_as_they_are,
    build_needs_no_data_set,
)


def failure(check):
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__" and sys.argv[1:]:
    sys.stdout, output = sys.stderr, sys.stdout  # what building prints is not looked at
    print(json.dumps({check.__name__: failure(check) for check in CHECKS}), file=output, flush=True)
