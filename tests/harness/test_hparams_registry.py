"""Hyperparameters."""

from __future__ import annotations

import pytest
from domainbed import algorithms, hparams_registry
from domainbed.lib import misc

from domainbed_carft.errors import CarftError


def test_defaults_and_draws_are_upstreams(golden):
    for dataset, expected in golden("hparams.json").items():
        assert hparams_registry.default_hparams("ERM", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("ERM", dataset, seed) == draw["hparams"]


class _Derived(algorithms.ERM):
    """May take other values."""


BAD = {
    "lr": ["fast", None, -1, float("nan"), True],
    "weight_decay": [-0.1, "0"],
    "resnet_dropout": [5, -0.1, 10**400],
    "nonlinear_classifier": ["no", None, 2],
    "resnet18": ["false"],
    "freeze_bn": ["no"],
    "lars": [True, "yes"],
    "vit": [True],
    "dinov2": [1],
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_erm_cannot_take_are_told_and_its_own_are_not(name):
    for value in BAD[name]:
        (told,) = algorithms.ERM.hparam_problems("PACS", {name: value})
        assert "not included" in told or (f"{name} must be " in told and f"not {value!r}" in told)
        assert not _Derived.hparam_problems("PACS", {name: value})
    with pytest.raises(CarftError, match=name if "not included" in told else "shape"):
        algorithms.ERM((1,), 2, 3, {name: BAD[name][-1]})
    for seed in range(20):
        drawn = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert not algorithms.ERM.hparam_problems("PACS", drawn)
