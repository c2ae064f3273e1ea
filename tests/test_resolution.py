"""Hyperparameters are resolved once, before anything is built, in our harness and in others."""

import types

import pytest
import torch
from test_algorithms import CLASSES, CONTEXTS, same_state, settings

from domainbed_carft.clips.backbone import ClipFacts
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.method import algorithms, prompts
from domainbed_carft.method.dataset_facts import DatasetFacts
from domainbed_carft.method.device import DeviceFacts
from domainbed_carft.method.resolution import JobFacts, resolve
from domainbed_carft.pictures.preprocessing import Preprocessing
from domainbed_carft.plugin import foreign_jobs

SHAPE = (3, 28, 28)
FACTS = JobFacts(
    data=DatasetFacts(protocol="host"),
    prompts=prompts.Prompts(["a {}.", "the {}."], ["cat"]),
    clip=ClipFacts("c0ffee", "main", Preprocessing(48)),
    device=DeviceFacts("Card", (8, 0)),
)
FOUND = {
    "amp": "bf16",
    "clip_digest": "c0ffee",
    "clip_revision": "main",
    "preprocessing": "48 bicubic shortest",
    "prompts_digest": prompts.digest(["a {}.", "the {}."], ["cat"]),
    "protocol": "host",
}


def test_resolving_fills_in_what_the_job_found_and_changes_nothing_else(random_tiny):
    chosen = settings(random_tiny)
    chosen_before = dict(chosen)

    complete = resolve(types.MappingProxyType(chosen), FACTS)

    assert complete == {**chosen, **FOUND}
    assert [*complete] == [*chosen]  # the order of the keys in records
    assert chosen == chosen_before
    assert resolve(complete, FACTS) == complete


def test_all_facts_that_hparams_demand_in_vain_are_listed_at_once(random_tiny):
    demanded = {"clip_digest": "abad1dea", "prompts_digest": "feedfacefeedface"}

    with pytest.raises(CarftError) as raised:
        resolve(settings(random_tiny, **demanded), FACTS)

    assert len(raised.value.problems) == 2
    for problem, (name, value) in zip(raised.value.problems, demanded.items(), strict=True):
        assert f"{name} is {value!r}, but this job has {FOUND[name]!r}" in problem.message
        assert f"or omit {name}" in problem.remedy


def test_data_that_is_not_checked_keeps_that_word_in_its_records(random_tiny):
    complete = resolve(settings(random_tiny, data_edition="unchecked"), FACTS)
    assert complete["data_edition"] == "unchecked"


def test_what_a_job_resolves_is_found_by_hand(random_tiny):
    complete = algorithms.CARFT.resolve_hparams(SHAPE, 3, settings(random_tiny), steps=None)
    assert complete["clip_digest"] == weights.sha256(random_tiny)
    assert complete["prompts_digest"] == prompts.digest(CONTEXTS, CLASSES)
    assert complete["preprocessing"] == "48 bicubic shortest"
    assert (complete["protocol"], complete["amp"]) == ("domainbed", "off")


@pytest.mark.parametrize("name", ["CARFT", "FLYP", "CLIPLPFT"])
def test_an_algorithm_only_reads_its_hparams(random_tiny, name):
    algorithm_class = getattr(algorithms, name)
    complete = algorithm_class.resolve_hparams(SHAPE, 3, settings(random_tiny, name), steps=None)
    complete_before = dict(complete)
    algorithm = algorithm_class(SHAPE, 3, 2, complete)
    assert algorithm.hparams is complete
    assert complete == complete_before


def test_an_algorithm_refuses_hparams_that_are_not_resolved(random_tiny):
    with pytest.raises(CarftError, match=r"not resolved, .* resolve_hparams of its class"):
        algorithms.CARFT(SHAPE, 3, 2, settings(random_tiny))


def test_a_clip_that_changes_after_it_was_resolved_is_refused(random_tiny):
    hparams = settings(random_tiny)
    complete = algorithms.CARFT.resolve_hparams(SHAPE, 3, hparams, steps=None)
    complete["clip_digest"] = "abad1dea"
    with pytest.raises(CarftError, match="expected abad1dea.*start the job again"):
        algorithms.CARFT(SHAPE, 3, 2, complete)


def test_in_a_foreign_host_the_constructor_completes_the_very_dict(random_tiny):
    chosen = settings(random_tiny)
    complete = algorithms.CARFT.resolve_hparams(SHAPE, 3, chosen, steps=None)
    of_our_harness = algorithms.CARFT(SHAPE, 3, 2, complete)
    in_checkout = foreign_jobs.completing(algorithms.CARFT, "domainbed.algorithms")
    torch.manual_seed(1)

    algorithm = in_checkout(SHAPE, 3, 2, chosen)

    assert algorithm.hparams is chosen
    assert chosen == complete
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


def test_a_forks_configuration_object_is_completed_too(random_tiny):
    configuration = Configuration(settings(random_tiny))
    foreign_jobs.completing(algorithms.CLIPZeroShot, "domainbed.algorithms")(
        SHAPE, 3, 2, configuration
    )
    assert configuration["clip_digest"] == weights.sha256(random_tiny)
    assert configuration["amp"] == "off"
