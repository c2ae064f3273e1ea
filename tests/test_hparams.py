"""Defaults, draws and refusals of the hyperparameters."""

import json
from pathlib import Path

import pytest
from domainbed import hparams_registry
from domainbed.lib import misc

from domainbed_carft.method import hparams
from domainbed_carft.method.arguments import check

SETS = ["EmojiStyles", "Debug28", "PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"]


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("algorithm", hparams.ALGORITHMS)
def test_values_are_plain_valid_and_survive_json(algorithm, dataset):
    for seed in range(5):
        values = hparams.overlay(algorithm, dataset, seed)
        for index in (0, 1):
            chosen = {name: pair[index] for name, pair in values.items()}
            assert all(type(v) in (int, float, bool, str) for v in chosen.values())
            assert json.loads(json.dumps(chosen)) == chosen
            check((3, 8, 8), chosen)


def test_draws_depend_on_the_seed_stay_in_range_and_move_no_other():
    drawn = [
        {n: v for n, (_, v) in hparams.overlay("CARFT", "PACS", seed).items()} for seed in range(50)
    ]
    assert len({d["lr"] for d in drawn}) == 50
    assert all(1e-6 <= d["lr"] <= 10**-4.5 for d in drawn)
    assert all(0.1 <= d["kl_weight"] <= 10 for d in drawn)
    assert all(8 <= d["batch_size"] <= 45 for d in drawn)
    # the generator of one name is DomainBed's: RandomState(md5(str((seed, name))) mod 2^31)
    import hashlib

    import numpy as np

    seed = int(hashlib.md5(b"(7, 'lr')").hexdigest(), 16) % 2**31
    assert drawn[7]["lr"] == 10 ** np.random.RandomState(seed).uniform(-6, -4.5)


def test_defaults_and_draws_on_our_harness_are_those_on_upstreams():
    golden = Path(__file__).parent / "golden" / "upstream" / "hparams_carft.json"
    for dataset, expected in json.loads(golden.read_text()).items():
        assert hparams_registry.default_hparams("CARFT", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("CARFT", dataset, seed) == draw["hparams"]
