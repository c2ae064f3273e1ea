"""Hyperparameters."""

from __future__ import annotations

import json
import re

import pytest
from domainbed import algorithms, hparams_registry
from domainbed.lib import misc
from domainbed.scripts import sweep, train

from domainbed_carft import cli


def test_defaults_and_draws_are_upstreams(golden):
    for dataset, expected in golden("hparams.json").items():
        assert hparams_registry.default_hparams("ERM", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("ERM", dataset, seed) == draw["hparams"]


def test_values_are_plain():
    for seed in range(20):
        drawn = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert {type(value) for value in drawn.values()} <= {bool, int, float}
        assert json.loads(json.dumps(drawn)) == drawn


class _Derived(algorithms.ERM):
    """May take other values."""


BAD = {
    "lr": ["fast", None, -1, float("nan"), True],
    "weight_decay": [-0.1, "0"],
    "resnet_dropout": [5, -0.1],
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
    for seed in range(20):
        drawn = hparams_registry.random_hparams("ERM", "PACS", seed)
        assert not algorithms.ERM.hparam_problems("PACS", drawn)


def test_they_are_told_before_anything_is_loaded_and_before_a_sweeps_first_job(tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out"), "--hparams", '{"lr": "fast", "lars": true}']
    one = ["--algorithm", "ERM", "--dataset", "Debug28", *out]
    many = ["--algorithms", "ERM", "--datasets", "Debug28", "--data_dir", "D", *out]
    for main, arguments, status in (
        (train.main, one, 2),
        (sweep.main, ["launch", "--command_launcher", "dummy", "--skip_confirmation", *many], 2),
        (cli.main, ["sweep", "launch", "--launcher", "dummy", *many], 1),
    ):
        assert main(arguments) == status
        told = capsys.readouterr().err
        assert "2 problems" in told
        assert re.search(r"--hparams: lr:? must be a number of at least 0, not 'fast'", told)
        assert "lars" in told and "the LARS optimiser is not included" in told
