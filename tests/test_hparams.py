"""Defaults, draws and refusals of the hyperparameters."""

import json
from pathlib import Path

import pytest
from domainbed import hparams_registry
from domainbed.lib import misc

from domainbed_carft.method import hparams
from domainbed_carft.method.arguments import check_hparams

SETS = ["EmojiStyles", "Debug28", "PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"]


def defaults(algorithm="CARFT", dataset="PACS"):
    return {name: default for name, (default, _) in hparams.overlay(algorithm, dataset, 0).items()}


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("algorithm", hparams.ALGORITHMS)
def test_values_are_plain_valid_and_survive_json(algorithm, dataset):
    for seed in range(20):
        values = hparams.overlay(algorithm, dataset, seed)
        for index in (0, 1):
            chosen = {name: pair[index] for name, pair in values.items()}
            assert all(type(v) in (int, float, bool, str) for v in chosen.values())
            assert json.loads(json.dumps(chosen)) == chosen
            assert check_hparams(chosen) == []


@pytest.mark.parametrize(
    ("dataset", "rate", "backbone"),
    [
        ("PACS", 5e-6, "ViT-B/16"),
        ("OfficeHome", 1e-5, "ViT-B/16"),
        ("DomainNet", 1e-5, "ViT-B/16"),
        ("MyOwnData", 5e-6, "ViT-B/16"),
        ("EmojiStyles", 3e-4, "tiny"),
        ("Debug224", 3e-4, "tiny"),
    ],
)
def test_documented_defaults(dataset, rate, backbone):
    values = defaults(dataset=dataset)
    assert (values["lr"], values["clip_backbone"]) == (rate, backbone)
    assert (values["kl_weight"], values["weight_decay"]) == (1.0, 0.1)
    assert values["class_names"] == f"dataset:{dataset}"


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


def test_every_hparam_says_why():
    for h in hparams.HPARAMS:
        assert len(h.reason) > 20 and h.expected in h.__doc__
