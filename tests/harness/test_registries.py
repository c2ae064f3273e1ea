"""Names of algorithms and datasets, and hyperparameters."""

import pytest
from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import misc
from domainbed.lib.command_line import UnknownNameError

from domainbed_carft.errors import CarftError

from . import fakes


def test_default_and_random_hparams_equal_upstream(golden):
    for dataset, expected in golden("hparams.json").items():
        assert hparams_registry.default_hparams("ERM", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("ERM", dataset, seed) == draw["hparams"]


class _Derived(algorithms.ERM):
    """A subclass, whose hyperparameters can have other values."""


INVALID = {
    "lr": ["fast", None, -1, float("nan"), True],
    "resnet_dropout": [5, -0.1],
    "nonlinear_classifier": ["no", None, 2],
    "lars": [True, "yes"],
    "vit": [True],
}
NOT_INCLUDED = ("lars", "vit")


@pytest.mark.parametrize("name", INVALID)
def test_invalid_erm_hparams_are_problems_and_random_ones_are_not(name):
    for value in INVALID[name]:
        (problem,) = algorithms.ERM.resolve_hparams("PACS", {name: value}).problems
        message = str(problem)
        if name in NOT_INCLUDED:
            assert "not included" in message
        else:
            assert f"{name} is {value!r}, expected " in message
        assert not _Derived.resolve_hparams("PACS", {name: value}).problems

    with pytest.raises(CarftError, match=name if name in NOT_INCLUDED else "shape"):
        algorithms.ERM((1,), 2, 3, {name: INVALID[name][-1]})

    for seed in range(20):
        random_hparams = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert not algorithms.ERM.resolve_hparams("PACS", random_hparams).problems


@pytest.mark.parametrize("name", ["stil", "torch", "ALGORITHMS", "Any", "text", "_Still"])
def test_unknown_algorithm_is_refused_with_the_valid_names(registered, monkeypatch, name):
    monkeypatch.setattr(algorithms, "_Still", fakes.Still, raising=False)
    with pytest.raises(UnknownNameError, match="Valid: Still, LinearSGD$"):
        algorithms.get_algorithm_class(name)


@pytest.mark.parametrize("name", ["pacs", "os", "TensorDataset", "DATASETS", "_Noise"])
def test_unknown_dataset_is_refused_with_the_valid_names(name):
    with pytest.raises(UnknownNameError, match=f"no dataset is called '{name}'.*Valid: Debug28, "):
        datasets.get_dataset_class(name)


def test_missing_upstream_names_are_refused_unless_a_plugin_adds_them(registered, monkeypatch):
    message = "algorithm Mixup is not included; use one of Still, Linear.*checkout of facebook"
    with pytest.raises(UnknownNameError, match=message):
        algorithms.get_algorithm_class("Mixup")
    with pytest.raises(UnknownNameError, match="WILDSFMoW is not included; use another one "):
        datasets.get_dataset_class("WILDSFMoW")

    monkeypatch.setattr(algorithms, "Mixup", fakes.Still, raising=False)
    assert algorithms.get_algorithm_class("Mixup") is fakes.Still
