"""The facts of a job are found when its algorithm is built, in our harness and in others."""

import copy
import types

import pytest
import torch
from test_algorithms import CLASSES, CONTEXTS, same_state, settings

from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.method import algorithms, prompts
from domainbed_carft.plugin import foreign_jobs

SHAPE = (3, 28, 28)


def test_facts_are_found_by_hand(random_tiny):
    facts = algorithms.CARFT(SHAPE, 3, 2, settings(random_tiny)).recorded_facts()
    assert facts == {
        "clip_digest": weights.sha256(random_tiny),
        "clip_revision": "",
        "prompts_digest": prompts.digest(CONTEXTS, CLASSES),
        "data_edition": "",
        "preprocessing": "48 bicubic shortest",
        "protocol": "domainbed",
        "amp": "off",
    }


def test_all_facts_that_hparams_demand_in_vain_are_listed_at_once(random_tiny):
    demanded = {"clip_digest": "abad1dea", "prompts_digest": "feedfacefeedface"}

    with pytest.raises(CarftError) as raised:
        algorithms.CARFT(SHAPE, 3, 2, settings(random_tiny, **demanded))

    assert len(raised.value.problems) == 2
    for problem, (name, value) in zip(raised.value.problems, demanded.items(), strict=True):
        assert f"{name} is {value!r}, but this job has " in problem
        assert f"or omit {name}" in problem


@pytest.mark.parametrize("name", ["CARFT", "FLYP", "CLIPLPFT"])
def test_an_algorithm_only_reads_its_hparams(random_tiny, name):
    hparams = settings(random_tiny, name)
    before = copy.deepcopy(hparams)
    algorithm = getattr(algorithms, name)(SHAPE, 3, 2, types.MappingProxyType(hparams))
    assert hparams == before
    assert algorithm.hparams == before


def test_in_a_foreign_host_the_constructor_adds_one_key(random_tiny):
    chosen = settings(random_tiny)
    before = copy.deepcopy(chosen)
    torch.manual_seed(1)
    of_our_harness = algorithms.CARFT(SHAPE, 3, 2, chosen)
    in_checkout = foreign_jobs.in_foreign_host(algorithms.CARFT, "domainbed.algorithms")

    algorithm = in_checkout(SHAPE, 3, 2, chosen)

    assert chosen == {**before, "facts": of_our_harness.recorded_facts()}
    assert same_state(algorithm, of_our_harness)
    assert (in_checkout.__name__, in_checkout.__module__) == ("CARFT", "domainbed.algorithms")


class Configuration:
    """The hparams of a fork: keys and items, and no more."""

    def __init__(self, values):
        self.values = values

    def keys(self):
        return self.values.keys()

    def __getitem__(self, name):
        return self.values[name]

    def __setitem__(self, name, value):
        self.values[name] = value


def test_a_forks_configuration_object_gets_the_facts_too(random_tiny):
    configuration = Configuration(settings(random_tiny))
    in_checkout = foreign_jobs.in_foreign_host(algorithms.CLIPZeroShot, "domainbed.algorithms")
    in_checkout(SHAPE, 3, 2, configuration)
    assert configuration["facts"]["clip_digest"] == weights.sha256(random_tiny)
    assert configuration["facts"]["amp"] == "off"
