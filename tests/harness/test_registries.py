"""Names of algorithms and datasets, and hyperparameters."""

import pytest
from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import misc
from domainbed.lib.command_line import UnknownNameError

from domainbed_carft.errors import CarftError

from . import fakes


def test_default_and_random_hparams_equal_upstreams(golden):
    for dataset, expected in golden("hparams.json").items():
        assert hparams_registry.default_hparams("ERM", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("ERM", dataset, seed) == draw["hparams"]


class _Derived(algorithms.ERM):
    """May take other values."""


BAD = {
    "lr": ["fast", None, -1, float("nan"), True],
    "resnet_dropout": [5, -0.1],
    "nonlinear_classifier": ["no", None, 2],
    "lars": [True, "yes"],
    "vit": [True],
}
NOT_INCLUDED = ("lars", "vit")


@pytest.mark.parametrize("name", BAD)
def test_invalid_erm_hparams_are_problems_and_random_ones_are_not(name):
    for value in BAD[name]:
        (problem,) = algorithms.ERM.hparam_problems("PACS", {name: value})
        message = str(problem)
        if name in NOT_INCLUDED:
            assert "not included" in message
        else:
            assert f"{name} is {value!r}, expected " in message
        assert not _Derived.hparam_problems("PACS", {name: value})

    with pytest.raises(CarftError, match=name if name in NOT_INCLUDED else "shape"):
        algorithms.ERM((1,), 2, 3, {name: BAD[name][-1]})

    for seed in range(20):
        random_hparams = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert not algorithms.ERM.hparam_problems("PACS", random_hparams)


@pytest.mark.parametrize("name", ["stil", "torch", "ALGORITHMS", "Any", "text", "_Still"])
def test_an_unknown_algorithm_is_refused_with_the_valid_names(registered, monkeypatch, name):
    monkeypatch.setattr(algorithms, "_Still", fakes.Still, raising=False)
    with pytest.raises(UnknownNameError, match="Valid: Still, LinearSGD$"):
        algorithms.get_algorithm_class(name)


@pytest.mark.parametrize("name", ["pacs", "os", "TensorDataset", "DATASETS", "_Noise"])
def test_an_unknown_dataset_is_refused_with_the_valid_names(name):
    with pytest.raises(UnknownNameError, match=f"no dataset is called '{name}'.*Valid: Debug28, "):
        datasets.get_dataset_class(name)


@pytest.mark.parametrize("name", ["Mixup", "URM"])
def test_upstream_algorithms_that_are_missing_are_named_with_the_remedy(
    registered, monkeypatch, name
):
    message = f"algorithm {name} is not included; use one of Still, Linear.*checkout of facebook"
    with pytest.raises(UnknownNameError, match=message):
        algorithms.get_algorithm_class(name)

    monkeypatch.setattr(algorithms, name, fakes.Still, raising=False)  # a plugin's
    assert algorithms.get_algorithm_class(name) is fakes.Still

    with pytest.raises(UnknownNameError, match="WILDSFMoW is not included; use another one "):
        datasets.get_dataset_class("WILDSFMoW")
